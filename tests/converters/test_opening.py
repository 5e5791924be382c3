"""Every kind of file comes out as plain data, the same as its own library reads, or is refused by what it is."""

import argparse
import gzip
import io
import pickle
import re
import sys
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path, PosixPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch._utils import _rebuild_tensor

from converters.opening import Reduced, open_checkpoint
from zoo.errors import CheckpointError


def drawn() -> OrderedDict[str, Tensor]:
    """A state dict: parameters, a transposed view, two views of one storage, a scalar, half precision, nothing."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(10, generator=generator)
    return OrderedDict(
        {
            "conv1.weight": nn.Parameter(torch.randn(4, 3, generator=generator)),
            "turned": torch.randn(3, 5, generator=generator).t(),
            "first": shared[:4],
            "last": shared[6:],
            "half": torch.randn(3, generator=generator).half(),
            "bfloat": torch.randn(3, generator=generator).bfloat16(),
            "mask": torch.tensor([True, False]),
            "bn1.num_batches_tracked": torch.tensor(7),
            "nothing": torch.zeros(0, 3),
        }
    )


def same(found: Any, expected: Any) -> bool:
    return found.keys() == expected.keys() and all(
        type(found[name]) in (Tensor, nn.Parameter)
        and found[name].dtype == tensor.dtype
        and found[name].stride() == tensor.stride()
        and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def saved(folder: Path, content: Any, name: str = "file.pth", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def pickled(folder: Path, content: Any, protocol: int = 2) -> Path:
    (folder / "file.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder / "file.pkl"


def refused(path: Path, content: bytes | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


ZIPPED = pytest.mark.parametrize("zipped", [True, False])


@ZIPPED
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_torchs_own_readers(tmp_path: Path, zipped: bool, protocol: int) -> None:
    state = drawn()
    path = saved(tmp_path, state, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    opened = open_checkpoint(path)
    assert (opened.container, opened.way) == (
        "torch zip" if zipped else "torch legacy",
        "weights_only" if protocol == 2 else "restricted",  # torch's reader knows protocol 2
    )
    assert same(opened.content, state) and opened.reduced == () and opened.metadata == {}


@ZIPPED
def test_beside_what_torch_does_not_allow_tensors_are_the_same(tmp_path: Path, zipped: bool) -> None:
    """DINO's and torchvision's training files: the arguments of the script."""
    state, arguments = (
        drawn(),
        argparse.Namespace(lr=0.1, output=PosixPath("/out"), betas=(0.9, 0.99), dtype=torch.half),
    )
    content = {"student": state, "args": arguments, "epoch": 3, "best_acc1": np.float32(2.5), "loss": np.float64(0.25)}
    opened = open_checkpoint(saved(tmp_path, content, _use_new_zipfile_serialization=zipped))
    assert opened.way == "restricted" and opened.reduced == ("argparse.Namespace", "pathlib.PosixPath")
    assert same(opened.content["student"], state)
    first, last = opened.content["student"]["first"], opened.content["student"]["last"]
    assert first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()  # still one storage
    args = opened.content["args"]
    assert type(args) is Reduced and args.name == "argparse.Namespace"
    assert args.state["lr"] == 0.1 and args.state["betas"] == (0.9, 0.99) and args.state["dtype"] == torch.half
    assert args.state["output"].args == ("/", "out")
    assert (opened.content["epoch"], opened.content["best_acc1"], opened.content["loss"]) == (3, 2.5, 0.25)


def test_an_optimisers_state_is_read(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 5])
    content = {
        "model": network.state_dict(),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.RandomState(0).get_state(),
    }
    found = open_checkpoint(saved(tmp_path, content)).content
    assert same(found["model"], content["model"]) and found["lr_scheduler"]["milestones"] == {3: 1, 5: 1}
    assert torch.equal(found["optimizer"]["state"][0]["exp_avg"], content["optimizer"]["state"][0]["exp_avg"])
    assert found["numpy_rng"][1].dtype == torch.uint32


def test_vissls_nesting_is_kept(tmp_path: Path) -> None:
    trunk = {"_feature_blocks.conv1.weight": torch.ones(2)}
    content = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}, "loss": np.float64(1)}
    found = open_checkpoint(saved(tmp_path, content)).content
    assert same(found["classy_state_dict"]["base_model"]["model"]["trunk"], trunk)


def elsewhere(monkeypatch: pytest.MonkeyPatch, module: str, **classes: type) -> None:
    """Make classes that pickle finds under another module's name, as if that was installed."""
    made = ModuleType(module)
    for name, kind in classes.items():
        kind.__module__, kind.__qualname__ = module, name
        setattr(made, name, kind)
    parts = module.split(".")
    for count in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    monkeypatch.setitem(sys.modules, module, made)


