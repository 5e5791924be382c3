"""Every layout is detected, whole, equal; spoilt files end in an error or the right weights: docs/layouts.md holds."""

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from converters.__main__ import Target
from converters.layouts import LAYOUTS
from tests.converters.layout_table import DAMAGE, DOCUMENT, MADE, PARITY, WRITERS, row, written

MUST_BE_RIGHT = {"fp16", "counters dropped"}


@pytest.mark.parametrize("name", MADE)
def test_a_layout(name: str, tmp_path: Path) -> None:
    found = row(name, tmp_path)
    assert found.detected == (found.layout,)
    assert found.equal == found.tensors
    assert found.parity < PARITY
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


def test_every_reader_is_tried() -> None:
    lines = DOCUMENT.read_text().splitlines()
    assert {line.split(" | ")[1] for line in lines if line.startswith("| ") and line.count(" | ") == 7} >= set(LAYOUTS)
