"""Each check, shown a machine that is well and one that is not, says so and what to do."""

import json
import os
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.dataset_files import FOLDERS, Describe
from zoo import doctor
from zoo.__main__ import app
from zoo.datasets import data_file, manifest
from zoo.doctor import GIB, Check, examine
from zoo.errors import ZooError
from zoo.files import ROOT

REQUIREMENTS = """# Direct dependencies
torch==2.14.1
numpy==2.4.6   # a comment
# what detectron2 0.6 imports
yacs==0.1.8
# development
pyright[nodejs]==1.1.414
"""
HERE = {"torch": "2.14.1+cu130", "numpy": "2.4.6", "yacs": "0.1.8", "pyright": "1.1.414", "faiss-cpu": "1.15.1"}
Usage = namedtuple("Usage", "total used free")


def said(checks: Iterator[Check]) -> list[tuple[str, str]]:
    """(state, found) of each."""
    return [(check.state, check.found) for check in checks]


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 11, 7), "ok"), ((3, 12, 0), "warning"), ((3, 13, 1), "warning"), ((3, 10, 9), "problem")],
)
def test_python_is_the_tested_one(version: tuple[int, ...], state: str) -> None:
    assert doctor.python_version(version).state == state


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("ok", "4 pinned packages and faiss-cpu, all in their versions")]),
        ({"torch": None}, [("problem", "missing: torch")]),
        ({"faiss-cpu": None}, [("problem", "missing: faiss-cpu or faiss-gpu")]),
        ({"faiss-gpu": "1.15.1"}, [("problem", "faiss-cpu and faiss-gpu hold the same files")]),
        ({"yacs": None, "pyright": None}, [("warning", "missing, for engines or development only: yacs, pyright")]),
        ({"numpy": "2.5.0"}, [("warning", "other versions than those tested: numpy 2.5.0 (==2.4.6)")]),
        ({"numpy": "1.0rc1", "torch": None}, [("problem", "missing: torch"), ("warning", "numpy 1.0rc1 (==2.4.6)")]),
    ],
)
def test_packages_are_compared_with_what_is_pinned(changes: dict[str, str | None], expected: list[Any]) -> None:
    installed: Callable[[str], str | None] = {**HERE, **changes}.get
    found = said(doctor.packages(REQUIREMENTS, installed))
    assert [state for state, _ in found] == [state for state, _ in expected]
    assert all(text.endswith(words) for (_, text), (_, words) in zip(found, expected, strict=True))


def test_the_committed_requirements_are_read_as_they_are_meant() -> None:
    needed, others = doctor.pinned((ROOT / "requirements.txt").read_text())
    assert {"torch", "numpy", "pydantic", "submitit"} <= {one.name for one in needed}
    assert {"fvcore", "addict", "pytest", "pyright"} <= {one.name for one in others}
    assert all(len(one.specifier) == 1 for one in (*needed, *others))


def test_more_workers_than_cores_are_too_many() -> None:
    assert doctor.processors(8, None, 8).state == doctor.processors(8, 16.0, 8).state == "ok"
    limited = doctor.processors(64, 2.5, 8)
    assert limited.found == "64 cores, limited to 2.5 by a control group, 8 loader workers"
    assert limited.state == "warning" and limited.fix.startswith("--workers 2: ")


