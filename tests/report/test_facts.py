"""What stands behind a number: all that says how it came about, and nothing that only one machine knows."""

import json

import pytest

from report.facts import SHORT, facts, shortened
from tests.report.drawn import knn, record


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "python -m evaluate run --checkpoint /home/me/zoo/runs/mini/checkpoints/a/card.yaml --benchmark mini_knn",
            "python -m evaluate run --checkpoint runs/mini/checkpoints/a/card.yaml --benchmark mini_knn",
        ),
        ("/home/runs/me/configs/checkpoints/a.yaml", "configs/checkpoints/a.yaml"),
        ("/data/runs/secret/runs/mini/a", "runs/mini/a"),
        ("--checkpoint=/home/me/model.pth,/x/y.pth", "--checkpoint=…/model.pth,…/y.pth"),
        ("'/home/my models/a b.pth' --seed 0", "'…/a b.pth' --seed 0"),
        ("file:///home/me/model.pth", "…/model.pth"),
        ("~/me/model.pth", "…/model.pth"),
        ("https://example.org/a/b.pth hf://owner/name/file", "https://example.org/a/b.pth hf://owner/name/file"),
        ("a/b/c 1/2 x / y", "a/b/c 1/2 x / y"),
    ],
)
def test_a_path_keeps_what_any_machine_knows_of_it(text: str, expected: str) -> None:
    assert shortened(text) == expected


def test_what_records_share_is_kept_once_and_the_rest_is_complete() -> None:
    one, two = (record(name, "cifar10_knn", knn(1, 2.00004, 3, 4)) for name in "ab")
    found = facts([one, two])
    a, b = (found["records"][each.cell_id[:SHORT]] for each in (one, two))
    assert a["settings"] == b["settings"] and a["checkpoint"] != b["checkpoint"]
    assert found["shared"][a["settings"]] == one.settings
    assert a["metrics"][1] == ["top1_k20", 2.0, 1.5, 2.5]
    assert a["cell_id"] == one.cell_id and a["seed"] == 0 and a["command"] == "python -m evaluate run"


def test_hosts_and_the_arguments_of_the_run_are_left_out() -> None:
    environment = {
        "host": "h-o-s-t",
        "arguments": ["--cell", "/home/me/cell.json"],
        "cpu": "AVX512",
        "at": "/home/me/x",
    }
    text = json.dumps(facts([record("a", "cifar10_knn", knn(1, 2, 3, 4), environment=environment)]))
    assert "AVX512" in text
    assert "h-o-s-t" not in text and "/home" not in text and "--cell" not in text
