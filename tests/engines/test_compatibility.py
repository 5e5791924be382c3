"""The engines import with what another interpreter would have, and unpickle nothing but arrays and tensors."""

import pickle
from pathlib import Path

import pytest
import torch

from engines.compatibility import load_arrays_only
from tests.engines.children import program

FOREIGN = """
import sys
for name in ("pydantic", "typer", "safetensors", "faiss", "jinja2", "submitit"):
    sys.modules[name] = None  # not installed there
import engines.{name}
import json
print(json.dumps(sorted(m for m in sys.modules if m.split(".")[0] in ("zoo", "converters", "evaluate"))))
"""

# whatever the file would run on being unpickled leaves a mark
LOADS = """
import json, sys
from pathlib import Path
from engines import compatibility
compatibility.prepare_mmseg()
compatibility.prepare_detectron2()
import torch
from detectron2.checkpoint import DetectionCheckpointer
from mmengine.runner.checkpoint import CheckpointLoader
folder = Path(sys.argv[1])
said = []
for load in (
    lambda: CheckpointLoader.load_checkpoint(str(folder / "evil.pth")),
    lambda: DetectionCheckpointer(torch.nn.Linear(1, 1)).load(str(folder / "evil.pth")),
    lambda: DetectionCheckpointer(torch.nn.Linear(1, 1)).load(str(folder / "evil.pkl")),
):
    try:
        load()
        said.append("loaded")
    except Exception as error:
        said.append(type(error).__name__)
print(json.dumps([said, (folder / "mark").exists()]))
"""


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.slow  # two imports
@pytest.mark.parametrize("name", ["detectron2", "mmseg"])
def test_an_engine_needs_its_own_packages_only(name: str) -> None:
    parts = "device distributed errors interrupt loading precision process".split()
    parts += ["masks", "cityscapes", "images"] if name == "mmseg" else []  # reading labels and pictures
    assert set(program(FOREIGN.format(name=name))) == {"zoo", *(f"zoo.{part}" for part in parts)}


@pytest.mark.slow
def test_no_engine_executes_what_a_file_holds(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(tmp_path / "mark")}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil(tmp_path / "mark"), "__author__": "x"}))
    said, executed = program(LOADS, str(tmp_path))
    assert said == ["UnpicklingError"] * 3 and not executed


def test_only_arrays_come_out_of_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": Evil(tmp_path / "mark")}))
    with path.open("rb") as stream, pytest.raises(pickle.UnpicklingError, match="is not allowed: expected numpy"):
        load_arrays_only(stream)
    assert not (tmp_path / "mark").exists()
