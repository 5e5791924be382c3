"""A file that a killed run goes on from: torch.save's bytes followed by their SHA-256, written atomically."""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.errors import CheckpointError
from zoo.files import atomic_file

DIGEST_BYTES = hashlib.sha256().digest_size


def write_state(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, texts and containers of them. Raises OSError; nothing half-written stays."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    data = buffer.getbuffer()
    with atomic_file(path) as stream:
        stream.write(data)
        stream.write(hashlib.sha256(data).digest())


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU. Raises CheckpointError when it is damaged, unreadable or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if hashlib.sha256(data[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise CheckpointError(f"{path}: damaged, its {len(data):,} bytes do not match the checksum at their end.")
    try:
        return torch.load(io.BytesIO(data[:-DIGEST_BYTES]), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not a training state of this version ({error}).") from error
