"""The tiny world of tiny_world.py as fixtures."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from converters.canonical import write_checkpoint
from tests.evaluate.tiny_world import CLASSES, PACKAGES, TRAIN, VAL, Tree, draw, environment, write_configs
from zoo import benchmark, datasets
from zoo.backbone import Backbone
from zoo.files import ROOT
from zoo.transforms import IMAGENET_PIXELS


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/, configs/ (the project's and the tiny ones) and one random checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    for split, count in (("train", TRAIN), ("val", VAL)):
        for label in range(CLASSES):
            draw(folder / "data" / split / f"class{label}", len(range(label, count, CLASSES)), label)
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_configs(folder / "configs")
    (folder / "data.yaml").write_text(f"tiny: {folder / 'data'}\n")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = Backbone("resnet18").state_dict()
    write_checkpoint(
        folder / "checkpoint",
        state,
        name="random",
        family="random",
        arch="resnet18",
        pixels=IMAGENET_PIXELS,
        source_format="canonical",
        lineage=(),
    )
    return folder


@pytest.fixture
def tiny(tiny_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The tiny files, found by this process; records and cache go to tmp_path."""
    for name, value in environment(tiny_files, tmp_path).items():
        monkeypatch.setenv(name, value)
    for module in (datasets, benchmark):
        monkeypatch.setattr(module, "CONFIGS", tiny_files / "configs")
    datasets.manifest.cache_clear()
    yield tiny_files
    datasets.manifest.cache_clear()


@pytest.fixture
def tree(tiny_files: Path, tmp_path: Path) -> Tree:
    folder = tmp_path / "tree"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(tiny_files / "configs", folder / "configs")
    return Tree(folder, environment(tiny_files, tmp_path))
