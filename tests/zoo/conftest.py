"""Datasets described for one test: configs, places and cache in a temporary folder."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dataset_files import FOLDERS, LIST, Describe
from zoo import datasets
from zoo.datasets import manifest


@pytest.fixture
def describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Describe:
    """Write configs/datasets/pets.yaml and data.yaml, and return the dataset's (new) folder."""
    monkeypatch.setattr(datasets, "CONFIGS", tmp_path / "configs")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "data.yaml"))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    manifest.cache_clear()

    def write(*layouts: dict[str, Any], folder: str = "pets", num_images: int | None = None, **changes: Any) -> Path:
        splits = {"train": {"num_images": num_images, "layouts": list(layouts) or [FOLDERS, LIST]}}
        config: dict[str, Any] = {"name": "pets", "title": "Pets", "root": None, "num_classes": 3}
        config |= {"substitute_for": None, "splits": splits, **changes}
        path = tmp_path / "configs" / "datasets" / "pets.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config))
        (tmp_path / "data.yaml").write_text(f"pets: {tmp_path / folder}\n")
        (tmp_path / folder).mkdir(exist_ok=True)
        manifest.cache_clear()
        return tmp_path / folder

    return write