class AttributeDict(dict[str, Any]):
    pass


class ModelCheckpoint:
    pass


def test_lightnings_hyper_parameters_and_callbacks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, "pytorch_lightning.utilities.parsing", AttributeDict=AttributeDict)
    elsewhere(monkeypatch, "pytorch_lightning.callbacks.model_checkpoint", ModelCheckpoint=ModelCheckpoint)
    content = {
        "state_dict": drawn(),
        "hyper_parameters": AttributeDict(lr=0.1, backbone="resnet18"),
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.0), "monitor": None}},
    }
    path = saved(tmp_path, content)
    monkeypatch.undo()
    opened = open_checkpoint(path)
    assert opened.content["hyper_parameters"] == {"lr": 0.1, "backbone": "resnet18"} and opened.reduced == ()
    (key,) = opened.content["callbacks"]
    assert key.name == "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint" and key.args is None


class FlatMapping:
    """haiku's: pickled as a call with one dict."""

    def __init__(self, mapping: dict[str, Any]) -> None:
        self.mapping = mapping

    def __reduce__(self) -> Any:
        return type(self), (self.mapping,)


class _ByolExperimentState(NamedTuple):
    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


class ScaleByLarsState(NamedTuple):
    mu: Any


def test_byols_experiment_state_can_be_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """deepmind-research: byol/byol_experiment.py; dm-haiku: haiku/_src/data_structures.py."""
    weights = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    elsewhere(monkeypatch, "haiku._src.data_structures", FlatMapping=FlatMapping)
    elsewhere(monkeypatch, "byol.byol_experiment", _ByolExperimentState=_ByolExperimentState)
    elsewhere(monkeypatch, "byol.utils.optimizers", ScaleByLarsState=ScaleByLarsState)
    flat = FlatMapping({"res_net50/initial_conv": FlatMapping({"w": weights})})
    state = _ByolExperimentState(flat, flat, FlatMapping({}), FlatMapping({}), [ScaleByLarsState(flat)])
    path = pickled(tmp_path, {"experiment_state": state, "step": 300, "rng": np.zeros(2, np.uint32)}, 3)
    monkeypatch.undo()
    found = open_checkpoint(path).content
    assert torch.equal(
        found["experiment_state"]["online_params"]["res_net50/initial_conv"]["w"], torch.from_numpy(weights)
    )
    assert list(found["experiment_state"]) == list(_ByolExperimentState._fields) and found["step"] == 300


@pytest.mark.parametrize("protocol", [2, 4])
def test_mmengines_message_hub_is_read(tmp_path: Path, protocol: int) -> None:
    from mmengine.config import ConfigDict
    from mmengine.logging import MessageHub

    hub = MessageHub(f"opening{protocol}")
    hub.update_scalar("train/loss", 0.5)
    hub.update_scalar("train/loss", 0.25)
    content = {
        "meta": {"epoch": 2, "cfg": "model = 1", "dataset": ConfigDict(a=1, b=dict(c=2))},
        "state_dict": drawn(),
        "message_hub": hub.state_dict(),
    }
    opened = open_checkpoint(saved(tmp_path, content, pickle_protocol=protocol))
    assert opened.reduced == ("mmengine.logging.history_buffer.HistoryBuffer",)
    buffer = opened.content["message_hub"]["log_scalars"]["train/loss"]
    assert buffer.state["_log_history"].tolist() == [0.5, 0.25]
    assert opened.content["meta"]["dataset"] == {"a": 1, "b": {"c": 2}}


