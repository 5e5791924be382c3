"""Pickles that attack: none of them runs, allocates, or leaves anything but a message, in whatever file it stands."""

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.opening import Reduced, open_checkpoint
from converters.unpickle import Refused, Stream, unpickle
from zoo.errors import CheckpointError

FLAG = "FLAG"  # stands for the path of the file that an attack would make


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.given = function, arguments

    def __reduce__(self) -> Any:
        return self.given


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: str | bytes) -> bytes:
    """A call, put together by hand: nothing of it needs to be importable here. bytes: operations."""
    return named(module, name) + b"(" + b"".join(text(a) if isinstance(a, str) else a for a in arguments) + b"tR"


def program(operations: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + operations + b"."


TOUCH = f"touch {FLAG}"
WRITE = f"open('{FLAG}', 'w').close()"
OS = called("builtins", "__import__", "os")

# kind → (the pickle, what the message must name)
ATTACKS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "os.system": (program(called("os", "system", TOUCH)), ("os.system",)),
    "posix.system": (program(called("posix", "system", TOUCH)), ("posix.system",)),
    "nt.system": (program(called("nt", "system", TOUCH)), ("nt.system",)),
    "eval": (program(called("__builtin__", "eval", WRITE)), ("builtins.eval",)),
    "exec": (program(called("builtins", "exec", WRITE)), ("builtins.exec",)),
    "import": (program(OS), ("builtins.__import__",)),
    "open": (program(called("builtins", "open", FLAG, "w")), ("builtins.open",)),
    "compile": (program(called("builtins", "compile", WRITE, "a", "exec")), ("builtins.compile",)),
    "getattr of a module": (
        program(called("builtins", "getattr", OS, "system") + b"(" + text(TOUCH) + b"tR"),
        ("builtins.__import__",),
    ),
    "getattr of an allowed class": (
        program(called("builtins", "getattr", named("argparse", "Namespace"), "__init__")),
        ("builtins.getattr",),
    ),
    "getattr beyond the four methods": (
        program(
            called("builtins", "getattr", named("mmengine.logging.history_buffer", "HistoryBuffer"), "__globals__")
        ),
        ("builtins.getattr",),
    ),
    "subprocess": (
        program(called("subprocess", "Popen", b"]" + text("touch") + b"a" + text(FLAG) + b"a")),
        ("subprocess.Popen",),
    ),
    "what a call gave is called": (
        program(called("operator", "attrgetter", "system") + b"(" + OS + b"tR(" + text(TOUCH) + b"tR"),
        ("operator.attrgetter", "builtins.__import__"),
    ),
    "an allowed call's result is called": (
        program(called("_codecs", "encode", "os", "latin1") + b"(" + text(TOUCH) + b"tR"),
        ("calls something that it did not name",),
    ),
    "a class that is only named is called": (
        program(called("numpy", "ndarray", b"K\x05\x85")),
        ("numpy.ndarray, which is only ever named",),
    ),
    "runpy": (program(called("runpy", "run_path", FLAG)), ("runpy.run_path",)),
    "timeit": (program(called("timeit", "timeit", WRITE)), ("timeit.timeit",)),
    "cProfile": (program(called("cProfile", "run", WRITE)), ("cProfile.run",)),
    "importlib": (program(called("importlib", "import_module", "os")), ("importlib.import_module",)),
    "torch.load": (program(called("torch", "load", FLAG)), ("torch.load",)),
    "torch.hub": (program(called("torch.hub", "load", FLAG)), ("torch.hub.load",)),
    "torch.jit": (program(called("torch.jit", "load", FLAG)), ("torch.jit.load",)),
    "a pickle inside bytes": (
        program(called("torch.storage", "_load_from_bytes", called("_codecs", "encode", "\x80\x02.", "latin1"))),
        ("torch.storage._load_from_bytes",),
    ),
    "a tensor of its own class": (
        program(called("torch._tensor", "_rebuild_from_type_v2", named("os", "system"), TOUCH)),
        ("torch._tensor._rebuild_from_type_v2", "os.system"),
    ),
    "numpy.load": (program(called("numpy", "load", FLAG, b"N\x88")), ("numpy.load",)),
    "numpy runstring": (
        program(called("numpy.testing._private.utils", "runstring", WRITE, b"}")),
        ("numpy.testing._private.utils.runstring",),
    ),
    "numpy f2py": (
        program(called("numpy.f2py.crackfortran", "myeval", WRITE, b"}}")),
        ("numpy.f2py.crackfortran.myeval",),
    ),
    "an array of objects": (
        program(
            called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray") + b"K\x00\x85" + text("b"))
            + b"(K\x01K\x01\x85"
            + called("numpy", "dtype", "O8")
            + b"\x89]"
            + OS
            + b"atb"
        ),
        ("builtins.__import__",),
    ),
    "an array of a subclass": (
        program(
            called("numpy.core.multiarray", "_reconstruct", named("argparse", "Namespace") + b"K\x00\x85" + text("b"))
        ),
        ("a class other than numpy.ndarray",),
    ),
    "functools.partial": (
        program(called("functools", "partial", named("os", "system"), TOUCH)),
        ("functools.partial", "os.system"),
    ),
    "a default that is called": (
        program(called("collections", "defaultdict", named("os", "system"))),
        ("os.system",),
    ),
    "attributes set on a class": (
        program(named("argparse", "Namespace") + b"}" + text("__init__") + called("builtins", "list") + b"sb"),
        ("sets attributes on argparse.Namespace",),
    ),
    "attributes and slots set on a class": (
        program(named("argparse", "Namespace") + b"N}" + text("__setstate__") + text("x") + b"s\x86b"),
        ("sets attributes on argparse.Namespace",),
    ),
    "attributes set on a function": (
        program(named("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__code__") + text("x") + b"sb"),
        ("sets attributes on torch._utils._rebuild_tensor_v2",),
    ),
    "attributes set on a list": (program(b"]}" + text("append") + text("x") + b"sb"), ("sets attributes on list",)),
    "INST": (b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.", ("os.system",)),
    "OBJ": (program(b"(" + named("os", "system") + text(TOUCH) + b"o"), ("os.system",)),
    "NEWOBJ": (program(named("subprocess", "Popen") + text(TOUCH) + b"\x85\x81"), ("subprocess.Popen",)),
    "NEWOBJ_EX": (
        program(named("subprocess", "Popen") + text(TOUCH) + b"\x85}" + text("shell") + b"\x88s\x92", 4),
        ("subprocess.Popen",),
    ),
    "EXT1": (program(b"\x82\x01"), ("copyreg extension 1",)),
    "EXT4": (program(b"\x84\x01\x02\x03\x04"), ("copyreg extension 67305985",)),
    "a name put together": (
        program(
            text("po") + b"q\x000" + text("posix") + b"q\x010h\x01" + text("system") + b"\x93(" + text(TOUCH) + b"tR", 4
        ),
        ("posix.system",),
    ),
    "a name that is computed": (
        program(called("_codecs", "encode", "os", "latin1") + text("system") + b"\x93", 4),
        ("names something by what is not text",),
    ),
    "a dotted name": (
        program(text("argparse") + text("Namespace.__init__.__globals__") + b"\x93", 4),
        ("argparse.Namespace.__init__.__globals__",),
    ),
    "pathlib": (
        program(text("pathlib") + text("Path.touch") + b"\x93(" + called("pathlib", "PosixPath", FLAG) + b"tR", 4),
        ("pathlib.Path.touch",),
    ),
    "copyreg": (
        program(called("copyreg", "_reconstructor", named("subprocess", "Popen") + named("builtins", "object") + b"N")),
        ("copyreg._reconstructor", "subprocess.Popen"),
    ),
    "copyreg's register": (
        program(called("copy_reg", "add_extension", "os", "system", b"K\x01") + b"0\x82\x01"),
        ("copy_reg.add_extension", "copyreg extension 1"),
    ),
    "a persistent name": (b"Pos.system\n.", ("refers to something outside it",)),
    "a persistent module": (
        program(b"(" + text("module") + named("argparse", "Namespace") + text(FLAG) + text(WRITE) + b"K\x01tQ"),
        ("refers to something outside it",),
    ),
    "beside tensors, in the optimiser": (
        pickle.dumps({"state_dict": {"conv1.weight": 1.0}, "optimizer": {"state": [Call(eval, WRITE)]}}, protocol=2),
        ("builtins.eval",),
    ),
    "several at once": (
        program(b"(" + OS + called("nt", "system", TOUCH) + called("builtins", "eval", WRITE) + b"l"),
        ("builtins.__import__, nt.system, builtins.eval",),
    ),
    "out-of-band buffers": (program(b"\x97", 5), ("a buffer outside the file",)),
}


def as_pickle(attack: bytes) -> bytes:
    return attack


def as_zip(attack: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", attack)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(4))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def as_legacy(attack: bytes) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, machine)]
    return b"".join([*head, attack, pickle.dumps([], protocol=2)])


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "weights_only=False" not in message
    return message


def test_there_are_enough_kinds_of_attack() -> None:
    assert len(ATTACKS) >= 15


@pytest.mark.parametrize("container", [as_pickle, as_zip, as_legacy])
@pytest.mark.parametrize("kind", ATTACKS)
def test_no_attack_runs(tmp_path: Path, kind: str, container: Callable[[bytes], bytes]) -> None:
    flag = tmp_path / FLAG  # lengths are written into the pickles, so that the name may not change
    attack, names = ATTACKS[kind]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        message = refused(tmp_path / "file.pth", container(attack))
        assert not flag.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["file.pth"]
    for name in names:
        assert name in message


def test_the_attacks_are_no_dummies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own reader runs them."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(ATTACKS["exec"][0])
    assert (tmp_path / FLAG).exists()


def test_the_message_says_what_was_asked_for_and_the_safe_way_on(tmp_path: Path) -> None:
    message = refused(tmp_path / "file.pth", as_zip(ATTACKS["several at once"][0]))
    assert "not opened: to read it, builtins.__import__, nt.system, builtins.eval would have to be called" in message
    assert "nothing was." in message and "ask for a plain state dict or safetensors" in message
    assert "torch.save(model.state_dict(), 'weights.pth')" in message


def test_what_stands_for_an_object_is_not_one(tmp_path: Path) -> None:
    """State given to a record stays data: it has no attributes that a file could set."""
    state = called("builtins", "dict") + text("name") + text("posix.system") + b"s"
    path = tmp_path / "file.pkl"
    path.write_bytes(program(named("argparse", "Namespace") + b")\x81" + state + b"b"))
    record = open_checkpoint(path).content
    assert type(record) is Reduced and record.name == "argparse.Namespace" and record.args == ()
    assert record.state == {"name": "posix.system"} and not hasattr(record, "__dict__")
    assert repr(record) == "Reduced(argparse.Namespace)"


def test_slots_given_to_a_mapping_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(program(named("collections", "OrderedDict") + b")RN}" + text("items") + text("x") + b"s\x86b"))
    content = open_checkpoint(path).content
    assert content == {} and type(content) is dict and callable(content.items)


# ---- memory and time

TENSOR = called(
    "torch._utils",
    "_rebuild_tensor_v2",
    b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQK\x00"
    b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85K\x00\x85\x89" + called("collections", "OrderedDict"),
)  # 10^12 elements, all of them one number
HUGE = (1 << 40).to_bytes(8, "little")
BOMBS: dict[str, tuple[bytes, str]] = {
    "a length as an argument": (program(called("builtins", "bytearray", b"\x8a\x06" + HUGE[:6])), "than bytes"),
    "a mapping of a tensor": (program(called("collections", "OrderedDict", TENSOR)), "than a mapping"),
    "a size of a tensor": (program(called("torch", "Size", TENSOR)), "than lengths"),
    "a set of a tensor": (program(called("builtins", "set", TENSOR)), "made of tensor"),
    "bytes beyond the end": (program(b"\x8e" + HUGE, 4), "truncated"),
    "text beyond the end": (program(b"X\xff\xff\xff\xff", 2), "truncated"),
    "an array beyond its bytes": (
        program(
            called("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray") + b"K\x00\x85" + text("b"))
            + b"(K\x01\x8a\x06" + HUGE[:6] + b"\x85" + called("numpy", "dtype", "f4")
            + b"(K\x03" + text("<") + b"NNNtb\x89" + called("_codecs", "encode", "", "latin1") + b"tb"
        ),
        "with not as many bytes",
    ),
    "a storage beyond the file": (
        program(
            b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"\x8a\x06"
            + HUGE[:6] + b"tQ"
        ),
        "damaged",
    ),
    "a tensor beyond its storage": (
        program(TENSOR.replace(b"\x85K\x00\x85\x89", b"\x85K\x01\x85\x89")), "reaches beyond its storage"
    ),
    "one text copied again and again": (
        program(
            b"(" + text("x" * 50_000) + b"q\x00" + text("latin1") + b"q\x010"
            + (named("_codecs", "encode") + b"h\x00h\x01\x86R") * 3000 + b"l"
        ),
        "copied over and over",
    ),
    "one mapping copied again and again": (
        program(
            b"(}q\x00(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(30_000)) + b"u"
            + (named("collections", "Counter") + b"h\x00\x85R") * 300 + b"l"
        ),
        "copied over and over",
    ),
    "a billion laughs": (
        program(
            b"]" + b"".join(b"q" + bytes([n]) + b"0](" + (b"h" + bytes([n])) * 10 + b"e" for n in range(30))
        ),
        "values",
    ),
    "deep tuples as a key": (program(b"}N" + b"\x85" * 100_000 + b"Ns"), "tuple as a key"),
    "deep lists": (program(b"]" * 5_000 + b"a" * 4_999), "inside one another"),
    "itself": (program(b"]q\x00h\x00a"), "contains itself"),
    "a long number": (program(b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000), "bits"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_no_file_takes_more_than_its_size_allows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is torch asked to read it: its weights_only reader allows calls that allocate what a file says."""
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("asked"))
    attack, message = BOMBS[kind]
    container = as_zip if b"storage" in attack else as_pickle
    assert message in refused(tmp_path / "file.pth", container(attack))


def test_a_memo_index_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(program(b"]r\xff\xff\xff\xff"))
    assert open_checkpoint(path).content == []


@pytest.mark.slow  # a process: what a library allocates is seen nowhere else
def test_the_bombs_leave_memory_alone(tmp_path: Path) -> None:
    for number, (attack, _) in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.pth").write_bytes(as_zip(attack) if b"storage" in attack else attack)
    (tmp_path / "memo.pth").write_bytes(program(b"]r\xff\xff\xff\xff"))
    code = f"""
import resource
from pathlib import Path
from converters.opening import open_checkpoint
from zoo.errors import CheckpointError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    try:
        open_checkpoint(path)
    except CheckpointError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(ended.stdout) < 120, f"{ended.stdout} MiB"


def test_a_tensor_may_claim_any_shape_in_a_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(as_zip(program(b"}" + text("a") + TENSOR + b"s")))
    assert open_checkpoint(path).content["a"].shape == (10**12,)


def test_more_operations_than_any_checkpoint_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converters.unpickle.MOST_OPERATIONS", 10)
    content = program(b"(" + b"K\x01" * 20 + b"t")
    with pytest.raises(Refused, match="more than 10 objects: not a checkpoint"):
        unpickle(Stream(io.BytesIO(content), 0, len(content)))


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (b"00", "IndexError"),
        (b"\x86", "takes more from its stack"),
        (b"]]", "leaves its stack in disorder"),
        (b"h\x05", "KeyError"),
        (b"Ju\x00\x00\x00K\x01K\x02s", "sets items of int"),
        (b"K\x01K\x02a", "appends to int"),
        (b"K\x01(K\x02\x90", "adds to int"),
        (b"}]K\x02s", "list as a key"),
        (named("torch", "FloatStorage") + b"K\x01\x85R", "torch.FloatStorage, which is only ever named"),
        (called("torch._utils", "_rebuild_tensor_v2", b"NK\x00))\x89N"), "AttributeError"),
        (called("torch._utils", "_rebuild_parameter", b"K\x01\x89N"), "a parameter that is no tensor"),
        (called("_codecs", "encode", "x", "rot13"), "something else than latin1 text"),
        (called("builtins", "complex", "1"), "complex of something else"),
        (called("collections", "OrderedDict", b"]K\x01a"), "made of something else than pairs"),
        (called("byol.byol_experiment", "_ByolExperimentState", "x"), "has 1 fields; expected online_params"),
        (called("numpy", "dtype", "V8"), "numpy arrays of type V8: expected one of f2"),
        (called("numpy", "dtype", "O"), "numpy arrays of objects"),
        (called("numpy", "dtype", b"K\x01"), "a numpy.dtype without a name"),
        (called("numpy", "dtype", "f4") + b"K\x01b", "a numpy.dtype without a byte order"),
        (called("numpy", "dtype", "f4"), "dtype where data should be"),
        (called("numpy.core.multiarray", "scalar", "x", "y"), "a numpy scalar without a type"),
        (called("numpy.core.multiarray", "scalar", called("numpy", "dtype", "f4"), "y"), "with not as many bytes"),
        (called("jax._src.array", "_reconstruct_array", "x", b")", b")"), "a jax array that is not numpy's"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, operations: bytes, message: str) -> None:
    assert message in refused(tmp_path / "file.pkl", program(operations, 4))
