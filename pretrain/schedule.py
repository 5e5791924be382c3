"""How fast does each part learn, and which samples make up each step?

Source: protocols §1.4. SGD with momentum and weight decay on all parameters, batch norms and biases included. The
rate follows a cosine stepped per epoch, lr_e = lr · ½ (1 + cos(π e / E)); the predictor's stays at lr if the recipe
says so. Warm-up (batches of 1024 and more) is stepped per epoch too: lr · (e + 1) / W for e < W, then the cosine spans
the E - W epochs that are left. It never applies to a constant predictor (simsiam#11).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from zoo.distributed import World
from zoo.recipe import PretrainConfig
from zoo.transforms import epoch_order

Key = tuple[int, int]  # (epoch, sample index)


def learning_rate(config: PretrainConfig, epoch: int) -> float:
    """The rate of every parameter but a constant predictor's, in epoch `epoch` (from 0)."""
    if epoch < config.warmup_epochs:
        return config.lr * (epoch + 1) / config.warmup_epochs
    spanned = config.epochs - config.warmup_epochs
    return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / spanned))


def predictor_rate(config: PretrainConfig, epoch: int) -> float:
    """The predictor's rate in epoch `epoch`."""
    constant = config.method.name == "simsiam" and config.method.predictor_lr == "constant"
    return config.lr if constant else learning_rate(config, epoch)


def make_optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.SGD:
    """SGD with two groups: the predictor's parameters (where it learns) and all others. Frozen ones are in none."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    predictor = [parameter for name, parameter in named.items() if name.startswith("predictor.")]
    others = [parameter for name, parameter in named.items() if not name.startswith("predictor.")]
    groups = [{"params": others, "part": "model"}]
    if predictor:
        groups.append({"params": predictor, "part": "predictor"})
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=config.arithmetic.fused_sgd or None,  # None: torch's choice, of ways that are equal
    )


def set_rates(optimizer: torch.optim.Optimizer, config: PretrainConfig, epoch: int) -> None:
    """Give every group its rate for `epoch`."""
    for group in optimizer.param_groups:
        rate = predictor_rate if group["part"] == "predictor" else learning_rate
        group["lr"] = rate(config, epoch)


def global_batches(
    seed: int, num_samples: int, *, batch_size: int, epochs: int, start_step: int
) -> Iterator[list[Key]]:
    """The batches of all processes together, from step `start_step` of the run to its end; incomplete ones dropped."""
    steps = num_samples // batch_size  # an epoch
    for epoch in range(start_step // steps, epochs):
        order = epoch_order(seed, epoch, num_samples)
        first = start_step - epoch * steps if epoch == start_step // steps else 0
        for step in range(first, steps):
            yield [(epoch, int(index)) for index in order[step * batch_size : (step + 1) * batch_size]]


def local_part(batch: list[Key], me: World) -> list[Key]:
    """This process's consecutive share of a global batch: the processes' shares in rank order are the batch."""
    size = len(batch) // me.size
    return batch[me.rank * size : (me.rank + 1) * size]


def labels_of(batch: list[Key], labels: np.ndarray) -> torch.Tensor:
    """(len(batch),) int64."""
    return torch.from_numpy(labels[[index for _, index in batch]])