@pytest.mark.parametrize(
    ("lines", "files", "cores", "memory"),
    [
        ("0::/slurm/job\n", {"slurm/cpu.max": "150000 100000", "slurm/job/memory.max": "1073741824"}, 1.5, GIB),
        ("0::/a\n", {"a/cpu.max": "max 100000", "a/memory.max": "max"}, None, None),
        (
            "4:cpu,cpuacct:/a\n3:memory:/a\n1:name=systemd:/a\n",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "200000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "memory/a/memory.limit_in_bytes": str(2**63 - 4096),
            },
            2,
            2 * GIB,
        ),
        ("3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None, None),
        ("", {}, None, None),
    ],
)
def test_a_jobs_limits_are_read_from_either_version_of_control_groups(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: str,
    files: dict[str, str],
    cores: float | None,
    memory: int | None,
) -> None:
    for name, text in {"groups": lines, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor, "GROUPS", tmp_path)
    monkeypatch.setattr(doctor, "OWN_GROUP", tmp_path / "groups")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert doctor._quota() == cores and doctor._memory_bytes() == min(memory or machine, machine)
    monkeypatch.setattr(doctor, "OWN_GROUP", tmp_path / "none")
    assert doctor._quota() is None


def test_memory_is_for_the_workers_too() -> None:
    assert doctor.memory_for(6 * GIB, 8).state == "ok"
    small = doctor.memory_for(5 * GIB, 8)
    assert small.state == "warning" and small.found.startswith("5.0 GiB") and "about 6 GiB are wanted" in small.fix


@pytest.mark.parametrize(
    ("free", "workers", "state"),
    [(64 << 20, 8, "problem"), (GIB, 8, "warning"), (8 * GIB, 8, "ok"), (0, 0, "ok")],
)
def test_shared_memory_holds_what_workers_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, workers: int, state: str
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(free, 0, free))
    check = doctor.shared_memory(tmp_path, workers)
    assert check.state == state and (state == "ok") != ("8 workers may hold 1.4 GiB" in check.fix)


def test_a_machine_without_shared_memory_is_a_problem(tmp_path: Path) -> None:
    assert doctor.shared_memory(tmp_path / "none", 1).state == "problem"


@pytest.mark.parametrize(
    ("soft", "hard", "state", "fix"),
    [
        (-1, -1, "ok", ""),
        (1024, 4096, "ok", ""),
        (512, 4096, "warning", "ulimit -n 1024"),
        (64, -1, "problem", "ulimit -n 1024"),
        (64, 64, "problem", "the hard limit is 64: have it raised to 1,024"),
    ],
)
def test_open_files(soft: int, hard: int, state: str, fix: str) -> None:
    check = doctor.open_files(soft, hard)
    assert (check.state, check.fix) == (state, fix)


