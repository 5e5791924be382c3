"""Contents of files that were never written: what a reader says of a few names."""

from pathlib import Path
from typing import Any

import torch

from converters.layouts import LAYOUTS
from converters.layouts.table import Content
from converters.opening import Opened
from tests.converters.made import State


def content(value: Any) -> Content:
    """As if it had been read from a file."""
    return Content(
        Opened(path=Path("a.pth"), container="torch zip", way="weights_only", content=value, metadata={}, reduced=())
    )


def names(*prefixes: str) -> State:
    """A few names of every prefix."""
    return {f"{prefix}{name}": torch.zeros(1) for prefix in prefixes for name in ("conv1.weight", "layer1.0.bn1.bias")}


def tensors(*given: str) -> State:
    return {name: torch.zeros(1) for name in given}


def fits(value: Any) -> list[str]:
    """The layouts whose readers say yes."""
    return [name for name, reader in LAYOUTS.items() if reader(content(value)) is not None]
