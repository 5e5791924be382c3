"""Files are whole or absent; hashes are remembered until the file changes."""

import math
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zoo import files
from zoo.errors import ZooError
from zoo.files import atomic_file, canonical_json, digest, ensure_writable, remembered, remembered_sha256, write_atomic


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_written_file_holds_what_was_written(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.txt", "ä")
    write_atomic(tmp_path / "new" / "b.bin", b"\x00\xff")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ä"
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path / "new") == ["a.txt", "b.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")
    with pytest.raises(error), atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "ours", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


def test_a_full_disk_leaves_the_old_content_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "a.bin"
    write_atomic(path, b"old")
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, bytes(200_000))
    assert path.read_bytes() == b"old" and names(small_disk) == ["a.bin"]


def test_a_full_disk_is_found_out_before_any_work(small_disk: Path) -> None:
    assert ensure_writable(small_disk / "fine").is_dir()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(200_000))
    with pytest.raises(ZooError, match="cannot write to .*: No space left on device. .*set ZOO_RUNS or ZOO_CACHE"):
        ensure_writable(small_disk / "fine")


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = ensure_writable(tmp_path / "a" / "b")
    assert folder.is_dir() and names(folder) == []


@pytest.mark.parametrize(("place", "reason"), [("file", "File exists"), ("file/below", "Not a directory")])
def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match=f"cannot write to .*{place}: {reason}. Expected a writable folder"):
        ensure_writable(tmp_path / place)


def test_a_file_system_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ZooError, match="cannot write to /proc/zoo: "):
        ensure_writable(Path("/proc/zoo"))


def test_a_value_is_computed_once_for_a_signature() -> None:
    calls: list[int] = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"a": [1, None, "ä"]}

    first = remembered("kind", "signature", compute)
    assert remembered("kind", "signature", compute) == first == {"a": [1, None, "ä"]}
    assert len(calls) == 1
    remembered("kind", "other signature", compute)
    remembered("other kind", "signature", compute)
    assert len(calls) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"signature": "s"}', b'{"value": 1}'])
def test_a_spoilt_entry_is_computed_anew(content: bytes) -> None:
    remembered("kind", "s", lambda: 1)
    (entry,) = (files.cache_dir() / "ledger" / "kind").iterdir()
    entry.write_bytes(content)
    assert remembered("kind", "s", lambda: 2) == 2
    assert remembered("kind", "s", lambda: 3) == 2


def test_an_entry_of_another_signature_is_not_believed() -> None:
    remembered("kind", "s", lambda: 1)
    (entry,) = (files.cache_dir() / "ledger" / "kind").iterdir()
    entry.write_text(entry.read_text().replace('"s"', '"t"'))
    assert remembered("kind", "s", lambda: 2) == 2


def test_a_file_is_hashed_once_while_it_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    first = remembered_sha256(path)
    assert first == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256_file", lambda path: pytest.fail("read again"))
        assert remembered_sha256(path) == first


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_hashed_again(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    first, status = remembered_sha256(path), path.stat()
    if change == "inode":
        write_atomic(path, b"xyz")
    else:
        path.write_bytes(b"xyzw" if change == "size" else b"xyz")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (change == "time")))
    assert remembered_sha256(path) != first


def test_the_place_of_runs_and_cache_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_RUNS", "/somewhere/runs")
    assert files.runs_dir() == Path("/somewhere/runs")
    for name in ("ZOO_RUNS", "ZOO_CACHE"):
        monkeypatch.setenv(name, "")
    assert (files.runs_dir(), files.cache_dir()) == (files.ROOT / "runs", files.ROOT / "cache")


def test_equal_values_have_one_digest() -> None:
    assert digest({"b": [1, 2.5], "a": {"y": None, "x": True}}) == digest({"a": {"x": True, "y": None}, "b": (1, 2.5)})
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"\\u00e4","b":1}'


@pytest.mark.parametrize("other", [{"a": 2}, {"a": 1.0}, {"a": "1"}, {"b": 1}, {"a": 1, "b": None}, [["a", 1]]])
def test_another_value_has_another_digest(other: Any) -> None:
    assert digest(other) != digest({"a": 1})


def test_not_a_number_has_no_digest() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": math.nan})
