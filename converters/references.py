"""What does a user mean by a checkpoint: a file, a card's folder, an address, a published name? And bring it here.

`parse` understands the text and touches neither disk (but to see whether a file of that name is there) nor network;
`fetch` gives a local path with all that is known of it. Needs no torch.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from converters.cards import PublishedCheckpoint, did_you_mean, known_file, names, read_published
from converters.download import Expected, digest_of, download
from converters.network import is_loopback
from zoo.checkpoint import CARD_NAME, file_label
from zoo.errors import CheckpointError, ConfigError, several
from zoo.files import cache_dir

log = logging.getLogger(__name__)

UNDERSTOOD: Final = (
    "a checkpoint file (.safetensors, .pth, .pt, .tar, .ckpt, .pkl), or the folder of a card",
    "https://HOST/PATH, with the file's hash as #sha256=HEX where it is known",
    "hf://ORGANISATION/REPOSITORY/PATH/IN/IT, with @REVISION where one is meant",
    "the name of a published checkpoint",
)
ENDINGS: Final = (".safetensors", ".pth", ".pt", ".tar", ".ckpt", ".pkl", ".bin", ".torch", ".yaml", ".yml")
_HUB: Final = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)/(?P<file>[^@\s]+)(?:@(?P<revision>[\w./-]+))?")
# torch hub and OpenMMLab end a file's name with the first digits of its SHA-256; a date has eight digits too
_HASH_IN_NAME: Final = re.compile(r".+-(?P<digits>(?!(?:19|20)\d{6}\.)[0-9a-f]{8,64})\.(?:pth|pt|pth\.tar|safetensors)")


@dataclass(frozen=True, kw_only=True)
class Local:
    """A file or folder on this machine."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class Web:
    """A file at an address."""

    url: str


@dataclass(frozen=True, kw_only=True)
class Hub:
    """A file of a repository on the Hugging Face Hub. revision: a branch, a tag or a commit; None for the default."""

    repo: str
    file: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a text means. card: what is known of the published checkpoint that was named."""

    text: str
    location: Local | Web | Hub
    expected: Expected | None
    card: PublishedCheckpoint | None

    @property
    def path(self) -> Path | None:
        """The file or folder on this machine; None for what lies elsewhere."""
        return self.location.path if isinstance(self.location, Local) else None

    @property
    def label(self) -> str:
        """What its row is called when nobody has said."""
        if self.card is not None:
            return self.card.title
        if isinstance(self.location, Local):
            return file_label(self.location.path.name)
        place = self.location.file if isinstance(self.location, Hub) else urlsplit(self.location.url).path
        return file_label(unquote(place).rpartition("/")[2])


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A checkpoint that is here.

    path: a file, or as it was given: a folder with a card, a card. sha256: the file's; None for those two. url: where
    it came from, an hf:// address with the commit; None where nothing was downloaded. card: of a published checkpoint
    that was named.
    """

    path: Path
    sha256: str | None
    url: str | None
    card: PublishedCheckpoint | None


def parse(text: str) -> Reference:
    """What `text` refers to. Raises ConfigError, which lists what is understood, for everything else.

    A published name goes before a file of the same name in this folder; ./NAME is the file.
    """
    if "://" in text:
        return _address(text, card=None)
    if text in names():
        if Path(text).exists():
            log.info("%s: taken to be the published checkpoint; ./%s is what is called so here", text, text)
        card = read_published(text)
        return replace(_address(card.url, card=card), text=text)
    path = Path(os.path.expanduser(text))  # Path's own raises for ~NOBODY
    if text and (path.exists() or path.name != text or path.suffix.lower() in ENDINGS):
        return Reference(text=text, location=Local(path=path), expected=None, card=None)
    raise ConfigError(_not_understood(text, f"no such file, and no published checkpoint{did_you_mean(text, names())}"))


def fetch(reference: Reference, *, progress: bool = True) -> Fetched:
    """Bring what is referred to here; what is here already is not downloaded again.

    progress: a bar on a terminal, else a line in the log every ten seconds. Raises CheckpointError.
    """
    location = reference.location
    if isinstance(location, Local):
        path = location.path
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder; expected {UNDERSTOOD[0]}.")
        plain = path.is_file() and path.name != CARD_NAME and path.suffix not in (".yaml", ".yml")
        return Fetched(path=path, sha256=digest_of(path) if plain else None, url=None, card=None)
    if isinstance(location, Web):
        path, sha256 = download(location.url, reference.expected, progress=progress)
        return Fetched(path=path, sha256=sha256, url=location.url, card=reference.card)
    path, sha256, commit = _from_hub(location, reference.expected)
    url = f"hf://{location.repo}/{location.file}@{commit}"
    return Fetched(path=path, sha256=sha256, url=url, card=reference.card)


def known(sha256: str | None) -> PublishedCheckpoint | None:
    """The published checkpoint that a file with this hash is, as far as cards carry hashes; None when none says so."""
    return None if sha256 is None else known_file(sha256)


