"""What is handed over comes back, and what did not arrive whole is refused by name."""

import errno
import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from converters.probe import write_probe
from engines.contract import (
    Job,
    Refused,
    alone,
    check_stages,
    check_tensors,
    check_weights_file,
    cut_back,
    log_period,
    read_job,
    tell,
    tensor_sha256,
    write_answer,
    write_job,
)
from zoo.backbone import Backbone
from zoo.files import ROOT
from zoo.transforms import IMAGENET_PIXELS


def a_job(tmp_path: Path, **changes: Any) -> Job:
    (tmp_path / "weights").write_bytes(b"weights")
    job = Job(
        weights=str(tmp_path / "weights"),
        weights_sha256=hashlib.sha256(b"weights").hexdigest(),
        overlay={},
        tensors={},
        fresh=["backbone.new."],
        probe="",
        task="check",
        config={},
        device="cpu",
        seed=0,
        workers=0,
    )
    return replace(job, **changes)


def test_a_job_is_read_as_it_was_written_and_forgets_the_last_answer(tmp_path: Path) -> None:
    write_answer(tmp_path, {"old": 1}, {"x": np.zeros(2)})
    job = a_job(tmp_path, config={"a": [1, 2.5, None]}, classes=["cat"])
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    assert not (tmp_path / "measurement.json").exists() and not (tmp_path / "arrays.npz").exists()


ENDS = {
    "disk": ("OSError(28, 'No space left on device')", 2, "is full: free space, or set ZOO_RUNS"),
    "torch's disk": (
        "RuntimeError('[enforce fail] PytorchStreamWriter failed writing file')",
        2,
        "is full: free space",
    ),
    "refused": ("Refused('expected this, found that')", 2, "expected this, found that"),
    "diverged": ("NonFinite('loss is NaN')", 4, "loss is NaN"),
    "ours": ("ZooError('start at most one process a GPU')", 2, "start at most one process a GPU"),
    "not installed": ("ImportError('no module named x')", 2, "no module named x. Is the engine installed in "),
    "bug": ("KeyError('x')", 1, "Traceback"),
}
STOPS = {"SIGTERM": 130, "SIGUSR1": 75}  # as zoo.interrupt has it