@pytest.mark.parametrize(("free", "state"), [(12 * GIB, "ok"), (10 * GIB, "warning"), (GIB // 2, "problem")])
def test_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(free, 0, free))
    (check,) = doctor.disk("ZOO_CACHE", tmp_path / "new", needed_gib=11)
    assert check.state == state and check.found.startswith(f"{tmp_path}/new: writable, ")


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (check,) = doctor.disk("ZOO_RUNS", tmp_path / "file" / "runs", needed_gib=1)
    assert check.state == "problem" and check.found.startswith("cannot write to") and "set ZOO_RUNS" in check.fix


def test_a_disk_with_a_clock_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = doctor.time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now + 60)
    state, found = said(doctor.disk("ZOO_RUNS", tmp_path, needed_gib=0))[1]
    assert state == "warning" and found.endswith("its clock is 60 s behind")


def gpu(**changes: Any) -> dict[str, Any]:
    return {"name": "A100", "memory_gib": 39.4, "capability": "8.0", "bf16": True, "failure": None, **changes}


def torch_sees(*found: dict[str, Any], **changes: Any) -> dict[str, Any]:
    facts = {"torch": "2.14.1", "built_for": "13.0", "limited_by": None, "nccl": "2.27.5", "complaints": []}
    return {**facts, "gpus": list(found), **changes}


REFUSAL = "torch 2.14.1 sees no GPU, while the driver lists 2 GPU(s) (GPU 0: A100). Check this; or ZOO_DEVICE=cpu."
LISTED = ["GPU 0: A100", "GPU 1: A100"]


@pytest.mark.parametrize(
    ("facts", "listed", "refusal", "faiss", "expected"),
    [
        (torch_sees(), [], None, None, [("info", "none; torch 2.14.1 runs on the CPU")]),
        (
            torch_sees(complaints=["the driver is too old"]),
            LISTED,
            REFUSAL,
            None,
            [("problem", f"{REFUSAL.partition('. ')[0]}; the driver is too old")],
        ),
        (torch_sees(), LISTED, None, None, [("warning", "the driver lists 2, left alone on purpose (ZOO_DEVICE=cpu)")]),
        (
            torch_sees(gpu(), gpu()),
            LISTED,
            None,
            "1.15.1",
            [("ok", "torch 2.14.1 sees 2 x A100, 39.4 GiB"), ("ok", "all GPUs"), ("ok", "2.27.5")],
        ),
        (
            torch_sees(gpu(), limited_by="VISIBLE=0", nccl=None),
            LISTED,
            None,
            "1.15.1",
            [("ok", "torch 2.14.1 sees 1 x A100, 39.4 GiB (VISIBLE=0)"), ("ok", "all GPUs")],
        ),
        (
            torch_sees(gpu(), gpu(bf16=False, failure="no kernel image"), nccl=None),
            [*LISTED, "GPU 2: A100"],
            None,
            None,
            [
                ("warning", "torch 2.14.1 sees 2 x A100, 39.4 GiB; the driver lists 3"),
                ("problem", "a small product fails: no kernel image"),
                ("warning", "not in GPU 1"),
                ("problem", "not in this torch"),
                ("warning", "no faiss-gpu: back_end: faiss is refused here"),
            ],
        ),
    ],
)
def test_the_drivers_gpus_are_compared_with_torchs(
    facts: dict[str, Any],
    listed: list[str],
    refusal: str | None,
    faiss: str | None,
    expected: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ZOO_DEVICE", raising=False)
    checks = list(doctor.gpus(facts, listed, refusal, faiss=faiss))
    assert said(iter(checks)) == expected
    assert all(check.fix for check in checks if check.state in ("warning", "problem"))


def test_gpus_left_alone_on_purpose_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEVICE", "cpu")
    assert next(doctor.gpus(torch_sees(gpu()), LISTED[:1], None, faiss="1")).state == "warning"


def test_this_machines_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEVICE", "somewhere")
    found = doctor._ask_torch()
    assert not isinstance(found, list)
    facts, refusal = found[0], found[2]
    assert facts["torch"] and json.dumps(facts) and refusal is not None
    check = next(doctor.gpus(facts, [], refusal, faiss=None))
    assert check.state == "problem" and "expected auto, cpu or cuda, found 'somewhere'" in check.found


def test_a_torch_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("zoo.device", raising=False)
    monkeypatch.setitem(doctor.sys.modules, "zoo.device", None)  # what makes an import fail
    found = doctor._ask_torch()
    assert isinstance(found, list)
    (check,) = found
    assert check.state == "problem" and "torch does not import" in check.found


def test_a_driver_that_hangs_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang() -> None:
        raise ZooError("nvidia-smi -L gave no answer in 60 s: the GPU driver hangs. Mend it.")

    monkeypatch.setattr("zoo.device.driver_gpus", hang)
    monkeypatch.setattr("zoo.device.facts", pytest.fail)
    assert doctor._ask_torch() == [
        Check(
            name="GPUs",
            state="problem",
            found="nvidia-smi -L gave no answer in 60 s: the GPU driver hangs",
            fix="Mend it.",
        )
    ]


WORKING = {"engine": "mmseg", "python": "/py", "versions": {"mmseg": "1.4.2"}, "device": torch_sees(gpu())}


@pytest.mark.parametrize(
    ("answer", "num_gpus", "state", "found", "fix"),
    [
        (WORKING, 1, "ok", "mmseg 1.4.2, torch 2.14.1; /py", ""),
        ({**WORKING, "device": torch_sees()}, 0, "ok", "mmseg 1.4.2, torch 2.14.1; /py", ""),
        (
            {**WORKING, "device": torch_sees()},
            1,
            "problem",
            "its torch sees no GPU, ours does: mmseg",
            "install a torch",
        ),
        ({"engine": "mmseg", "error": "gone", "fix": "get it", "broken": False}, 0, "warning", "gone", "get it"),
        ({"engine": "mmseg", "error": "bad", "fix": "mend it", "broken": True}, 0, "problem", "bad", "mend it"),
    ],
)
def test_engines(answer: dict[str, Any], num_gpus: int, state: str, found: str, fix: str) -> None:
    (check,) = doctor.engines([answer], num_gpus=num_gpus)
    assert check.name == "engine mmseg" and check.state == state
    assert check.found.startswith(found) and check.fix.startswith(fix)


def test_what_the_engines_process_says_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], 0, stdout=json.dumps([WORKING]), stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: ended)
    assert doctor._ask_engines() == [WORKING]
    ended.returncode, ended.stderr = 1, "Traceback"
    with pytest.raises(RuntimeError, match="-m engines failed:\nTraceback"):
        doctor._ask_engines()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [("info", "no file {}; python -m zoo datasets find ROOT adds what it finds")]),
        ("pets: /data\n", [("ok", "{}: 1 datasets; python -m zoo datasets find ROOT adds what it finds")]),
        ("a: [\n", [("problem", "{}:2: not valid YAML: expected the node content, but found '<stream end>'")]),
        ("- pets\n", [("problem", "{}: holds no lines 'dataset: /path'")]),
        ("pets: 3\npest: /data\n", [("problem", "{}: not a path: pets"), ("warning", "{}: no such dataset: pest")]),
    ],
)
def test_data_yaml(tmp_path: Path, text: str | None, expected: list[tuple[str, str]]) -> None:
    path = tmp_path / "data.yaml"
    if text is not None:
        path.write_text(text)
    found = said(doctor.places(path, ["pets"]))
    assert found == [(state, words.format(path)) for state, words in expected]


