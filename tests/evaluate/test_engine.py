"""What is refused before an engine is started."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.launch import Name
from evaluate.engine import mixture, refuse_uneven, sign, tidy
from evaluate.scaling import BATCH, set_value
from zoo.errors import ConfigError


@pytest.mark.parametrize("name", ["detectron2", "mmseg"])
def test_a_global_batch_is_shared_equally(name: Name) -> None:
    config: dict[str, object] = {BATCH[name].split(".")[0]: {}}
    set_value(config, BATCH[name], 12)
    for procs in (1, 2, 3, 4, 6, 12):
        refuse_uneven(name, config, procs)
    with pytest.raises(
        ConfigError, match=rf"--procs 8: expected a divisor of the global batch, 12 images a step \({BATCH[name]}\)"
    ) as caught:
        refuse_uneven(name, config, 8)
    assert str(caught.value).endswith("choose among 1, 2, 3, 4, 6, 12.") and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="--procs 24"):
        refuse_uneven(name, config, 24)
    with pytest.raises(ConfigError, match=rf"engine_config: expected {BATCH[name]}, the global batch, found none"):
        refuse_uneven(name, {}, 1)


def test_who_trained_a_cell_is_kept_and_a_mixture_is_told(tmp_path: Path) -> None:
    def job(procs: int, device: str = "cpu") -> Any:
        return SimpleNamespace(procs=procs, me=SimpleNamespace(device=SimpleNamespace(type=device)))

    sign(tmp_path, "mmseg", job(8))  # killed before its first checkpoint
    sign(tmp_path, "mmseg", job(4))
    assert mixture(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("iter_10.pth")
    sign(tmp_path, "mmseg", job(4))
    assert mixture(tmp_path) is None
    sign(tmp_path, "mmseg", job(2))
    assert "different numbers of processes or on different devices (2 on cpu, 4 on cpu):" in str(mixture(tmp_path))
    (tmp_path / "rate_0.3").mkdir()
    other = tmp_path / "rate_0.3" / "of_one_kind"
    other.mkdir()
    sign(other, "mmseg", job(2))
    assert mixture(other) is None


def test_what_is_kept_of_a_measured_cell(tmp_path: Path) -> None:
    """The logs of a sweep's trainings too."""
    for folder in (tmp_path, tmp_path / "rate_0.3"):
        folder.mkdir(exist_ok=True)
        for name in ("job.json", "log.jsonl", "events.1", "train.json", "model_final.pth", "point.json"):
            (folder / name).write_text("")
    tidy(tmp_path)
    kept = {"job.json", "log.jsonl", "events.1", "point.json"}
    assert {path.name for path in (tmp_path / "rate_0.3").iterdir()} == kept
    assert {path.name for path in tmp_path.iterdir()} == kept | {"rate_0.3"}
