"""A tiny drawn dataset with its configs, and a copy of the source tree to run commands in."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from zoo.files import ROOT

PACKAGES = ("zoo", "engines", "converters", "evaluate", "pretrain", "report")
TRAIN, VAL, CLASSES = 43, 26, 3  # neither is divisible by 2, 4 or a batch
TEST_TRANSFORM = {"resize": 24, "crop": 24, "interpolation": "bilinear", "fit": "centre_crop"}
FORWARD = {
    "batch_size": 4,
    "precision": "fp32",
    "memory_format": "channels_last",
    "fuse_batch_norm": True,
    "compile": False,
}
RECIPE: dict[str, Any] = {
    "batch_norm": "none",
    "head_std": 0.01,
    "optimiser": {"name": "sgd", "momentum": 0.9, "nesterov": True},
    "base_lr": [0.5],
    "weight_decay": [0.0],
    "batch_size": 8,
    "epochs": 3,
    "schedule": {"name": "cosine"},
    "held_out_per_class": 0,
}
KNN: dict[str, Any] = {
    "benchmark": "knn",
    "protocol": 1,
    "dataset": "tiny",
    "settings": {
        "bank_split": "train",
        "query_split": "val",
        "features": {"transform": TEST_TRANSFORM, "layers": {"avgpool": None}, "forward": FORWARD, "storage": "fp32"},
        "k": [1, 5],
        "temperature": 0.07,
    },
    "execution": {"back_end": "torch", "block_mb": 1},
    "tables": [
        {
            "id": "tiny_knn",
            "title": "Tiny kNN",
            "metric": "top-1 in percent",
            "decimals": 1,
            "columns": {"k=1": "top1_k1", "k=5": "top1_k5"},
        }
    ],
}
LINEAR: dict[str, Any] = {
    "benchmark": "linear",
    "protocol": 1,
    "dataset": "tiny",
    "settings": {
        "train_split": "train",
        "test_split": "val",
        "train_transform": {
            "crop": {"name": "random_resized", "size": 24, "area": [0.5, 1.0]},
            "interpolation": "bilinear",
            "flip_probability": 0.5,
            "jitter": [0.4, 0.4, 0.4],
            "lighting": 0.1,
        },
        "test_transform": TEST_TRANSFORM,
        "layers": {"feature3": {"kernel": 2, "stride": 1, "padding": 1}, "avgpool": None},
        "forward": FORWARD,
        "recipes": {
            "lars": RECIPE
            | {
                "layers": ["avgpool"],
                "optimiser": {"name": "lars_mmselfsup", "momentum": 0.9, "trust_coefficient": 0.001, "eps": 1e-8},
                "base_lr": [1.6],
                "batch_size": 16,
            },
            "sgd": RECIPE | {"layers": ["feature3"], "batch_norm": "plain"},
        },
    },
    "execution": {"evaluate_every_epochs": 1, "save_minutes": 0},
    "tables": [
        {
            "id": "tiny_linear",
            "title": "Tiny linear",
            "metric": "top-1 in percent",
            "decimals": 2,
            "columns": {"Feature3": "top1_sgd_feature3", "AvgPool": "top1_lars_avgpool"},
        }
    ],
}


def draw(folder: Path, count: int, label: int) -> None:
    """Images of one class: its own base colour, blotched."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng((label, count))
    for number in range(count):
        blots = rng.integers(0, 140, (4, 5, 3), dtype=np.uint8)
        blots[..., label] += 110
        Image.fromarray(blots).resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{label}_{number:03d}.png")


def dumped(content: Any) -> str:
    """YAML without the anchors that the dumper gives to what occurs twice, and our reader refuses."""
    return yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False)


def write_configs(configs: Path) -> None:
    splits = {split: {"num_images": None, "layouts": [{"class_folders": split}]} for split in ("train", "val")}
    dataset = {
        "name": "tiny",
        "title": "tiny",
        "root": None,
        "num_classes": CLASSES,
        "substitute_for": "imagenet",
        "splits": splits,
    }
    suite = {
        "name": "tiny",
        "checkpoints": [{"random": "resnet18", "seeds": [0, 1]}],
        "benchmarks": ["tiny_knn", "tiny_linear"],
        "seeds": [0],
    }
    recipe = yaml.safe_load((ROOT / "configs/pretrain/mini_simsiam_r18.yaml").read_text()) | {
        "name": "tiny",
        "display": "tiny SimSiam",
        "dataset": "tiny",
        "epochs": 2,
        "batch_size": 8,
        "collapse": {"below": 0.67, "window": 5, "grace_steps": 1000, "action": "stop"},
        "save": {"every_steps": 2, "keep_last": 2, "keep_every_steps": None},
    }
    recipe["views"]["crop"] = 24
    recipe["monitor"] |= {"bank_images": 24, "query_images": 8, "k": 3, "resize": 24, "crop": 24}
    for name, content in (
        ("pretrain/tiny", recipe),
        ("datasets/tiny", dataset),
        ("benchmarks/tiny_knn", KNN),
        ("benchmarks/tiny_linear", LINEAR),
        ("suites/tiny", suite),
    ):
        (configs / f"{name}.yaml").write_text(dumped(content))


def environment(tiny_files: Path, folder: Path) -> dict[str, str]:
    return {
        "ZOO_DATA": str(tiny_files / "data.yaml"),
        "ZOO_RUNS": str(folder / "runs"),
        "ZOO_CACHE": str(folder / "cache"),
        "ZOO_DEVICE": "cpu",
    }


@dataclass(frozen=True)
class Tree:
    """A copy of the project's source with the tiny configs: commands run in it as a user would run them."""

    folder: Path
    env: dict[str, str]

    def start(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **self.env, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a test may kill its whole group
        )

    def run(self, *arguments: str | Path, expect: int = 0, env: Mapping[str, str] | None = None) -> str:
        """What `python -m …` printed; it must have left with exit code `expect`."""
        process = self.start(*arguments, env=env)
        output, _ = process.communicate(timeout=200)
        assert process.returncode == expect, output
        return output
