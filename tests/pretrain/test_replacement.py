"""Images that cannot be read: named, counted, and replaced by rule or the end of the run."""

import json
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.preflight import check
from pretrain.progress import LOG_NAME
from pretrain.replacement import Replacements, readable, substitutes
from pretrain.train import train, training_batches
from zoo.checkpoint import read_card
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.errors import DataError
from zoo.loading import Replaced

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
BAD = "train/class0/0_003.png"


@pytest.fixture
def images(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data to break."""
    copy = shutil.copytree(Path(tiny.env["ZOO_DATA"]).parent / "data", tiny.folder / "data")
    (tiny.folder / "data.yaml").write_text(f"tiny: {copy}\n")
    monkeypatch.setenv("ZOO_DATA", str(tiny.folder / "data.yaml"))
    return copy


def test_who_stands_in_is_a_function_of_seed_epoch_and_sample_and_anyone_else() -> None:
    assert list(substitutes(0, 43, (1, 5))) == list(substitutes(0, 43, (1, 5)))
    others = {tuple(substitutes(*key)) for key in ((1, 43, (1, 5)), (0, 43, (2, 5)), (0, 43, (1, 6)), (0, 43, (1, 5)))}
    assert len(others) == 4
    drawn = Counter(index for epoch in range(200) for _, index in substitutes(0, 5, (epoch, 2)))
    assert set(drawn) == {0, 1, 3, 4} and min(drawn.values()) > 700  # of 3,200, 800 each
    assert {epoch for epoch, _ in substitutes(0, 5, (7, 2))} == {7}


def batches(tiny: Any, *, workers: int = 0, **changes: Any) -> tuple[list[Any], Replacements]:
    config = tiny.config(bad_images="replace", **changes)
    plan = check(config, seed=0, overrides=(), out=tiny.folder / "out", workers=workers, processes=1)
    replacements = Replacements(plan.train, {})
    loaded = training_batches(plan, ALONE, num_views=2, start_step=0, replacements=replacements)
    found = list(islice(loaded, 10))
    for step in range(1, 11):
        replacements.gather(step, ALONE)
    return found, replacements


def test_the_image_that_stands_in_brings_its_label_and_any_number_of_workers_draws_it(tiny: Any, images: Path) -> None:
    whole, none = batches(tiny)
    assert none.times == {} and none.lineage() == ()
    (images / BAD).write_bytes((images / BAD).read_bytes()[:100])
    index = manifest("tiny", "train").paths.index(BAD)
    found, replacements = batches(tiny)
    assert set(replacements.times) == {index} and 1 <= replacements.times[index] <= 2
    changed = []
    for before, after in zip(whole, found, strict=True):
        rows = [row for row in range(8) if not torch.equal(before[2][0][row], after[2][0][row])]
        changed += [int(after[3][row]) for row in rows]
        kept = [row for row in range(8) if row not in rows]
        assert torch.equal(before[3][kept], after[3][kept])
    labels = manifest("tiny", "train").labels
    epochs = [
        epoch
        for epoch in (0, 1)
        if any(b[1] == epoch and not torch.equal(b[2][0], a[2][0]) for b, a in zip(whole, found, strict=True))
    ]
    assert changed == [int(labels[next(substitutes(0, 43, (epoch, index)))[1]]) for epoch in epochs]
    others, same = batches(tiny, workers=2)
    assert same.times == replacements.times
    for one, two in zip(found, others, strict=True):
        assert torch.equal(one[2][1], two[2][1]) and torch.equal(one[3], two[3])


def test_a_run_with_a_broken_image_finishes_and_says_so_everywhere(tiny: Any, images: Path, caplog: Any) -> None:
    (images / BAD).write_bytes(b"\xff\xd8\xff not a JPEG")
    config = tiny.config(bad_images="replace", epochs=1)
    plan = check(config, seed=0, overrides=(), out=tiny.folder / "out", workers=0, processes=1)
    assert BAD in [plan.train.paths[index] for index in np.random.default_rng(0).permutation(43)[:24]]  # in the bank
    card = read_card(train(plan, ALONE))
    times = json.loads((plan.out / "run.json").read_text())["replaced"]
    assert set(times) == {BAD}
    said = f"1 images could not be read and were replaced {times[BAD]} times: {BAD}"
    assert card.lineage[-1] == said
    assert f"{images / BAD}: expected an image, found something PIL cannot identify" in caplog.text
    assert "Replaced by" in caplog.text and "The kNN monitor does without it." in caplog.text
    entries = [json.loads(line) for line in (plan.out / LOG_NAME).read_text().splitlines()]
    named = [text for entry in entries for text in entry.get("replaced", ())]
    assert len(named) == times[BAD] and all(text.startswith(f"{BAD} by train/class") for text in named)


def test_too_many_end_the_run(tiny: Any) -> None:
    train_images = manifest("tiny", "train")
    few = Replacements(train_images, {4: 3})
    few.loaded([Replaced(key=(0, 7), instead=(0, 8), problem="broken.")])
    assert few.used(1, [(0, 6), (0, 7)]) == [(0, 6), (0, 8)] and (few.count(1), few.count(2)) == (1, 0)
    with pytest.raises(DataError, match="2 of 43 images cannot be read; bad_images: replace makes do without 1 .1%."):
        few.gather(1, ALONE)


def test_a_disk_that_has_gone_ends_the_run_at_once(tiny: Any, images: Path) -> None:
    manifest("tiny", "train")
    shutil.rmtree(images / "train")
    with pytest.raises(DataError, match="has vanished .* None of 16 others drawn in its place can be read either"):
        batches(tiny)


def test_without_a_rule_every_bad_image_of_the_batch_is_named(tiny: Any, images: Path) -> None:
    plan = check(tiny.config(), seed=0, overrides=(), out=tiny.folder / "out", workers=0, processes=1)
    shutil.rmtree(images / "train" / "class0")
    with pytest.raises(DataError, match=r"\d images of one batch:") as error:
        next(training_batches(plan, ALONE, num_views=2, start_step=0, replacements=Replacements(plan.train, {})))
    assert str(error.value).count("train/class0/0_") == len(str(error.value).splitlines()) - 1 >= 2


def test_the_monitor_does_without_what_cannot_be_read(tiny: Any, images: Path) -> None:
    bad = manifest("tiny", "train").paths.index(BAD)
    (images / BAD).unlink()
    left = readable(manifest("tiny", "train"), np.array([9, bad, 2]), num_workers=0, me=ALONE)
    assert left.tolist() == [9, 2]


def test_a_monitor_without_images_is_an_error(tiny: Any, images: Path) -> None:
    plan = check(tiny.config(bad_images="replace"), seed=0, overrides=(), out=tiny.folder / "o", workers=0, processes=1)
    shutil.rmtree(images / "val")
    with pytest.raises(DataError, match="24 of 24 images of the monitor's bank and 0 of its 8 queries can be read"):
        train(plan, ALONE)
