"""Checkpoint files as their own code would write them: what the readers are tested on.

Each is built by the library itself where it installs here, else module by module under the names that the source gives
them; never by turning a reader's table round. `MADE` of made_research.py and made_libraries.py are the whole list.
"""

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def _without_model_index() -> None:
    """Let mmpretrain be imported without model-index, which only its command line needs.

    Its wheel installs a top-level package `tests`, which would hide this one.
    """
    for name, attribute in (("load_model_index", "load"), ("models", ""), ("models.Model", "Model")):
        module = ModuleType(f"modelindex.{name}")
        setattr(module, attribute or "__path__", None if attribute else [])
        sys.modules.setdefault(module.__name__, module)
    sys.modules.setdefault("modelindex", ModuleType("modelindex"))


_without_model_index()


@dataclass(frozen=True, kw_only=True)
class Made:
    """One file's content and the truth about it.

    backbone: canonical name → tensor. forward: normalised (N, 3, H, W) → (N, D) by the source's own network, in eval
    mode, global average of the last stage. groups: the groups of other tensors a reader must report. source: where the
    names come from.
    """

    layout: str
    content: Any
    save: Literal["torch", "pickle", "safetensors"]
    arch: str
    backbone: State
    forward: Callable[[Tensor], Tensor]
    groups: frozenset[str]
    source: str


def write(made: Made, path: Path) -> Path:
    """Save as the source does."""
    if made.save == "torch":
        torch.save(made.content, path)
    elif made.save == "safetensors":
        safetensors.torch.save_file(made.content, path)
    else:
        path.write_bytes(pickle.dumps(made.content, protocol=2))
    return path


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """`network` in eval mode with every floating-point value drawn anew: batch-norm statistics away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(noise + 0.5)
            elif tensor.dim() > 1:
                tensor.copy_((noise - 0.5) * (6 / tensor[0].numel()) ** 0.5)
            else:
                tensor.copy_(noise * 0.5 + (0.75 if name.endswith("weight") else -0.25))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(seed + 3)
    return network.eval()
