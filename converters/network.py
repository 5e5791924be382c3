"""The bytes at an address, into a file: from where the last try ended, until all of them are there.

Broken connections and servers in a bad moment are tried again; whatever else goes wrong is an error that says what to
do. Only https is followed, except on this machine itself.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from zoo.errors import CheckpointError
from zoo.files import write_atomic

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import Client, Response

log = logging.getLogger(__name__)

TRIES: Final = 5  # in a row that bring nothing new
BACK_OFF = 1.0  # seconds before the second try, doubled before each further one
CONNECT_SECONDS: Final = 20.0
SILENT_SECONDS: Final = 60.0  # without one byte: the connection is dead
MAX_REDIRECTS: Final = 5
CHUNK: Final = 1 << 18
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that may be gone at the next try

Show = Callable[[int, int | None], None]  # bytes that are there, bytes there will be


class _Broken(Exception):
    """The connection failed, or the server did, in a way that may pass."""


@dataclass(frozen=True, kw_only=True)
class Got:
    """What came."""

    url: str  # after redirects
    size: int
    sha256: str
    etag: str | None
    last_modified: str | None


def bring(url: str, partial: Path, show: Show) -> Got:
    """Fill `partial`, whose folder exists, with what lies at `url`, without what it holds of that already.

    show: called with every piece. Raises CheckpointError.
    """
    with _client() as client:
        return _until_whole(client, url, partial, show)


def forget(partial: Path) -> None:
    """Remove what was kept for the next try."""
    partial.unlink(missing_ok=True)
    _beside(partial).unlink(missing_ok=True)


def is_loopback(host: str | None) -> bool:
    """Whether a host is this machine, by its name or address."""
    if host is None or host.lower() == "localhost":
        return host is not None
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _until_whole(client: "Client", url: str, partial: Path, show: Show) -> Got:
    """Try until all of it is there, or until TRIES in a row bring nothing new."""
    failures, best = 0, _size(partial)
    while True:
        try:
            return _once(client, url, partial, show)
        except _Broken as error:
            failures = 1 if _size(partial) > best else failures + 1
            best = max(best, _size(partial))
            if failures == TRIES:
                here = _size(partial)
                kept = f"{here:,} bytes are kept; the same command goes on from there." if here else ""
                raise CheckpointError(
                    f"{url}: {error}. {TRIES} tries in a row brought nothing new; is the network up? {kept}".rstrip()
                ) from error
            wait = BACK_OFF * 2 ** (failures - 1)
            log.info("%s: %s; next try in %.0f s", url, error, wait)
            time.sleep(wait)


def _once(client: "Client", url: str, partial: Path, show: Show) -> Got:
    """One request, from where the last one ended; raises _Broken when it ends early or the server has a bad moment."""
    import httpx2

    have, validator = _size(partial), _validator(partial)
    asked = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    try:
        with _opened(client, url, asked) as response:
            start, total = _extent(response, have if asked else 0, partial)
            etag, last_modified = response.headers.get("etag"), response.headers.get("last-modified")
            if start == 0:
                partial.unlink(missing_ok=True)  # first: a kill must not leave old bytes under a new tag
                kept = {"etag": etag, "last_modified": last_modified}
                write_atomic(_beside(partial), json.dumps(kept))
            if total is not None and shutil.disk_usage(partial.parent).free < total - start:
                raise CheckpointError(
                    f"{partial.parent}: expected {total - start:,} bytes of free space for {url}, found "
                    f"{shutil.disk_usage(partial.parent).free:,}. Free space, or set ZOO_CACHE to a larger disk."
                )
            size, sha256 = _write(response, url, partial, start, total, show)
            final_url = str(response.url)
    except httpx2.InvalidURL as error:
        raise CheckpointError(f"{url}: not a valid address ({error}).") from error
    except httpx2.TransportError as error:
        raise _Broken(_said(error)) from error
    if total is not None and size != total:
        raise _Broken(f"the connection ended after {size:,} of {total:,} bytes")
    if size == 0:
        forget(partial)
        raise CheckpointError(f"{url}: the file there is empty.")
    return Got(url=final_url, size=size, sha256=sha256, etag=etag, last_modified=last_modified)


@contextmanager
def _opened(client: "Client", url: str, headers: dict[str, str]) -> "Iterator[Response]":
    """The answer to a GET after redirects: to https only, or on this machine."""
    target = url
    for _ in range(MAX_REDIRECTS + 1):
        with client.stream("GET", target, headers=headers) as response:
            if not response.has_redirect_location:
                yield response
                return
            onward = urljoin(target, response.headers["location"])
        before, after = urlsplit(target), urlsplit(onward)
        local = all(part.scheme == "http" and is_loopback(part.hostname) for part in (before, after))
        if after.scheme != "https" and not local:
            raise CheckpointError(
                f"{url}: it is redirected to {onward}; expected https, as anybody between could change the bytes of "
                "anything else. Download it by hand, and give the file."
            )
        target = onward
    raise CheckpointError(f"{url}: redirected more than {MAX_REDIRECTS} times, last to {target}.")


def _extent(response: "Response", have: int, partial: Path) -> tuple[int, int | None]:
    """(first byte that this answer brings, size of the whole file or None). Raises for answers that bring no file."""
    url, status = str(response.url), response.status_code
    if status in _PASSING:
        raise _Broken(f"the server answered {status} {response.reason_phrase}")
    if status == 206 and have:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
        if match is not None and int(match[1]) == have:
            return have, int(match[2]) + 1 if match[3] == "*" else int(match[3])
    if status in (206, 416):
        forget(partial)
        raise _Broken("the server does not have the rest of what is here; starting over")
    if status != 200:
        why = {
            401: "it wants a login",
            403: "it is withdrawn, or wants a login",
            404: "no such file is there",
            410: "the file is gone",
        }.get(status, "expected 200")
        raise CheckpointError(
            f"{url}: the server answered {status} {response.reason_phrase}: {why}. Check the address, or download "
            "the file by hand and give its path."
        )
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise CheckpointError(
            f"{url}: expected the file's bytes, found them sent compressed ({response.headers['content-encoding']}), "
            "so neither size nor hash can be compared. Download it by hand, and give the file."
        )
    if response.headers.get("content-type", "").lower().startswith("text/html"):
        raise _web_page(url)
    length = response.headers.get("content-length")
    return 0, int(length) if length is not None else None


def _write(response: "Response", url: str, partial: Path, start: int, total: int | None, show: Show) -> tuple[int, str]:
    """Append what comes; (size, hex SHA-256) of all that is there then."""
    hashed, size = hashlib.sha256(), start
    try:
        if start:
            with partial.open("rb") as stream:
                while block := stream.read(CHUNK):
                    hashed.update(block)
        with partial.open("ab" if start else "wb") as stream:
            for chunk in response.iter_raw():
                if size == 0:
                    _check_beginning(chunk, url)
                stream.write(chunk)
                hashed.update(chunk)
                size += len(chunk)
                show(size, total)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise CheckpointError(
            f"{partial}: {error.strerror} after {size:,} bytes of {url}. Free space, or set ZOO_CACHE to another "
            "place; what has come is kept, and the same command goes on from there."
        ) from error
    return size, hashed.hexdigest()


def _check_beginning(chunk: bytes, url: str) -> None:
    start = chunk[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise _web_page(url)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{url}: a Git LFS pointer, not the file it stands for; give the address of the file.")


def _web_page(url: str) -> CheckpointError:
    return CheckpointError(
        f"{url}: expected a checkpoint file, found a web page. It may want a login or a click, or be the page about "
        "the file; give the address of the file itself, or download it by hand and give its path."
    )


def _beside(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _validator(partial: Path) -> str | None:
    """What names the version of the file that the kept bytes are of; weak tags cannot (RFC 9110, 13.1.5)."""
    try:
        kept: dict[str, Any] = json.loads(_beside(partial).read_text())
    except (OSError, ValueError):
        return None
    etag = kept.get("etag")
    return etag if etag and not etag.startswith("W/") else kept.get("last_modified")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@cache
def _certificates() -> "SSLContext":
    """The system's, which take a moment to read."""
    import httpx2

    return httpx2.create_ssl_context()


def _client() -> "Client":
    # httpx2, as huggingface_hub brings it: proxies, the system's certificates, time-outs and a check of the body
    # against Content-Length are its business. It does not resume, so the loop above is ours. Imported here: 0.2 s.
    import httpx2

    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request
    return httpx2.Client(
        verify=_certificates(),
        headers={"Accept-Encoding": "identity", "User-Agent": "TransferZoo"},
        timeout=httpx2.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
    )
