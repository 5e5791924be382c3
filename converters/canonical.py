"""Write canonical weights with their card: what every later stage reads."""

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from zoo.backbone import COUNTER, fingerprint
from zoo.checkpoint import WEIGHTS_NAME, CheckpointCard, write_card
from zoo.files import sha256_file, write_atomic
from zoo.transforms import Pixels


def write_checkpoint(
    folder: Path,
    state: dict[str, Tensor],
    *,
    name: str,
    family: str,
    arch: str,
    pixels: Pixels,
    source_format: str,
    lineage: tuple[str, ...],
    pretrain_seed: int | None = None,
    epochs: int | None = None,
    licence: str | None = None,
    url: str | None = None,
) -> CheckpointCard:
    """Write `folder`/backbone.safetensors (fp32, in name order), then `folder`/card.yaml. Atomic, card last."""
    tensors = {
        key: state[key].detach().to("cpu", torch.int64 if key.endswith(COUNTER) else torch.float32).contiguous()
        for key in sorted(state)
    }
    weights = folder / WEIGHTS_NAME
    write_atomic(weights, safetensors.torch.save(tensors))
    card = CheckpointCard.model_validate(
        {
            "name": name,
            "family": family,
            "arch": arch,
            "pixels": pixels,
            "weights": WEIGHTS_NAME,
            "weights_sha256": sha256_file(weights),
            "tensors_sha256": fingerprint(tensors),
            "pretrain_seed": pretrain_seed,
            "epochs": epochs,
            "source_format": source_format,
            "licence": licence,
            "lineage": lineage,
            "url": url,
        }
    )
    write_card(folder, card)
    return card
