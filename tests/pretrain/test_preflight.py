"""What is found out before the first step, and how it is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.preflight import COLLAPSED_NAME, Plan, check, finished, write_run
from zoo.errors import CollapseError, ConfigError, DataError, ZooError
from zoo.recipe import PretrainConfig, run_key


def plan(config: PretrainConfig, out: Path, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {"seed": 0, "overrides": (), "out": out, "workers": 0, "processes": 1}
    return check(config, **{**arguments, **changes})


def test_a_sound_run_is_planned(tiny: Any, tmp_path: Path) -> None:
    found = plan(tiny.config(), tmp_path / "out")
    assert (found.steps_per_epoch, found.total_steps, found.num_classes) == (5, 10, 2)
    assert found.lineage[0] == "tiny seed 0 on tiny train 43 images"
    assert found.key == run_key(tiny.config(), found.train.sha256, 0)
    assert finished(found) is None


def test_the_default_place_is_named_after_config_seed_and_key(tiny: Any, tmp_path: Path) -> None:
    found = check(tiny.config(), seed=3, overrides=(), out=None, workers=0, processes=1)
    assert found.out == tmp_path / "runs" / "pretrain" / f"tiny-seed3-{found.key[:8]}"


def test_the_key_follows_what_can_change_the_weights_and_nothing_else(tiny: Any) -> None:
    key = run_key(tiny.config(), "0" * 64, 0)
    same = [tiny.config(name="other"), tiny.config(monitor={"k": 2}), tiny.config(save={"every_steps": 9})]
    assert {run_key(config, "0" * 64, 0) for config in same} == {key}
    other = [tiny.config(epochs=3), tiny.config(views={"crop": 25}), tiny.config(base_lr=0.1)]
    assert key not in {run_key(config, "0" * 64, 0) for config in other}
    assert key != run_key(tiny.config(), "1" * 64, 0) and key != run_key(tiny.config(), "0" * 64, 1)


def test_all_problems_come_at_once(tiny: Any, tmp_path: Path) -> None:
    config = tiny.config(batch_size=9, monitor={"k": 25, "query_images": 9, "bank_images": 24})
    with pytest.raises(ConfigError) as error:
        plan(config, tmp_path / "out", processes=2, workers=-1, seed=-1)
    text = str(error.value)
    assert "batch_size: expected a multiple of the number of processes, found 9 for 2" in text
    assert "monitor.k: expected at most bank_images (24), found 25" in text
    assert "monitor.query_images: expected at most the 8 images of tiny val, found 9" in text
    assert "--workers: expected 0 or more, found -1" in text and "--seed: expected 0 or more, found -1" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 44}, "batch_size: expected at most the 43 images of tiny train, found 44"),
        ({"monitor": {"bank_images": 44}}, "monitor.bank_images: expected at most 43 .images of tiny train., found 44"),
        (
            {"monitor": {"query_split": "train", "bank_images": 40}},
            "monitor.bank_images: expected at most 35 .images of tiny train, less the queries., found 40",
        ),
        ({"batch_size": 1}, "batch_size: expected 2 images a process at least, found 1 for 1"),
        ({"collapse": {"below": 0.6}}, "collapse.below: expected more than 0.661.*batch of 8 gets, found 0.6"),
        ({"split": "test"}, r"dataset 'tiny' has no split 'test': expected one of \['train', 'val'\]"),
        ({"dataset": "nowhere"}, "nowhere.yaml: no such file; files there: tiny.yaml"),
    ],
)
def test_each_problem_has_its_message(tiny: Any, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        plan(tiny.config(**changes), tmp_path / "out")


def test_a_missing_dataset_is_a_data_error(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DATA", str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match="dataset 'tiny' has no place: expected a line 'tiny: /path/to/it'"):
        plan(tiny.config(), tmp_path / "out")


def test_a_place_that_cannot_be_written_is_found_out(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="cannot write to .*file/out"):
        plan(tiny.config(), tmp_path / "file" / "out")


def test_another_runs_folder_is_refused_and_told_what_changed(tiny: Any, tmp_path: Path) -> None:
    before = plan(tiny.config(), tmp_path)
    write_run(before, {})
    now = plan(tiny.config(base_lr=0.4, views={"area": [0.5, 1.0]}, name="other"), tmp_path, seed=1)
    with pytest.raises(ConfigError) as error:
        finished(now)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'run.json'}: belongs to run {before.key[:12]}…, expected {now.key[:12]}…. Changed:"
    assert lines[1:] == [
        "  - views.area: was [0.2,1.0], is [0.5,1.0]",
        "  - base_lr: was 1.6, is 0.4",
        "  - seed: was 0, is 1",
        "Put the old values back, choose another --out, or remove the folder to start anew.",
    ]


def test_a_run_goes_on_whatever_only_looks_or_keeps(tiny: Any, tmp_path: Path) -> None:
    write_run(plan(tiny.config(), tmp_path), {})
    changed = tiny.config(save={"keep_last": 5}, bad_images="replace", monitor={"k": 2})
    assert finished(plan(changed, tmp_path, workers=3, processes=2)) is None


def test_a_run_file_of_another_version_is_refused(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"key": "0"}')
    with pytest.raises(ConfigError, match="run.json: expected what this version writes there, found something else"):
        finished(plan(tiny.config(), tmp_path))


def test_a_known_collapse_is_repeated_only_under_another_rule(tiny: Any, tmp_path: Path) -> None:
    config = tiny.config()
    write_run(plan(config, tmp_path), {})
    assert config.collapse is not None
    found = {"step": 7, "rule": config.collapse.model_dump(mode="json")}
    (tmp_path / COLLAPSED_NAME).write_text(json.dumps(found))
    with pytest.raises(CollapseError, match="tiny seed 0 has collapsed before, at step 7"):
        finished(plan(config, tmp_path))
    other = plan(tiny.config(collapse={"below": 0.8}), tmp_path)
    assert finished(other) is None
    write_run(other, {})
    assert not (tmp_path / COLLAPSED_NAME).exists()