def test_omegaconfs_settings_are_read_without_their_circles(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    settings = OmegaConf.create({"lr": 0.1, "gpus": [0, 1], "data": {"path": None}})
    opened = open_checkpoint(saved(tmp_path, {"state_dict": drawn(), "hyper_parameters": settings}))
    found = opened.content["hyper_parameters"]
    assert found.name == "omegaconf.dictconfig.DictConfig" and "_parent" not in found.state
    assert found.state["_content"]["lr"].state["_val"] == 0.1


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    """detectron2's model zoo, MSRA's R-50.pkl: numpy arrays by name."""
    generator = np.random.default_rng(0)
    arrays = {
        "res2.0.conv1.weight": generator.normal(size=(2, 3, 1, 1)).astype("f4"),
        "turned": np.asfortranarray(generator.normal(size=(3, 4))),
        "big-endian": generator.normal(size=5).astype(">f4"),
        "half": generator.normal(size=20_000).astype("f2"),
        "numbers": np.arange(5, dtype="u2"),
        "flags": np.array([True, False]),
        "scalar": np.array(3.0),
        "nothing": np.zeros((0, 3), "f4"),
        "twice": np.zeros(2),
    }
    arrays["again"] = arrays["twice"]
    opened = open_checkpoint(pickled(tmp_path, {"model": arrays, "__author__": "MSRA"}, protocol))
    assert (opened.container, opened.way) == ("pickle", "restricted")
    found = opened.content["model"]
    assert found.keys() == arrays.keys() and opened.content["__author__"] == "MSRA"
    for name, array in arrays.items():
        assert np.array_equal(found[name].numpy(), array) and found[name].numpy().dtype == array.dtype.newbyteorder("=")
    assert found["again"] is found["twice"]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """numpy's content as a byte string, names in the modules of that time; put together as python 2 writes it."""
    content = (
        b"\x80\x02}q\x00U\x05blobsq\x01}q\x02U\x07conv1_wq\x03cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\n"
        b"q\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\x09(K\x01K\x02\x85q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87"
        b"q\rRq\x0e(K\x03U\x01<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00\xa0\xff"
        b"q\x11tq\x12bss."
    )
    (tmp_path / "file.pkl").write_bytes(content)
    weights = open_checkpoint(tmp_path / "file.pkl").content["blobs"]["conv1_w"]
    assert weights[0] == 1 and weights[1].isnan()


@pytest.mark.parametrize("protocol", range(6))
def test_pythons_own_types_are_read(tmp_path: Path, protocol: int) -> None:
    content = {
        "counter": Counter("aab"),
        "default": defaultdict(list, {1: [2]}),
        "deque": deque([1, 2], 3),
        "set": {1, (1, "a")},
        "frozen": frozenset([None]),
        "bytes": b"ab\xff",
        "array": bytearray(b"ab\xff"),
        "complex": 1 + 2j,
        "text": "ü",
        "long": 1 << 70,
        "numpy": [np.bool_(True), np.int64(-3), np.str_("ä")],
    }
    found = open_checkpoint(pickled(tmp_path, content, protocol)).content
    assert found == {**content, "deque": [1, 2]}
    assert [type(value) for value in found["numpy"]] == [bool, int, str] and type(found["array"]) is bytes


def test_safetensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    state = {name: tensor.detach().contiguous() for name, tensor in drawn().items()}
    for name in ("a.safetensors", "misnamed.bin"):
        safetensors.torch.save_file({n: t.clone() for n, t in state.items()}, tmp_path / name, {"format": "pt"})
        opened = open_checkpoint(tmp_path / name)
        assert (opened.container, opened.way, opened.metadata) == ("safetensors", "safetensors", {"format": "pt"})
        assert same(opened.content, state)


def test_values_are_read_from_the_file_when_used_and_written_to_none(tmp_path: Path) -> None:
    for content in ({"a": torch.ones(3)}, {"a": torch.ones(3), "b": np.float64(1)}):
        path = saved(tmp_path, content)
        before = path.read_bytes()
        open_checkpoint(path).content["a"].add_(1)
        assert path.read_bytes() == before


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tarred(*names: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(2))
    return stream.getvalue()


def compressed_arrays() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(2))
    return stream.getvalue()


