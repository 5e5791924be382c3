"""What is known of a checkpoint: its card. Weights lie beside it as canonical safetensors.

The card carries all that decides how the weights are to be used (architecture, pixel mean/std/order) and where they
come from. `tensors_sha256` names the weights themselves: the same tensors re-saved or renamed keep it, one flipped bit
changes it. Needs no torch: planning reads cards only.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from zoo.config import Strict, dump_yaml, load
from zoo.errors import CheckpointError
from zoo.files import remembered_sha256, sha256_file, write_atomic
from zoo.transforms import Pixels

Arch = Literal["resnet18", "resnet34", "resnet50", "resnet101", "raw_pixels"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

WEIGHTS_NAME = "backbone.safetensors"
CARD_NAME = "card.yaml"


class CheckpointCard(Strict):
    """card.yaml."""

    name: str  # the row label on the page
    family: str  # the recipe: several seeds of one family can speak of the method, one file cannot
    arch: Arch
    pixels: Pixels
    weights: str  # file name beside the card
    weights_sha256: Sha256
    tensors_sha256: Sha256
    pretrain_seed: int | None
    epochs: int | None
    source_format: str  # how the weights came: canonical, torchvision, …
    licence: str | None
    lineage: tuple[str, ...]  # what was done to get here, oldest first
    url: str | None

    def preprocessing(self) -> dict[str, Any]:
        """The part that a cell's id covers beside the tensors."""
        return {"arch": self.arch, "pixels": self.pixels.model_dump(mode="json")}


def file_label(name: str) -> str:
    """A checkpoint file's name without its endings: what a row is called when nobody has said."""
    for ending in (".tar", ".safetensors", ".pth", ".pt", ".ckpt", ".pkl"):
        name = name.removesuffix(ending)
    return name


def read_card(path: Path) -> CheckpointCard:
    """The card at `path` (or in the folder `path`), its weights checked to be the ones it names.

    Raises CheckpointError when the weights are missing or have another SHA-256, ConfigError when the card is malformed.
    The hash comes from the ledger while the file is unchanged; `verify_weights` reads the bytes again.
    """
    path = path / CARD_NAME if path.is_dir() else path
    card = load(path, CheckpointCard)
    weights = path.parent / card.weights
    if not weights.is_file():
        raise CheckpointError(f"{path}: expected the weights at {weights}, found no such file.")
    _compare(weights, expected=card.weights_sha256, found=remembered_sha256(weights), card=path)
    return card


def verify_weights(card_path: Path, card: CheckpointCard) -> Path:
    """The path of a card's weights after reading every byte and comparing the hash. Raises CheckpointError."""
    weights = card_path.parent / card.weights
    _compare(weights, expected=card.weights_sha256, found=sha256_file(weights), card=card_path)
    return weights


def _compare(weights: Path, *, expected: str, found: str, card: Path) -> None:
    if found != expected:
        raise CheckpointError(
            f"{weights}: expected sha256 {expected[:16]}… as {card} says, found {found[:16]}…. The file has changed "
            "since its card was written: restore it, or remove its folder so that it is made anew."
        )


def write_card(folder: Path, card: CheckpointCard) -> Path:
    """Write `card` into `folder`, atomically; the weights must lie there already."""
    path = folder / CARD_NAME
    write_atomic(path, dump_yaml(card.model_dump(mode="json")))
    return path