@pytest.fixture
def pets(describe: Describe) -> Path:
    root = describe(FOLDERS)
    for name in "abc":
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / "train" / name / f"{name}.png")
    return root


def looked_at(checksum: bool = False) -> list[Check]:
    manifest.cache_clear()
    return list(doctor.dataset("pets", workers=0, checksum=checksum))


def test_a_dataset_that_is_well(pets: Path) -> None:
    train, recorded, classes, speed = looked_at(checksum=True)
    assert (train.state, train.found) == ("ok", "3 images, 3 of 3 classes; 3 of them decoded")
    assert recorded.state == "ok" and recorded.found.startswith("3 files, recorded, to be compared with later: ")
    assert (classes.state, classes.found) == ("ok", "0 is a, …, 2 is c")
    assert speed.state == "info" and speed.found.endswith(" images/s by 0 workers, over 200 images")
    path = pets / "train" / "a" / "a.png"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    changed = looked_at(checksum=True)[1]
    assert changed.state == "problem" and changed.fix.startswith("restore these files; if the change is meant, remove ")
    assert changed.found == "1 of 3 files are wrong\ntrain/a/a.png: its bytes have changed since they were recorded"


def test_a_broken_image_is_named_and_nothing_is_timed(pets: Path) -> None:
    (pets / "train" / "a" / "a.png").write_bytes(b"no image")
    train, classes = looked_at()
    assert train.state == "problem" and classes.state == "ok"
    assert train.found.splitlines()[0] == "1 of 3 images decoded are broken" and f"{pets}/train/a/a.png" in train.found


def test_an_incomplete_dataset_says_how_to_see_all(pets: Path) -> None:
    (pets / "train" / "a" / "a.png").unlink()
    train = looked_at()[0]
    assert train.state == "problem" and "train/a: expected images, found none" in train.found.replace("\n", " ")
    assert train.fix == "python -m zoo datasets verify pets names every problem; restore the files"