EMPTY = pickle.dumps({}, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file: fetch it again"),
        (b"<!DOCTYPE html><html>", "a web page, not a checkpoint"),
        (b"\n<html>", "a web page, not a checkpoint"),
        (b"<?xml version='1.0'?><Error>", "a web page, not a checkpoint"),
        (b"404: Not Found", "its content is text ('404: Not Found' …)"),
        (b'{"error": 1}', "its content is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS, not the file itself"),
        (gzip.compress(b"x", mtime=0), "compressed by gzip: unpack it first"),
        (b"\xfd7zXZ\x00\x00", "compressed by xz: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"Rar!\x1a\x07", "a rar archive"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"),
        (b"\x93NUMPY\x01\x00", "a single numpy array"),
        (b"\x00\x00\x00" + bytes.fromhex("57fb808b247547db"), "the index of a TensorFlow checkpoint"),
        (tarred("sys_info", "pickle"), "torch's format before 0.1.10 (a tar archive with pickles)"),
        (tarred("model/weights"), "a tar archive: unpack it first"),
        (arrays(), "numpy's archive of arrays (.npz)"),
        (compressed_arrays(), "numpy's archive of arrays (.npz)"),
        (zipped({"a/readme.txt": b""}), "a zip archive that torch.save did not write (1 files)"),
        (zipped({"a/data.pkl": EMPTY, "a/constants.pkl": EMPTY}), "a TorchScript archive, which holds code"),
        (zipped({"a/data.pkl": EMPTY, "a/code/model.py": b""}), "a TorchScript archive, which holds code"),
        (zipped({"a/data.pkl": EMPTY}, zipfile.ZIP_DEFLATED), "its entries are compressed or encrypted"),
        (zipped({"a/data.pkl": EMPTY})[:-2] + b"\x01\x00x", "torch.save did not write: it has a comment"),
        (zipped({"a/data.pkl": EMPTY, "a/byteorder": b"big"}), "written on a big-endian machine"),
        (zipped({"a/data.pkl": EMPTY, "b/data.pkl": EMPTY}), "a zip archive that torch.save did not write"),
        (b"junk" + zipped({"a/data.pkl": EMPTY}), "its content is unknown (it starts with 6a 75 6e 6b"),
        (b"PK\x03\x04" + bytes(100), "truncated; fetch it again"),
        (b"\x80", "truncated"),
        (b"\x80\x02", "truncated"),
        (bytes(1000), "its content is unknown (it starts with 00 00"),
    ],
)  # fmt: skip
def test_other_files_are_refused_by_what_they_are(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(tmp_path / "file.pth", content)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("msgpack", "a msgpack file (flax)"),
        ("index", "the index of a TensorFlow checkpoint"),
        ("meta", "the graph of a TensorFlow checkpoint"),
        ("onnx", "an ONNX graph"),
    ],
)
def test_formats_without_a_mark_are_known_by_their_name(tmp_path: Path, suffix: str, message: str) -> None:
    assert message in refused(tmp_path / f"file.{suffix}", b"\x08\x01\xff")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html></html>", "looks like a web page"),
        (EMPTY, "looks like a file of torch.save or pickle: name it .pth"),
        (bytes([50]) + bytes(7) + b'{"a":1}', "not a readable safetensors file"),
    ],
)
def test_a_file_named_safetensors_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in refused(tmp_path / "file.safetensors", content)


@pytest.mark.parametrize("name", ["gone.pth", "."])
def test_a_file_that_does_not_exist_is_named(tmp_path: Path, name: str) -> None:
    assert "no such checkpoint file; expected .safetensors, .pth" in refused(tmp_path / name)


def quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.ones(2).to_sparse(), "it holds sparse tensors"),
        (lambda: torch.ones(2, device="meta"), "it holds tensors without values (meta)"),
        (quantised, "it holds quantised tensors"),
        (lambda: nn.Conv2d(1, 1, 1), "it holds a whole network object, not its state dict"),
        (lambda: np.array([None]), "numpy arrays of objects"),
        (lambda: np.array(["a"]), "numpy arrays of text"),
        (lambda: np.zeros(2, [("a", "f4")]), "numpy arrays of type V4"),
    ],
)
@ZIPPED
def test_what_is_no_dense_tensor_is_refused(
    tmp_path: Path, zipped: bool, tensor: Callable[[], Any], message: str
) -> None:
    path = saved(tmp_path, {"conv1.weight": tensor()}, _use_new_zipfile_serialization=zipped)
    assert message in refused(path)


def test_tensors_that_pickle_wrote_are_refused(tmp_path: Path) -> None:
    assert "it holds tensors written by pickle, not by torch.save" in refused(pickled(tmp_path, {"a": torch.ones(2)}))


# ---- damage


