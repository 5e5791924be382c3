"""A checkpoint file's content as plain data: mappings, lists, numbers, text and tensors. Nothing in it is executed.

What kind of file it is, is said by its first bytes, not by its name. Of torch's files the pickle is first walked by the
reader of unpickle, without a value being read. If it holds nothing but tensors and plain containers, torch reads it
(weights_only); if it holds more, that reader does.
"""

import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import safetensors
import torch
from torch import UntypedStorage

from converters.unpickle import Cut, Reduced, Refused, Stream, Unpickled, unpickle
from zoo.errors import CheckpointError

__all__ = ["Opened", "Reduced", "open_checkpoint"]

Container = Literal["safetensors", "torch zip", "torch legacy", "pickle"]
Way = Literal["safetensors", "weights_only", "restricted"]

_MAGIC: Final = 0x1950A86A20F9469CFC6C  # the first pickle of torch's files before 1.6
_MAGIC_BYTES: Final = _MAGIC.to_bytes(10, "little") + b"."
_LEGACY_TAR: Final = (b"sys_info", b"pickle", b"tensors", b"storages")  # what the first member can be
_MOST_ENTRIES: Final = 100_000
_UNPACK: Final = "unpack it first and give the file inside"
_OTHER: Final[tuple[tuple[bytes, str], ...]] = (  # first bytes → what it is and what to do
    (b"\x1f\x8b", f"compressed by gzip: {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"compressed by xz: {_UNPACK}"),
    (b"BZh", f"compressed by bzip2: {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd: {_UNPACK}"),
    (b"Rar!", f"a rar archive: {_UNPACK}"),
    (b"\x89HDF", "an HDF5 file (Keras): save the weights as safetensors with torchvision's names and shapes"),
    (b"\x93NUMPY", "a single numpy array: a checkpoint has its tensors by name; save them as safetensors"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: fetch it with `git lfs pull`"),
)
_LEVELDB: Final = bytes.fromhex("57fb808b247547db")  # ends TensorFlow's .index
_NAMES: Final[dict[str, str]] = {  # formats without a mark of their own
    ".msgpack": "a msgpack file (flax): save the weights as safetensors with torchvision's names and shapes",
    ".index": "the index of a TensorFlow checkpoint: save the variables as safetensors with torchvision's names",
    ".meta": "the graph of a TensorFlow checkpoint: save the variables as safetensors with torchvision's names",
    ".onnx": "an ONNX graph: its weights have lost their names; ask for the state dict that it was made of",
}


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a file holds and how it was read.

    content: nested dict, list, tuple, set, str, bytes, int, float, bool, None, torch.Tensor (numpy arrays become
    tensors), and Reduced for objects of allowed classes. reduced: the classes of these, "argparse.Namespace".
    Tensors of safetensors and torch's zip files are read from the file when their values are first used.
    """

    path: Path
    container: Container
    way: Way
    content: Any
    metadata: Mapping[str, str]
    reduced: tuple[str, ...]


def open_checkpoint(path: Path) -> Opened:
    """Raises CheckpointError naming the file and what is wrong with it."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint file; expected .safetensors, .pth, .pt, .tar, .ckpt or .pkl."
        )
    try:
        return _opened(path)
    except Refused as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes raise anything: IndexError, TypeError, MemoryError, RecursionError
        text = str(error).strip().splitlines()
        first = f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
        raise CheckpointError(f"{path}: not readable: the file is damaged or no checkpoint ({first}).") from error


def _opened(path: Path) -> Opened:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(512)
        if not head:
            raise Refused("an empty file: fetch it again")
        if path.suffix == ".safetensors" or _looks_like_safetensors(head, size):
            return _safetensors(path)
        if head.startswith(b"PK"):
            return _torch_zip(path, file, size)
        if _MAGIC_BYTES in head[:64]:
            return _torch_legacy(path, file, size)
        return _pickle(path, file, size, head)


def _safetensors(path: Path) -> Opened:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        what = _described(path)
        raise Refused(f"not a readable safetensors file ({error}){what}.") from error
    return Opened(
        path=path,
        container="safetensors",
        way="safetensors",
        content=content,
        metadata=metadata,
        reduced=(),
    )


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _described(path: Path) -> str:
    """What a file whose name promises safetensors looks like instead."""
    with path.open("rb") as file:
        head = file.read(512)
    what = _other(head, path, "")
    if what is None and (head.startswith(b"PK") or head[:1] == b"\x80"):
        what = "a file of torch.save or pickle: name it .pth"
    return f": it looks like {what}" if what else ""


def _pickle(path: Path, file: BinaryIO, size: int, head: bytes) -> Opened:
    file.seek(max(0, size - 8))
    other = _other(head, path, ".index" if file.read(8) == _LEVELDB else path.suffix)
    if other is not None:
        raise Refused(f"{other}.")
    try:
        read = unpickle(Stream(file, 0, size))
    except Refused:
        raise
    except Exception as error:
        if head[:1] == b"\x80":
            raise
        seen = f"text ({head[:40].decode()!r} …)" if _is_text(head) else f"unknown (it starts with {head[:8].hex(' ')})"
        raise Refused(
            f"no checkpoint: its content is {seen}; expected safetensors, or what torch.save writes"
        ) from error
    return _given(path, "pickle", read)


def _other(head: bytes, path: Path, suffix: str) -> str | None:
    """What a file is that is neither torch's nor a pickle, and what to do about it."""
    for start, what in _OTHER:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        first = head[:100].split(b"\0")[0].split(b"/")[0]
        if first in _LEGACY_TAR:
            return (
                "torch's format before 0.1.10 (a tar archive with pickles), which cannot be read safely: "
                "have its owner save it again with a newer torch.save, or as safetensors"
            )
        return f"a tar archive: {_UNPACK}"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint: the download went wrong; fetch it again"
    if suffix in _NAMES:
        return _NAMES[suffix]
    return None


def _is_text(head: bytes) -> bool:
    try:
        return head.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable()
    except UnicodeDecodeError:
        return False


def _given(path: Path, container: Container, read: Unpickled) -> Opened:
    return Opened(
        path=path,
        container=container,
        way="restricted",
        content=read.content,
        metadata={},
        reduced=read.reduced,
    )


def _read(
    path: Path, container: Container, walked: Unpickled, again: Callable[[], Unpickled], *, mapped: bool
) -> Opened:
    """The content of a file of torch whose pickle was walked: by torch where it can, else by the restricted reader."""
    if walked.plain:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception:  # an instruction that torch does not know; what is wrong otherwise, the other reader finds
            pass
        else:
            return Opened(path=path, container=container, way="weights_only", content=content, metadata={}, reduced=())
    return _given(path, container, again())


# ---- torch's zip files (since 1.6): <name>/data.pkl, and <name>/data/<key> for every storage


def _torch_zip(path: Path, file: BinaryIO, size: int) -> Opened:
    places = _places(file, size)
    names = {name.partition("/")[2] for name in places}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise Refused(
            "a TorchScript archive, which holds code: ask for the state dict, which its owner writes with "
            "torch.save(model.state_dict(), 'weights.pth')."
        )
    pickles = [name for name in places if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        if any(name.endswith(".npy") for name in places):
            raise Refused(
                "numpy's archive of arrays (.npz): no checkpoint layout uses it; save the arrays as safetensors."
            )
        raise Refused(f"a zip archive that torch.save did not write ({len(places)} files): {_UNPACK}.")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in places:
        start, end = places[f"{prefix}byteorder"]
        if Stream(file, start, end).read(min(end - start, 10)) != b"little":
            raise Refused("written on a big-endian machine: have it saved again as safetensors.")

    def place(key: str, dtype: torch.dtype, count: int) -> tuple[int, int]:
        start, end = places.get(f"{prefix}data/{key}", (0, -1))
        if end - start != count * dtype.itemsize:
            found = f"found {end - start}" if end >= 0 else "it is not there"
            raise Refused(f"damaged: expected {count * dtype.itemsize:,} bytes in storage {key}, {found}.")
        return start, end

    def declared(key: str, dtype: torch.dtype, count: int, view: tuple[str, int, int] | None) -> UntypedStorage:
        place(key, dtype, count)
        if view is not None:
            raise Refused("damaged: a view of a storage, which only older files have.")
        return UntypedStorage(count * dtype.itemsize, device="meta")

    def again() -> Unpickled:
        whole = UntypedStorage.from_file(str(path), False, size)
        storages: dict[str, UntypedStorage] = {}

        def stored(key: str, dtype: torch.dtype, count: int, view: tuple[str, int, int] | None) -> UntypedStorage:
            if key not in storages:
                start, end = place(key, dtype, count)
                part = cast(UntypedStorage, whole[start:end])
                storages[key] = part.clone() if start % dtype.itemsize else part
            return storages[key]

        return unpickle(Stream(file, *places[pickles[0]]), stored)

    walked = unpickle(Stream(file, *places[pickles[0]]), declared)
    return _read(path, "torch zip", walked, again, mapped=True)


def _places(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Name → where its bytes start and end, of a zip archive whose entries are stored as they are, side by side."""
    try:
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            comment = archive.comment
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    except zipfile.BadZipFile as error:
        raise Refused(
            "a zip archive without its directory, which stands at the end: truncated; fetch it again"
        ) from error
    problem = "a zip archive that torch.save did not write"
    if comment:  # a directory can be hidden in it: which one is read would be up to the reader
        raise Refused(f"{problem}: it has a comment.")
    if len(entries) > _MOST_ENTRIES:
        raise Refused(f"{problem}: {len(entries)} entries.")
    if len({entry.filename for entry in entries}) != len(entries):
        raise Refused(f"{problem}: two entries of one name.")
    compressed = [entry.filename for entry in entries if entry.compress_type or entry.compress_size != entry.file_size]
    if compressed or any(entry.flag_bits & 1 for entry in entries):
        arrays = "numpy's archive of arrays (.npz)" if compressed and compressed[0].endswith(".npy") else problem
        raise Refused(f"{arrays}: its entries are compressed or encrypted. {_UNPACK[0].upper()}{_UNPACK[1:]}.")
    places: dict[str, tuple[int, int]] = {}
    before = 0
    for entry in entries:
        if entry.header_offset < before or (not places and entry.header_offset):
            raise Refused(f"{problem}: entries overlap, or do not start at its beginning.")
        header = Stream(file, entry.header_offset, size).read(30)
        mark, flags, name_length, extra_length = struct.unpack("<4s2xH18xHH", header)
        start = entry.header_offset + 30 + name_length + extra_length
        before = start + entry.file_size
        named = Stream(file, entry.header_offset + 30, size).read(name_length)
        if mark != b"PK\x03\x04" or named != entry.filename.encode("utf-8" if flags & 0x800 else "cp437"):
            raise Refused(f"{problem}: its directory names entries that are not there.")
        if before > size:
            raise Cut
        places[entry.filename] = (start, before)
    return places


# ---- torch's files before 1.6: five pickles (a mark, a version, the machine, the content, keys), then the storages


def _torch_legacy(path: Path, file: BinaryIO, size: int) -> Opened:
    stream = Stream(file, 0, size)
    mark, version, machine = (unpickle(stream).content for _ in range(3))
    if mark != _MAGIC or version != 1001 or not isinstance(machine, dict):
        raise Refused(f"a file of torch of an unknown version ({version}).")
    if machine.get("little_endian") is not True:
        raise Refused("written on a big-endian machine: have it saved again as safetensors.")
    start = stream.tell()
    lengths: dict[str, tuple[int, int]] = {}  # key → elements, bytes of one

    def declared(key: str, dtype: torch.dtype, count: int, view: tuple[str, int, int] | None) -> UntypedStorage:
        length = count * dtype.itemsize
        if lengths.setdefault(key, (count, dtype.itemsize)) != (count, dtype.itemsize):
            raise Refused(f"damaged: storage {key} has two lengths.")
        if view is None:
            return UntypedStorage(length, device="meta")
        _, offset, elements = view
        if (offset + elements) * dtype.itemsize > length:
            raise Refused(f"damaged: a view that reaches beyond storage {key}.")
        return UntypedStorage(elements * dtype.itemsize, device="meta")

    walked = unpickle(stream, declared)
    keys = unpickle(stream).content
    if not isinstance(keys, list) or set(keys) != set(lengths) or len(keys) != len(lengths):
        raise Refused("damaged: the list of storages is not that of the tensors.")
    places: dict[str, tuple[int, int]] = {}
    position = stream.tell()
    for key in keys:
        stream.seek(position)
        count, itemsize = lengths[key]
        found = int.from_bytes(stream.read(8), "little")
        if found != count:
            raise Refused(f"damaged: expected {count} elements in storage {key}, found {found}.")
        places[key] = (position + 8, position + 8 + count * itemsize)
        position = places[key][1]
        if position > size:
            raise Cut

    def again() -> Unpickled:
        storages: dict[str, UntypedStorage] = {}

        def stored(key: str, dtype: torch.dtype, count: int, view: tuple[str, int, int] | None) -> UntypedStorage:
            if key not in storages:
                storages[key] = _bytes(file, *places[key])
            if view is None:
                return storages[key]
            _, offset, elements = view
            return cast(UntypedStorage, storages[key][offset * dtype.itemsize : (offset + elements) * dtype.itemsize])

        # a stream of its own: storages are read in between from the same file
        with path.open("rb") as pickled:
            return unpickle(Stream(pickled, start, size), stored)

    return _read(path, "torch legacy", walked, again, mapped=False)


def _bytes(file: BinaryIO, start: int, end: int) -> UntypedStorage:
    if start == end:
        return UntypedStorage(0)
    data = bytearray(end - start)
    file.seek(start)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise Cut
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()
