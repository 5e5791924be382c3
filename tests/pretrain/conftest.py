"""What these tests share: a tiny drawn dataset, a tiny recipe, and commands run in processes of their own."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from zoo import datasets
from zoo.config import validate
from zoo.files import ROOT
from zoo.recipe import PretrainConfig

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "family": "tiny",
    "display": "tiny",
    "method": {
        "name": "simsiam",
        "projector_dim": 32,
        "predictor_dim": 8,
        "predictor": "mlp",
        "predictor_lr": "constant",
        "head_norm": "default",
        "similarity": "cosine",
        "symmetry": "symmetric",
        "stop_gradient": True,
    },
    "arch": "resnet18",
    "dataset": "tiny",
    "split": "train",
    "pixels": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "order": "rgb"},
    "views": {
        "crop": 24,
        "area": [0.2, 1.0],
        "interpolation": "bilinear",
        "jitter": [0.4, 0.4, 0.4, 0.1],
        "jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_sigma": [0.1, 2.0],
        "blur_probability": 0.5,
        "flip_probability": 0.5,
        "photometric": "pil",
    },
    "epochs": 2,
    "batch_size": 8,
    "base_lr": 1.6,
    "warmup_epochs": 0,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "arithmetic": {
        "precision": "fp32",
        "channels_last": False,
        "compile": False,
        "fused_sgd": False,
        "accumulate": 1,
    },
    "monitor": {
        "every_epochs": 1,
        "bank_split": "train",
        "bank_images": 24,
        "query_split": "val",
        "query_images": 8,
        "k": 3,
        "resize": 24,
        "crop": 24,
    },
    "collapse": {"below": 0.7, "window": 5, "grace_steps": 1000, "action": "stop"},
    "save": {"every_steps": 2, "keep_last": 2, "keep_every_steps": None},
    "bad_images": "stop",
}
TRAIN, VAL, CLASSES = 43, 8, 2  # 43: five batches of 8, and three images left over


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """A folder with the dataset `tiny`, and what makes processes and this one find it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def config(self, **changes: Any) -> PretrainConfig:
        return validate(tuples(self.recipe(**changes)), PretrainConfig, where="test recipe")

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """RECIPE with top-level values replaced; mappings are merged."""
        recipe = copy.deepcopy(RECIPE)
        for key, value in changes.items():
            recipe[key] = {**recipe[key], **value} if isinstance(value, dict) and key != "method" else value
        return recipe

    def write(self, **changes: Any) -> Path:
        path = self.folder / f"recipe{len(list(self.folder.glob('recipe*')))}.yaml"
        path.write_text(yaml.safe_dump(self.recipe(**changes)))
        return path

    def start(self, *arguments: str | Path, env: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        """`python -m …`, its output to be read from stderr."""
        return subprocess.Popen(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, **self.env, **(env or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit code and stderr of `python -m …`."""
        process = self.start(*arguments, env=env)
        _, errors = process.communicate(timeout=480)
        return process.returncode, errors


def tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def draw_images(folder: Path, count: int, label: int) -> None:
    """Blurred colour blots; every image another one."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(label)
    for number in range(count):
        blots = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(blots).resize((40, 32), Image.Resampling.BICUBIC)
        image.save(folder / f"{label}_{number:03d}.png")


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset, its config, and a site folder that shows the config to processes started here."""
    folder = tmp_path_factory.mktemp("tiny")
    for label in range(CLASSES):
        draw_images(folder / "data" / "train" / f"class{label}", TRAIN // 2 + label * TRAIN % 2, label)
        draw_images(folder / "data" / "val" / f"class{label}", VAL // 2, 10 + label)
    dataset = {
        "name": "tiny",
        "title": "tiny",
        "root": None,
        "num_classes": CLASSES,
        "substitute_for": "imagenet",
        "splits": {split: {"num_images": None, "layouts": [{"class_folders": split}]} for split in ("train", "val")},
    }
    (folder / "configs" / "datasets").mkdir(parents=True)
    (folder / "configs" / "datasets" / "tiny.yaml").write_text(yaml.safe_dump(dataset))
    (folder / "data.yaml").write_text(f"tiny: {folder / 'data'}\n")
    (folder / "site").mkdir()
    patch = f"import os, pathlib, zoo.files\nzoo.files.CONFIGS = pathlib.Path({str(folder / 'configs')!r})\n"
    patch += "os.fsync = lambda descriptor: None\n"
    (folder / "site" / "sitecustomize.py").write_text(patch)
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes started here, so that results have the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    env = {
        "ZOO_DATA": str(tiny_files / "data.yaml"),
        "ZOO_RUNS": str(tmp_path / "runs"),
        "ZOO_CACHE": str(tmp_path / "cache"),
        "ZOO_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(datasets, "CONFIGS", tiny_files / "configs")
    # a killed process loses nothing that it has written; only a power cut does, and states of 90 MB take the disk long
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    datasets.manifest.cache_clear()
    yield Tiny(folder=tmp_path, env={**env, "PYTHONPATH": f"{tiny_files / 'site'}{os.pathsep}{ROOT}"})
    datasets.manifest.cache_clear()