def test_a_childs_end_is_told_by_code_and_note(tmp_path: Path) -> None:
    """One process that forks a child a case: each of its own would import torch again."""
    program = "import json, os, signal, sys\nfrom engines.contract import *\nfrom zoo.interrupt import deferred\n"
    program += "from zoo.errors import ZooError\n"
    program += "os.environ.pop('SLURM_JOB_ID', None)\ncodes = {}\n"
    for name, (failure, _, _) in ENDS.items():
        write_job(tmp_path / name, a_job(tmp_path))
        program += f"def run(folder, job): raise {failure}\nsys.argv[1] = {str(tmp_path / name)!r}\n"
        program += "pid = os.fork()\nif pid == 0: child(run)\n"
        program += f"codes[{name!r}] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
    for name in STOPS:
        write_job(tmp_path / name, a_job(tmp_path))
        program += f"def run(folder, job):\n with deferred() as asked:\n  os.kill(os.getpid(), signal.{name})\n"
        program += f"  assert asked()\n raise KeyboardInterrupt\nsys.argv[1] = {str(tmp_path / name)!r}\n"
        program += "pid = os.fork()\nif pid == 0: child(run)\n"
        program += f"codes[{name!r}] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
    ended = subprocess.run(
        [sys.executable, "-c", program + "print(json.dumps(codes))", "folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert json.loads(ended.stdout) == {name: code for name, (_, code, _) in ENDS.items()} | STOPS, ended.stderr
    for name, (_, code, message) in ENDS.items():
        note = json.loads((tmp_path / name / "failure.json").read_text())
        assert note["exit_code"] == code and message in note["message"] and message in ended.stderr


def test_a_child_waits_for_one_that_is_still_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only the first process of a child does: the others wait for that one."""
    entered = threading.Event()

    def second() -> None:
        with alone(tmp_path):
            entered.set()

    with alone(tmp_path):
        waiting = threading.Thread(target=second)
        waiting.start()
        assert not entered.wait(0.1)
        monkeypatch.setenv("RANK", "1")
        with alone(tmp_path):
            pass
    assert entered.wait(10)
    waiting.join()


def test_an_edited_weights_file_is_refused(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    check_weights_file(job)
    (tmp_path / "weights").write_bytes(b"weightz")
    with pytest.raises(Refused, match="expected sha256 .*, found .*convert again"):
        check_weights_file(job)


def test_tensors_must_be_there_equal_and_all_of_them(tmp_path: Path) -> None:
    state = {f"backbone.{name}": torch.randn(2, 3) for name in ("a", "b", "new.c")} | {"head.x": torch.zeros(1)}
    state["backbone.n.num_batches_tracked"] = torch.tensor(3)
    job = a_job(tmp_path, tensors={name: tensor_sha256(state[name]) for name in ("backbone.a", "backbone.b")})
    assert check_tensors(state, job, ("backbone.",)) == 2
    flipped = state | {"backbone.a": state["backbone.a"].nextafter(torch.tensor(9.0))}
    with pytest.raises(Refused, match=r"1 problems, 2 tensors expected.\n  backbone.a: not the checkpoint's values"):
        check_tensors(flipped, job, ("backbone.",))
    with pytest.raises(Refused, match="backbone.b: not in the built model"):
        check_tensors({"backbone.a": state["backbone.a"]}, job, ("backbone.",))
    with pytest.raises(Refused, match="backbone.extra: part of the backbone, but not from the checkpoint"):
        check_tensors(state | {"backbone.extra": torch.zeros(1)}, job, ("backbone.",))


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Backbone]:
    torch.manual_seed(0)
    model = Backbone("resnet18").eval()
    return write_probe(
        tmp_path_factory.mktemp("probe"), model.state_dict(), "resnet18", IMAGENET_PIXELS, dilated=False
    ), model


def read(path: str, *, bgr: bool = False, scale: float = 1.0) -> torch.Tensor:
    image = np.asarray(Image.open(path).convert("RGB"), np.float32)[:, :, :: -1 if bgr else 1]
    mean, std = (255 * np.array(values, np.float32) for values in (IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std))
    return torch.from_numpy(np.ascontiguousarray(((image - mean) / (scale * std)).transpose(2, 0, 1))[None])


def stages(model: Backbone, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    found = model.to(pixels.dtype).stages(pixels)
    return {name: found[name] for name in ("feature2", "feature3", "feature4", "feature5")}


def test_the_same_network_is_the_same(tmp_path: Path, probe: tuple[Path, Backbone]) -> None:
    path, model = probe
    found = check_stages(a_job(tmp_path, probe=str(path)), read, lambda pixels: stages(model, pixels))
    assert found["pixels"] < 1e-6
    assert max(found["fp32"].values()) == max(found["fp64"].values()) == 0


def test_other_pixels_and_other_stages_are_told_apart(tmp_path: Path, probe: tuple[Path, Backbone]) -> None:
    path, model = probe
    job = a_job(tmp_path, probe=str(path))
    with pytest.raises(Refused, match="normalised pixels differ by .*channel order, mean or std"):
        check_stages(job, lambda p: read(p, bgr=True), lambda pixels: stages(model, pixels))
    with pytest.raises(Refused, match="normalised pixels differ"):
        check_stages(job, lambda p: read(p, scale=1.001), lambda pixels: stages(model, pixels))
    with pytest.raises(Refused, match=r"feature2 differs by .* in fp32 .*feature5 differs by .* in fp64"):
        check_stages(job, read, lambda pixels: stages(model, pixels + 0.01))
    with pytest.raises(Refused, match="feature5: expected shape .*, found"):
        check_stages(job, read, lambda pixels: stages(model, pixels) | {"feature5": torch.zeros(1, 512, 4, 4)})
    with pytest.raises(Refused, match="the engine reads .* as"):
        check_stages(job, lambda p: read(p)[:, :, :32], lambda pixels: stages(model, pixels))


def test_a_missing_stage_is_refused(tmp_path: Path, probe: tuple[Path, Backbone]) -> None:
    path, model = probe
    with pytest.raises(Refused, match="feature5: the engine has no such stage"):
        check_stages(
            a_job(tmp_path, probe=str(path)),
            read,
            lambda p: {k: v for k, v in stages(model, p).items() if k[-1] != "5"},
        )


def test_a_log_is_cut_back_to_where_training_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [json.dumps({"iteration": step, "loss": 1.0}) + "\n" for step in (4, 9, 14)]
    path.write_text("".join(rows) + '{"iteration": 19, "lo')
    cut_back(path, 10)
    assert path.read_text() == "".join(rows[:2])
    cut_back(path, 0)
    assert path.read_text() == ""
    cut_back(tmp_path / "absent", 0)


def test_short_runs_are_logged_more_often() -> None:
    assert [log_period(steps) for steps in (5, 80, 400, 24_000)] == [1, 4, 20, 20]


def test_the_reason_is_told_and_not_what_it_did_to_the_peers(tmp_path: Path) -> None:
    """The first one's reason, and one with a code of its own before any traceback."""
    for name, failures, told in (
        ("refused first", [("bad mask", 2), ("Connection reset by peer", 1)], ("bad mask", 2)),
        ("refused last", [("Connection reset by peer", 1), ("loss is NaN", 4)], ("loss is NaN", 4)),
        ("two reasons", [("bad mask", 2), ("loss is NaN", 4)], ("bad mask", 2)),
        ("two bugs", [("KeyError", 1), ("Connection reset by peer", 1)], ("KeyError", 1)),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for message, code in failures:
            tell(folder, message, code)
        failure = json.loads((folder / "failure.json").read_text())
        assert (failure["message"], failure["exit_code"]) == told, name
        assert [path.name for path in folder.iterdir()] == ["failure.json"]


def test_a_reason_is_told_on_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    tell(tmp_path, "bad mask", 2)
    assert json.loads((tmp_path / "failure.json").read_text())["message"] == "bad mask"


def test_what_is_still_at_work_is_waited_for_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = "import sys, time\nfrom pathlib import Path\nfrom engines.contract import alone\n"
    program += "with alone(Path(sys.argv[1])):\n print('in', flush=True)\n time.sleep(1)\n"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout is not None and left.stdout.readline() == "in\n"
        with caplog.at_level("INFO", "engines.contract"), alone(tmp_path):
            assert left.wait(10) == 0
    assert caplog.messages == [f"waiting for process {left.pid}, which an earlier command left at work in {tmp_path}"]


def test_arrays_are_all_that_is_written(tmp_path: Path) -> None:
    write_answer(tmp_path, {}, {"x": np.arange(3)})
    with np.load(tmp_path / "arrays.npz") as found:
        assert found.files == ["x"]
