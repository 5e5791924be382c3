"""From a reference to a whole backbone and what is known of it: the one way in for commands, suites and the Python API.

A reference is a file, a card's folder, an https:// or hf:// address, or the name of a published checkpoint
(converters/references.py). Where several sources know a thing, the one that was stated by hand goes first, then the
published checkpoint's entry, then the file, then ImageNet's statistics, said aloud.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from converters.canonical import write_checkpoint
from converters.inspect import epochs
from converters.read import Checkpoint, read
from converters.references import Fetched, fetch, parse
from zoo.backbone import check_state, read_weights
from zoo.checkpoint import CARD_NAME, CheckpointCard, file_label, read_card, verify_weights
from zoo.errors import CheckpointError
from zoo.transforms import IMAGENET_PIXELS, Pixels


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A whole backbone under canonical names, and all that its card will say. checkpoint: None for one of our cards."""

    name: str
    family: str
    arch: str
    state: dict[str, Tensor]
    pixels: Pixels
    pixels_from: str
    source_format: str
    lineage: tuple[str, ...]
    pretrain_seed: int | None
    epochs: int | None
    licence: str | None
    url: str | None
    checkpoint: Checkpoint | None

    def write(self, folder: Path) -> CheckpointCard:
        """Canonical weights and card into `folder`."""
        return write_checkpoint(
            folder,
            self.state,
            name=self.name,
            family=self.family,
            arch=self.arch,
            pixels=self.pixels,
            source_format=self.source_format,
            lineage=self.lineage,
            pretrain_seed=self.pretrain_seed,
            epochs=self.epochs,
            licence=self.licence,
            url=self.url,
        )


def take_in(reference: str, *, name: str | None = None, take: str | None = None, pixels: Pixels | None = None) -> Taken:
    """Fetch, open and check a checkpoint.

    name: the row label. take: "WHERE:PREFIX" of a backbone that no layout describes. pixels: how the checkpoint wants
    its input, where that is known. Raises ConfigError for a reference that is none, CheckpointError for everything
    that can be wrong with the file.
    """
    fetched = fetch(parse(reference))
    path = fetched.path
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        return _own(path / CARD_NAME if path.is_dir() else path, name, take, pixels)
    checkpoint = read(path, take)
    card, reading = fetched.card, checkpoint.reading
    if card is not None and (reading.layout, checkpoint.arch) != (card.layout, card.arch):
        raise CheckpointError(
            f"{path}: expected {card.arch} in layout {card.layout}, as {card.name} says, found {checkpoint.arch} in "
            f"layout {reading.layout}: not the file that the entry describes."
        )
    label = name or (card.title if card else file_label(path.name))
    known, source = _pixels(pixels, fetched)
    return Taken(
        name=label,
        family=card.family if card else label,
        arch=checkpoint.arch,
        state=checkpoint.state,
        pixels=known,
        pixels_from=source,
        source_format=reading.layout,
        lineage=(f"{path.name} (sha256 {fetched.sha256}), read as {reading.layout}",),
        pretrain_seed=None,
        epochs=card.epochs if card else epochs(checkpoint.content, reading),
        licence=card.licence if card else None,
        url=fetched.url,
        checkpoint=checkpoint,
    )


def _own(path: Path, name: str | None, take: str | None, pixels: Pixels | None) -> Taken:
    """A card of ours: everything is known already."""
    if take is not None:
        raise CheckpointError(f"{path}: --take is for files of unknown layout; a card's weights are canonical.")
    card = read_card(path)
    weights = verify_weights(path, card)
    if card.arch == "raw_pixels":
        raise CheckpointError(f"{path}: 'raw_pixels' is no network; there is nothing to convert or load.")
    state = read_weights(weights)
    check_state(state, card.arch, source=str(weights))
    return Taken(
        name=name or card.name,
        family=card.family,
        arch=card.arch,
        state=state,
        pixels=pixels or card.pixels,
        pixels_from="stated" if pixels else "its card",
        source_format=card.source_format,
        lineage=card.lineage,
        pretrain_seed=card.pretrain_seed,
        epochs=card.epochs,
        licence=card.licence,
        url=card.url,
        checkpoint=None,
    )


def _pixels(stated: Pixels | None, fetched: Fetched) -> tuple[Pixels, str]:
    """(pixel statistics, who says so)."""
    if stated is not None:
        return stated, "stated"
    if fetched.card is not None:
        return fetched.card.pixels, f"configs/checkpoints/{fetched.card.name}.yaml"
    return IMAGENET_PIXELS, "assumed"
