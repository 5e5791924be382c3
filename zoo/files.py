"""Files that are whole or absent, and hashes that are remembered.

Everything the project writes for later reading goes through `write_atomic` (temporary file, fsync, rename, fsync of the
folder), so a kill at any moment leaves the old file or the new one. File hashes are kept in a ledger keyed by (path,
size, mtime_ns, inode): `plan` and `status` need not read gigabytes of weights again (DESIGN §1).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from zoo.errors import ZooError

_UMASK = os.umask(0o022)  # the only way to read it is to set it
os.umask(_UMASK)

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


def runs_dir() -> Path:
    """Where suites keep records, logs and checkpoints: $ZOO_RUNS, else runs/ in the repository."""
    return Path(os.environ.get("ZOO_RUNS") or ROOT / "runs")


def cache_dir() -> Path:
    """Where recomputable files live (features, ledgers): $ZOO_CACHE, else cache/ in the repository."""
    return Path(os.environ.get("ZOO_CACHE") or ROOT / "cache")


def ensure_writable(folder: Path) -> Path:
    """Create `folder` and prove it by writing a probe file. Raises ZooError before any work is done for nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ZooError(
            f"cannot write to {folder}: {error.strerror or error}. Expected a writable folder with free space; "
            "set ZOO_RUNS or ZOO_CACHE to another place, or free space there."
        ) from error
    return folder


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write to; it appears at `path`, complete and on disk, only when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        os.fchmod(handle, 0o666 & ~_UMASK)  # mkstemp's files are private; results on a shared disk are not
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # of a full disk, which the system does not name
        raise
    sync_folder(path.parent)


def remove_unfinished(folder: Path, *names: str) -> None:
    """Remove what `atomic_file` left in `folder` when it was killed. names: patterns of those it was to become.

    Only for whoever alone writes there: another process may be about to finish them.
    """
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing."""
    with atomic_file(path) as stream:
        stream.write(data.encode() if isinstance(data, str) else data)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no blanks, no NaN. What ids are hashed from."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def stat_signature(path: Path) -> str:
    """(path, size, mtime_ns, inode) as one string: changes whenever the file is replaced or written to."""
    status = path.stat()
    return f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def remembered(kind: str, signature: str, compute: Callable[[], Any]) -> Any:
    """`compute()`'s JSON value, remembered on disk under (kind, signature); the signature must cover all that it reads.

    One small file an entry, so that concurrent processes cannot spoil each other's. An unreadable entry is recomputed
    and written anew: the ledger is a memory, never a source.
    """
    entry = cache_dir() / "ledger" / kind / f"{hashlib.sha256(signature.encode()).hexdigest()[:32]}.json"
    try:
        stored = json.loads(entry.read_text())
        if stored["signature"] == signature:
            return stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, half-read or foreign: fall through and compute
    value = compute()
    write_atomic(entry, json.dumps({"signature": signature, "value": value}))
    return value


def remembered_sha256(path: Path) -> str:
    """`sha256_file`, read from the ledger while the file is unchanged."""
    return remembered("sha256", stat_signature(path), lambda: sha256_file(path))
