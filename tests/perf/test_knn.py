"""The kNN comparison runs, and what it prints is measured (tiny sizes; its numbers are in docs/knn_scale.md)."""

from pathlib import Path

import numpy as np
import pytest

from perf import knn
from zoo.errors import ZooError


def test_the_speed_comparison_gives_a_ratio_and_finds_what_fp64_finds(capsys: pytest.CaptureFixture[str]) -> None:
    result = knn.speed(rows=600, queries=40, dims=16, repeats=1, back_end="torch")
    assert result["ratio"] == result["ours"] / result["bare"]
    assert result["wrong"] == 0 and result["checked"] == 40 * 200
    assert "ours / bare" in capsys.readouterr().out


def test_storage_changes_nothing_where_fp16_is_exact_and_something_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    whole = rng.integers(0, 9, (300, 32)).astype(np.float32)
    exact = knn.storage(whole, labels, whole[:20], labels[:20])
    assert all(changed == "0.000" and flips == 0 for _, changed, flips, _, _ in exact["rows"])
    bank = 1 + 0.001 * rng.normal(size=(300, 32)).astype(np.float32)  # fp16 has steps of 0.001 there
    rounded = knn.storage(bank, labels, bank[:20], labels[:20])
    assert all(float(changed) > 1 for _, changed, _, _, _ in rounded["rows"])


def test_a_bank_on_disk_is_searched_with_its_memory_watched(tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", knn.features(slice(0, 400), 400, 16, 1)[0].astype(np.float16))
    seconds, before, peak = map(float, knn.one(tmp_path / "bank.npy", 20, "torch").split())
    assert seconds > 0 and peak >= before > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"back_end": "annoy"}, "expected --back-end faiss or torch .* found annoy, float16"),
        ({"dtype": "int8"}, "found torch, int8"),
        ({"measure_scale": True}, "--scale needs --scratch DIR"),
        ({"features_file": Path("x.npy")}, "--features and --labels belong together, with --storage"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        knn.main(**{"back_end": "torch", "dtype": "float16", **options})  # pyright: ignore[reportArgumentType]
