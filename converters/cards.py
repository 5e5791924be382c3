"""Which checkpoints have others published, and what do their pages say of them? configs/checkpoints/*.yaml.

Facts only: an address, the layout of the file, how it wants its pixels, what is known of its bytes, its licence. Each
card names the page that says so. Needs no torch: planning and `python -m converters published` read cards only.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zoo import files
from zoo.checkpoint import Sha256
from zoo.config import Strict, load
from zoo.errors import ConfigError
from zoo.transforms import Pixels

Text = Annotated[str, Field(min_length=1)]
NOT_STATED = "not stated"


class PublishedCheckpoint(Strict):
    """configs/checkpoints/<name>.yaml.

    layout: a name of converters.layouts.LAYOUTS. sha256_prefix: the first 8 to 63 hex digits, as the file's name
    carries them where a project names its files so (torch hub, OpenMMLab). md5_prefix: the same of the MD5, as MoCo's
    page prints them. licence: what the publishing project states for the weights or, where it says nothing of them, for
    itself; else "not stated". source: the page that gives the address.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:_[a-z0-9]+)*$")]
    title: Text  # the row label on the page
    method: Text
    family: Text  # the recipe, and whose code ran it: two projects' runs of one recipe are two families
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"]
    layout: Text
    url: Annotated[str, Field(pattern=r"^(?:https|hf)://[^\s#]+$")]
    sha256: Sha256 | None
    sha256_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{8,63}$")] | None
    md5_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{8,32}$")] | None
    pixels: Pixels
    epochs: Annotated[int, Field(gt=0)] | None
    pretrain_data: Text
    licence: Text
    source: Annotated[str, Field(pattern=r"^https://\S+$")]
    note: Text | None

    @model_validator(mode="after")
    def _one_hash(self) -> "PublishedCheckpoint":
        if self.sha256 and self.sha256_prefix and not self.sha256.startswith(self.sha256_prefix):
            raise ValueError(f"sha256: expected it to begin with sha256_prefix, {self.sha256_prefix}")
        return self


def folder() -> Path:
    """Where the cards lie."""
    return files.CONFIGS / "checkpoints"


def names() -> tuple[str, ...]:
    """The names of all published checkpoints, sorted."""
    return tuple(sorted(path.stem for path in folder().glob("*.yaml")))


def read_published(name: str) -> PublishedCheckpoint:
    """The card `name`. Raises ConfigError when there is none, when it is malformed, or named unlike its file."""
    known = names()
    if name not in known:
        raise ConfigError(f"no published checkpoint is called '{name}'{did_you_mean(name, known)}")
    path = folder() / f"{name}.yaml"
    card = load(path, PublishedCheckpoint)
    if card.name != name:
        raise ConfigError(f"{path}: name: expected '{name}', as the file is called, found '{card.name}'.")
    return card


def did_you_mean(text: str, known: Sequence[str]) -> str:
    """The end of a message about a name that is none: the nearest ones, and where all of them stand."""
    begun = [name for name in known if text and name.startswith(text)]
    near = begun[:4] or difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{hint} 'python -m converters published' lists them all."


def known_file(sha256: str) -> PublishedCheckpoint | None:
    """The published checkpoint that a file with this hash is; None when no card's hash or hash prefix says so."""
    for name in names():
        card = read_published(name)
        said = card.sha256 or card.sha256_prefix
        if said is not None and sha256.startswith(said):
            return card
    return None
