"""An engine's file and its bases become one mapping, and a benchmark's settings hold that mapping."""

from pathlib import Path

import pytest
import yaml

from zoo import benchmark
from zoo.benchmark import benchmark_layout
from zoo.errors import ConfigError
from zoo.files import CONFIGS
from zoo.native import laid_over, resolved


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


@pytest.mark.parametrize("key", ["_BASE_", "_base_"])
def test_a_file_is_laid_over_its_bases(tmp_path: Path, key: str) -> None:
    path = write(
        tmp_path,
        top=f"{key}: [left.yaml, right.yaml]\na: {{x: 3}}\n",
        left=f"{key}: root.yaml\na: {{y: 2}}\nsteps: [1, 2]\n",
        right="steps: [7]\n",
        root="a: {x: 1, z: 0}\nb: true\n",
    )
    assert resolved(path) == {"a": {"x": 3, "z": 0, "y": 2}, "b": True, "steps": [7]}


def test_what_cannot_be_resolved_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        resolved(write(tmp_path, top="_BASE_: absent.yaml\n"))
    with pytest.raises(ConfigError, match="expected a mapping"):
        resolved(write(tmp_path, top="- 1\n"))
    with pytest.raises(ConfigError, match="is based on itself, by way of b.yaml"):
        resolved(write(tmp_path, a="_BASE_: b.yaml\n", b="_BASE_: a.yaml\n"))


def test_lists_and_scalars_are_replaced_whole() -> None:
    assert laid_over({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": 4}) == {"a": [3], "b": 4}


def test_a_benchmark_holds_every_value_of_its_engines_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = benchmark_layout("mini_voc0712_detection")
    assert layout.settings["engine_config"]["SOLVER"]["MOMENTUM"] == 0.9  # from the file's base
    assert layout.settings["engine_config"]["SOLVER"]["IMS_PER_BATCH"] == 4  # from the file
    text = yaml.safe_load((CONFIGS / "benchmarks" / "mini_voc0712_detection.yaml").read_text())
    text["settings"]["engine_config"] = "configs/engines/absent.yaml"
    (tmp_path / "configs" / "benchmarks").mkdir(parents=True)
    (tmp_path / "configs" / "benchmarks" / "wrong.yaml").write_text(yaml.safe_dump(text))
    monkeypatch.setattr(benchmark, "CONFIGS", tmp_path / "configs")
    with pytest.raises(ConfigError, match=r"wrong\.yaml:\d+: settings: engine_config: .*absent\.yaml: no such file"):
        benchmark_layout("wrong")