def test_lists_that_can_be_made_are_pointed_out(describe: Describe) -> None:
    made = {"class_lists": "{}.txt", "images": "{}.jpg", "names": "names.txt", "annotations": "{}.xml"}
    describe(made, classes=["a", "b", "c"])
    assert looked_at()[0].fix.startswith("python -m zoo datasets prepare pets where only lists are missing; ")


def test_class_names_that_are_missing_are_a_warning(describe: Describe, pets: Path) -> None:
    describe(FOLDERS, class_names_from={"id_name_list": "names.txt"})
    check = looked_at()[1]
    assert check.state == "warning" and "expected the class names in names.txt, found no such file" in check.found


def test_a_dataset_without_a_place_is_no_fault_and_a_wrong_place_is(describe: Describe, tmp_path: Path) -> None:
    root = describe(FOLDERS)
    root.rmdir()
    (wrong,) = looked_at()
    assert (wrong.state, wrong.found) == ("problem", f"no folder {root}") and "correct its line in" in wrong.fix
    data_file().unlink()
    (none,) = looked_at()
    assert none.state == "info" and none.found.startswith("no place (a line 'pets: /path' in data.yaml): ")
    describe(FOLDERS, root=str(tmp_path / "made")).rmdir()
    data_file().unlink()
    (own,) = looked_at()
    assert (own.state, own.fix) == ("info", "python -m mini makes it")
    data_file().write_text("- pets\n")
    assert looked_at()[0].state == "problem"


@pytest.fixture
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nothing but the datasets is to be complained about."""
    monkeypatch.setattr(doctor, "_ask_torch", lambda: (torch_sees(), [], None))
    monkeypatch.setattr(doctor, "_ask_engines", lambda: [WORKING])
    for name in ("processors", "memory_for", "shared_memory", "open_files"):
        monkeypatch.setattr(doctor, name, lambda *_, name=name: Check(name=name, state="ok", found="enough"))
    monkeypatch.setattr(doctor, "disk", lambda *_, **__: iter(()))
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))


def test_the_command_ends_with_2_when_there_is_a_problem(pets: Path, quiet_machine: None) -> None:
    well = CliRunner().invoke(app, ["doctor", "--workers", "0"])
    assert well.exit_code == 0 and well.stdout.endswith("checks: nothing to do\n")
    assert "ok       pets train                      3 images" in well.stdout
    (pets / "train" / "a" / "a.png").write_bytes(b"no image")
    manifest.cache_clear()
    ill = CliRunner().invoke(app, ["doctor", "--workers", "0", "--dataset", "pets"])
    assert ill.exit_code == 2 and ill.stdout.endswith("checks: 1 problem\n")
    assert "fix: restore these files" in ill.stdout
    printed = CliRunner().invoke(app, ["doctor", "--workers", "0", "--json"])
    checks = json.loads(printed.stdout)
    assert printed.exit_code == 2 and [one["name"] for one in checks if one["state"] == "problem"] == ["pets train"]
    assert all(set(one) == {"name", "state", "found", "fix"} for one in checks)


def test_an_unknown_dataset_is_refused(pets: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--dataset", "cats"])
    assert "no dataset 'cats': expected one of pets" in str(result.exception)


def test_this_machine_is_examined_whole(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_ask_engines", list)
    monkeypatch.setenv("ZOO_RUNS", str(tmp_path / "runs"))
    checks = list(examine(workers=0))
    names = {
        "Python",
        "packages",
        "processors",
        "memory",
        "shared memory",
        "open files",
        "ZOO_RUNS",
        "ZOO_CACHE",
        "GPUs",
    }
    assert names <= {check.name for check in checks}
    assert all(check.fix for check in checks if check.state in ("warning", "problem"))
    assert doctor.summary([Check(name="a", state="warning", found="b")] * 2) == "2 checks: 2 warnings"
