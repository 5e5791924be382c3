"""A file from the network, whole and checked, or an error: what has come is kept, and the next try goes on from there.

A download lies in cache_dir()/downloads/<16 hex digits of its address's SHA-256>/ under its own name, with source.json
beside it: where it came from and its SHA-256. Until it is whole and has the hash it must have, it is called
NAME.partial. One process at a time works in a folder; a second waits and finds the file.
"""

import fcntl
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from converters.network import Show, bring, forget
from zoo.errors import CheckpointError
from zoo.files import cache_dir, ensure_writable, remembered_sha256, sha256_file, write_atomic

log = logging.getLogger(__name__)

SOURCE_NAME: Final = "source.json"
LINE_SECONDS: Final = 10.0  # between two lines about progress in a log


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The hash, or its first hex digits, that a file must have, and who says so."""

    algorithm: Literal["sha256", "md5"]
    digits: str
    said_by: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """source.json: what is known of a downloaded file."""

    url: str
    final_url: str
    file: str
    size: int
    sha256: str
    etag: str | None
    last_modified: str | None
    checked_by: str | None  # who had said what the hash must be; None: nobody, it was recorded as found


def download(url: str, expected: Expected | None, *, progress: bool) -> tuple[Path, str]:
    """(path, hex SHA-256) of what lies at `url`. A file that is there already is used, and no network touched.

    Raises CheckpointError: not reachable, not there, a web page and no file, other bytes than expected or than at an
    earlier download, cut off again and again, the disk full.
    """
    folder = folder_of(url)
    found = _cached(folder, expected)
    if found is None:
        ensure_writable(folder)
        with _alone(folder, url):
            found = _cached(folder, expected) or _fetch(folder, url, expected, progress=progress)
    return folder / found.file, found.sha256


def folder_of(url: str) -> Path:
    """Where the download of an address lies."""
    return cache_dir() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]


def file_name(url: str) -> str:
    """The last part of an address's path, made safe as a file name; never one of the names used beside it."""
    last = unquote(urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.+-]", "_", last, flags=re.ASCII)[-150:].lstrip(".") or "checkpoint"
    return f"file_{name}" if name == SOURCE_NAME or ".partial" in name else name


def digest_of(path: Path) -> str:
    """A file's hex SHA-256, by the ledger where that can be written: a cache may be read-only."""
    try:
        return remembered_sha256(path)
    except OSError:
        return sha256_file(path)


def _cached(folder: Path, expected: Expected | None) -> Source | None:
    """What was downloaded earlier and is still there, its bytes compared with what is known of them."""
    source = _source(folder)
    if source is None or not (folder / source.file).is_file():
        return None
    path = folder / source.file
    found = digest_of(path)
    if found != source.sha256:
        raise CheckpointError(
            f"{path}: expected sha256 {source.sha256}, as it was downloaded, found {found}: the file has been changed "
            "since. Remove it, and it is downloaded anew."
        )
    if expected is not None and (expected.algorithm == "sha256" or source.checked_by is None):
        problem = _mismatch(path, found, expected)
        if problem:
            raise CheckpointError(
                f"{path}, downloaded earlier from {source.url}: {problem} If another file lies there now, remove "
                f"{folder} to download it anew."
            )
    return source


def _source(folder: Path) -> Source | None:
    path = folder / SOURCE_NAME
    try:
        return Source(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not readable ({error}). Remove {folder}, and it is downloaded anew.") from error


def _mismatch(path: Path, sha256: str, expected: Expected) -> str | None:
    """What is wrong with a file's hash; None when it is the expected one."""
    found = sha256
    if expected.algorithm == "md5":
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found.startswith(expected.digits):
        return None
    shown = f"{expected.digits}…" if len(expected.digits) < len(found) else expected.digits
    return f"expected {expected.algorithm} {shown}, as {expected.said_by} says, found {found}."


@contextmanager
def _alone(folder: Path, url: str) -> Iterator[None]:
    """Hold the folder's lock, which the kernel gives back however the process ends."""
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is downloading it; waiting", url)
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fetch(folder: Path, url: str, expected: Expected | None, *, progress: bool) -> Source:
    """Download, compare, and only then give the file its name."""
    earlier, name = _source(folder), file_name(url)
    partial = folder / f"{name}.partial"
    log.info("downloading %s", url)
    with _shown(name, progress) as show:
        got = bring(url, partial, show)
    problem = _mismatch(partial, got.sha256, expected) if expected else None
    if problem is None and expected is None and earlier is not None and earlier.sha256 != got.sha256:
        problem = (
            f"expected sha256 {earlier.sha256}, as at an earlier download ({folder / SOURCE_NAME}), "
            f"found {got.sha256}: another file lies there now. If it is the one you want, say so: {url}#sha256=HASH."
        )
    if problem is not None:
        forget(partial)
        raise CheckpointError(f"{url}: {problem} The {got.size:,} bytes that came were removed.")
    partial.replace(folder / name)
    forget(partial)
    source = Source(
        url=url,
        final_url=got.url,
        file=name,
        size=got.size,
        sha256=got.sha256,
        etag=got.etag,
        last_modified=got.last_modified,
        checked_by=expected.said_by if expected else None,
    )
    write_atomic(folder / SOURCE_NAME, json.dumps(asdict(source), indent=1) + "\n")  # makes the rename durable too
    if expected is None:
        log.warning(
            "%s: nobody says what its sha256 must be; found %s, which is remembered. To pin it: %s#sha256=%s",
            name, got.sha256, url, got.sha256,
        )  # fmt: skip
    else:
        log.info("%s: %s bytes, %s as %s says", name, f"{got.size:,}", expected.algorithm, expected.said_by)
    return source


@contextmanager
def _shown(name: str, progress: bool) -> Iterator[Show]:
    """A bar on a terminal, else a line now and then."""
    if progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal said
        if progress and time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            log.info("%s: %.1f of %s MB", name, done / 1e6, f"{total / 1e6:.1f}" if total else "?")

    yield line