def legacy(state: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("more", [{}, {"best": np.float64(1)}])
def test_an_old_file_that_ends_early_is_truncated(tmp_path: Path, more: dict[str, Any]) -> None:
    content = legacy({"a": torch.ones(100), **more})
    for length in (len(content) - 1, len(content) - 400, len(content) - 405, 200, 40):
        assert "truncated; fetch it again" in refused(tmp_path / "file.pth", content[:length])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (rb"(little_endianq.)\x88", b"\\1\x89", "written on a big-endian machine"),
        (rb"\x80\x02M\xe9\x03\.", b"\x80\x02M\xea\x03.", "a file of torch of an unknown version (1002)"),
        (rb"(cpuq.K)\x02", b"\\1\x09", "expected 9 elements in storage"),
        (rb"\x80\x02\]q\x00X.+\.(?=\x02)", b"\x80\x02].", "the list of storages is not that of the tensors"),
    ],
)
def test_an_old_file_that_contradicts_itself_is_refused(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    content, changes = re.subn(old, new, legacy({"a": torch.ones(2)}), flags=re.DOTALL)
    assert changes == 1 and message in refused(tmp_path / "file.pth", content)


class _Pickled:
    """Pickled as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class _Stored:
    """Pickled as a storage, or a view of one."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.identity if isinstance(obj, _Stored) else None


def with_view(offset: int, more: Any) -> bytes:
    """As torch 0.1 to 0.3 wrote a tensor whose storage is a part of another."""
    view = _Stored("storage", torch.FloatStorage, "1", "cpu", 4, ("2", offset, 2))
    tensor = _Pickled(_rebuild_tensor, (view, 0, (2,), (1,)))
    stream = io.BytesIO()
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    for part in (0x1950A86A20F9469CFC6C, 1001, machine, {"a": tensor, "more": more}, ["1"]):
        _Pickler(stream, protocol=2).dump(part)
    return stream.getvalue() + (4).to_bytes(8, "little") + np.arange(4, dtype="<f4").tobytes()


@pytest.mark.parametrize(("more", "way"), [(None, "weights_only"), (np.float64(1), "restricted")])
def test_views_of_storages_in_old_files_are_read(tmp_path: Path, more: Any, way: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(with_view(1, more))
    opened = open_checkpoint(path)
    assert opened.way == way and opened.content["a"].tolist() == [1, 2]
    assert "a view that reaches beyond storage 1" in refused(path, with_view(3, more))


def test_a_zip_archive_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(2)})
    content = path.read_bytes()
    assert "expected 36 bytes in storage 0, found 8" in refused(
        path, re.sub(rb"(cpuq.K)\x02", b"\\1\x09", content, flags=re.DOTALL)
    )
    first = content.index(b"data.pkl")
    assert "its directory names entries that are not there" in refused(
        path, content[:first] + b"xxxx.pkl" + content[first + 8 :]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own word on it
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a/data.pkl", EMPTY)
            archive.writestr("a/data.pkl", EMPTY)
    assert "two entries of one name" in refused(path, stream.getvalue())


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """A zip bomb of stored entries: the second lies within the first."""
    inner = zipped({"a/data/0": bytes(8)})
    content = bytearray(zipped({"a/data.pkl": EMPTY + inner[: inner.index(b"PK\x01\x02")], "a/data/0": bytes(8)}))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 42 : directory + 46] = content.index(b"PK\x03\x04", 4).to_bytes(4, "little")
    assert "entries overlap" in refused(tmp_path / "file.pth", bytes(content))


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(2), "b": np.float64(1)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist() if not name.endswith("data/0")}
    assert "expected 8 bytes in storage 0, it is not there" in refused(path, zipped(entries))


def test_unaligned_storages_are_copied(tmp_path: Path) -> None:
    """Zip tools do not align entries as torch does."""
    path = saved(tmp_path, {"a": torch.arange(3.0), "b": np.float64(1)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    for pad in range(4):
        path.write_bytes(
            zipped({f"{'x' * pad}/{name.partition('/')[2]}": value for name, value in entries.items()})
            if pad
            else zipped(entries)
        )
        tensor = open_checkpoint(path).content["a"]
        assert tensor.tolist() == [0, 1, 2] and tensor.data_ptr() % 4 == 0


def files() -> dict[str, bytes]:
    state = {"conv1.weight": torch.zeros(4, 3), "bn1.bias": torch.zeros(2)}
    more = {**state, "args": argparse.Namespace(a=1), "best": np.float32(1), "sizes": [1, {"a": (2, 3)}]}
    made = {"legacy": legacy(state), "legacy, more": legacy(more), "safetensors": safetensors.torch.save(state)}
    for name, content in (("zip", state), ("zip, more", more)):
        stream = io.BytesIO()
        torch.save(content, stream)
        made[name] = stream.getvalue()
    for protocol in (2, 4, 5):
        made[f"pickle {protocol}"] = pickle.dumps({"a": np.zeros(3), "b": {1: [2.0, "c"]}}, protocol=protocol)
    return made


@pytest.mark.parametrize("kind", files())
def test_damage_anywhere_is_an_error_or_changes_values_only(tmp_path: Path, kind: str) -> None:
    rng, path, whole = np.random.default_rng(0), tmp_path / "file.pth", files()[kind]
    outcomes = Counter()
    for trial in range(150):
        spoilt = bytearray(whole[: int(rng.integers(1, len(whole)))] if trial % 3 == 0 else whole)
        for position in rng.integers(0, min(len(spoilt), 1200), 3):
            spoilt[position] = rng.integers(0, 256)
        path.write_bytes(spoilt)
        try:
            open_checkpoint(path)
        except CheckpointError as error:
            outcomes["refused"] += 1
            assert str(error).startswith(f"{path}: ")
        else:
            outcomes["read"] += 1
    assert outcomes["refused"] > 50