def _address(text: str, card: PublishedCheckpoint | None) -> Reference:
    """An https:// or hf:// address, with or without #sha256=HEX."""
    bare, _, fragment = text.partition("#")
    stated = re.fullmatch(r"sha256=([0-9a-fA-F]{8,64})", fragment)
    if "#" in text and stated is None:
        raise ConfigError(_not_understood(text, f"after # expected sha256=HEX of 8 to 64 digits, found '{fragment}'"))
    location: Web | Hub
    if bare.startswith("hf://"):
        match = _HUB.fullmatch(bare)
        if match is None or any(part in ("", ".", "..") for part in match["file"].split("/")):
            raise ConfigError(_not_understood(text, "not an address of a file on the Hub"))
        location = Hub(repo=match["repo"], file=match["file"], revision=match["revision"])
        file = match["file"].rpartition("/")[2]
    else:
        problem = _url_problem(bare)
        if problem:
            raise ConfigError(_not_understood(text, problem))
        location = Web(url=bare)
        file = urlsplit(bare).path.rpartition("/")[2]
    expected = Expected(algorithm="sha256", digits=stated[1].lower(), said_by="the reference") if stated else None
    return Reference(text=text, location=location, expected=expected or _expected(card, file), card=card)


def _expected(card: PublishedCheckpoint | None, file: str) -> Expected | None:
    """What is said of a file's bytes: by its card, else by its name."""
    if card is not None:
        said_by = f"configs/checkpoints/{card.name}.yaml"
        if card.sha256 or card.sha256_prefix:
            return Expected(algorithm="sha256", digits=card.sha256 or card.sha256_prefix or "", said_by=said_by)
        if card.md5_prefix:
            return Expected(algorithm="md5", digits=card.md5_prefix, said_by=said_by)
    match = _HASH_IN_NAME.fullmatch(file)
    if match is None:
        return None
    said_by = "the file's name (if its ending is no hash, say what the hash is: #sha256=HEX)"
    return Expected(algorithm="sha256", digits=match["digits"], said_by=said_by)


def _url_problem(url: str) -> str | None:
    """Why an address cannot be downloaded; None when it can."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"not a valid address ({error})"
    if parts.scheme == "http" and not is_loopback(host):
        return "http:// is for this machine only; expected https://, which nobody between can change"
    if parts.scheme not in ("https", "http"):
        return f"'{parts.scheme}://' is not understood"
    if not host or re.search(r"[\s\x00-\x1f\x7f]", url):
        return "not a valid address"
    if parts.username or parts.password:
        return "an address with a password in it would be written down with the results; download the file by hand"
    if parts.path.endswith("/") or not parts.path:
        return "the address names no file"
    return None


def _not_understood(text: str, problem: str) -> str:
    return several(f"'{text}': {problem.rstrip('.')}. What is understood:", UNDERSTOOD)


def _from_hub(location: Hub, expected: Expected | None) -> tuple[Path, str, str]:
    """(path, hex SHA-256, commit). What is here already is used as it is, and no network touched."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    folder = (cache_dir() / "downloads" / "hf").resolve()
    found = try_to_load_from_cache(location.repo, location.file, cache_dir=folder, revision=location.revision)
    fresh = not isinstance(found, str)
    if fresh:
        with _hub_errors(location):
            found = hf_hub_download(
                location.repo,
                location.file,
                revision=location.revision,
                cache_dir=folder,
                library_name="transferzoo",
            )
    path = Path(found)
    sha256, blob = digest_of(path), path.resolve().name
    where = f"{location.repo}/{location.file}"
    # the Hub's tag of a large file is its SHA-256, and huggingface_hub names the file it keeps by it
    tag = Expected(algorithm="sha256", digits=blob, said_by="the Hub")
    for said in filter(None, (tag if re.fullmatch(r"[0-9a-f]{64}", blob) else None, expected)):
        if not sha256.startswith(said.digits):
            raise CheckpointError(
                f"hf://{where}: expected sha256 {said.digits}, as {said.said_by} says, found {sha256} in {path}. "
                "Remove that file to download it anew."
            )
    commit = path.relative_to(folder).parts[2]  # models--ORGANISATION--REPOSITORY/snapshots/COMMIT/…
    if fresh:
        log.info("hf://%s: commit %s, sha256 %s", where, commit, sha256)
    return path, sha256, commit


@contextmanager
def _hub_errors(location: Hub) -> Iterator[None]:
    """huggingface_hub's errors as one sentence each."""
    import httpx2
    from huggingface_hub import errors

    where = f"hf://{location.repo}/{location.file}" + (f"@{location.revision}" if location.revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        problem = "its owner gives access on request only. Ask on the repository's page, then 'hf auth login'"
        raise CheckpointError(f"{where}: {problem}.") from error
    except errors.RepositoryNotFoundError as error:
        problem = f"no such repository, or a private one. Check 'https://huggingface.co/{location.repo}'"
        raise CheckpointError(f"{where}: {problem}; 'hf auth login' for a private one.") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no branch, tag or commit of that name.") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: the Hub cannot be reached, or HF_HUB_OFFLINE is set, and the file is not in {cache_dir()}. "
            "Try again with a network, or give the path of a file."
        ) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{where}: the repository has no file of that name.") from error
    except (httpx2.HTTPError, errors.HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{where}: not downloaded ({first}). The same command goes on from there.") from error
