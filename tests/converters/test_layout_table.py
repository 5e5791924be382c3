"""Every layout is detected, whole, equal; spoilt files end in an error or the right weights: docs/layouts.md holds."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from converters.__main__ import Target
from converters.layouts import LAYOUTS
from tests.converters.layout_table import ARCH, DAMAGE, DOCUMENT, MADE, PARITY, SPOILT, WRITERS, row, written

METHODS = {  # what is said of a file; of all others: not said by the file
    "simsiam": "SimSiam",
    "simsiam_unwrapped": "SimSiam",
    "moco_v1_raw": "MoCo v1 (or PCL v1: same names)",
    "moco_v1_cleaned": "MoCo v1 (or PCL v1: same names)",
    "moco_v2_raw": "MoCo v2 (or PCL v2, CLSA, AdCo: same names)",
    "moco_v2_cleaned": "MoCo v2 (or PCL v2, CLSA, AdCo: same names)",
    "moco_v3": "MoCo v3",
    "dino": "DINO (teacher)",
    "swav_published": "SwAV",
    "swav_training": "SwAV",
    "deepcluster_v2": "DeepCluster v2 (or SeLa v2: several sets of prototypes)",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "insdis": "InsDis or MoCo v1",
    "pirl": "PIRL",
    "pycontrast_moco": "MoCo v1 (PyContrast)",
    "pycontrast_moco_v2": "MoCo v2 (PyContrast)",
    "infomin": "InfoMin",
    "pixpro_published": "PixPro",
    "pixpro_training": "PixPro",
    "mmselfsup_simsiam": "SimSiam",
    "mmselfsup_moco": "MoCo",
    "openselfsup_moco": "MoCo",
    "openselfsup_byol": "BYOL",
    "densecl": "DenseCL",
    "mmpretrain_simsiam": "SimSiam",
    "mmpretrain_byol": "BYOL",
    "mmpretrain_moco": "MoCo",
    "mmpretrain_barlow": "Barlow Twins",
    "mmpretrain_swav": "SwAV",
    "mmpretrain_classifier": "a classifier: supervised, or trained on features",
    "byol": "BYOL",
}
MUST_BE_RIGHT = {"fp16", "counters dropped"}


@pytest.mark.parametrize("name", MADE)
def test_a_layout(name: str, tmp_path: Path) -> None:
    found = row(name, tmp_path)
    assert found.detected == (found.layout,)
    assert found.equal == found.tensors and not found.unexpected
    assert (found.method, found.groups) == (METHODS.get(name, "not said by the file"), MADE[name](ARCH).groups)
    assert found.parity < PARITY
    if name in SPOILT:
        counted = Counter(found.outcomes.values())
        assert counted["refused"] + counted["right"] == len(DAMAGE) + 1, found.outcomes
        assert {kind for kind in MUST_BE_RIGHT if found.outcomes[kind] != "right"} == set()
    assert str(found) in DOCUMENT.read_text().splitlines(), (
        "docs/layouts.md: run python -m tests.converters.layout_table"
    )


@pytest.mark.parametrize("target", WRITERS)
def test_a_writer(target: str, tmp_path: Path) -> None:
    found = written(target, tmp_path)
    # the engines' files hold no batch counters where the engine has none
    assert found.equal == found.tensors or (target == "detectron2" and found.equal == found.tensors * 5 // 6)
    assert found.parity < PARITY
    assert str(found) in DOCUMENT.read_text().splitlines(), (
        "docs/layouts.md: run python -m tests.converters.layout_table"
    )


def test_every_target_of_the_command_is_tried() -> None:
    assert set(WRITERS) == set(get_args(Target))


def test_every_layout_is_spoilt_once() -> None:
    lines = [line.split(" | ") for line in DOCUMENT.read_text().splitlines() if line.count(" | ") == 7]
    assert sorted(layout for _, layout, _, _, _, spoilt, *_ in lines if " of 15" in spoilt) == sorted(LAYOUTS)


def test_every_reader_is_tried() -> None:
    lines = DOCUMENT.read_text().splitlines()
    assert {line.split(" | ")[1] for line in lines if line.startswith("| ") and line.count(" | ") == 7} >= set(LAYOUTS)
