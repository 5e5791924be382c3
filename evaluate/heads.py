"""Linear classifiers on frozen features, and the optimisers that train them (protocols §2.1, §2.2).

The two LARS variants differ in where the learning rate enters (D4): apex's LARC scales the gradient and leaves the rate
to SGD, which multiplies the momentum buffer with it; mmselfsup folds the rate into what the buffer accumulates. With a
decaying rate the updates differ slightly. Neither excludes the bias; while a norm is zero, as the bias's is at first,
the local rate is 1.
"""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from evaluate.recipes import Cosine, LarsConfig, LarsName, OptimiserConfig, Schedule


class Head(nn.Module):
    """(B, D) features → (B, num_classes) logits: batch norm a channel where the recipe has one, then a linear layer.

    num_channels: of the map the features were pooled from; each has D / num_channels values, one after the other.
    The weight is drawn from N(0, std²) by `seed` alone, the bias is 0.
    """

    def __init__(
        self,
        num_features: int,
        num_channels: int,
        num_classes: int,
        *,
        batch_norm: Literal["none", "plain", "affine"],
        std: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.norm = None if batch_norm == "none" else nn.BatchNorm1d(num_channels, affine=batch_norm == "affine")
        self.linear = linear_head(num_features, num_classes, std=std, seed=seed)

    def forward(self, rows: Tensor) -> Tensor:
        if self.norm is not None:
            rows = self.norm(rows.view(len(rows), self.num_channels, -1)).flatten(1)
        return self.linear(rows)


def linear_head(num_features: int, num_classes: int, *, std: float, seed: int) -> nn.Linear:
    """Linear(num_features → num_classes), weight ~ N(0, std²) drawn from `seed`, bias 0."""
    with torch.device("meta"):
        head = nn.Linear(num_features, num_classes)  # no draw from the global generator
    head = head.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        nn.init.normal_(head.weight, 0.0, std, generator=generator)
        nn.init.zeros_(head.bias)
    return head


def learning_rate(schedule: Schedule, lr: float, epoch: int, num_epochs: int) -> float:
    """The rate of an epoch, counted from 0. Both schedules are stepped per epoch.

    cosine: lr·½(1 + cos(π·epoch/num_epochs)). steps: lr times `factor` for every milestone reached.
    """
    if isinstance(schedule, Cosine):
        return lr * 0.5 * (1.0 + math.cos(math.pi * epoch / num_epochs))
    return lr * schedule.factor ** sum(epoch >= milestone for milestone in schedule.milestones)


def make_optimiser(head: Head, config: OptimiserConfig, *, lr: float, weight_decay: float) -> Optimizer:
    """The recipe's optimiser over the head's parameters; batch norm's own are not decayed (D10's variant)."""
    norm = list(head.norm.parameters()) if head.norm is not None else []
    groups = [{"params": list(head.linear.parameters()), "weight_decay": weight_decay}]
    groups += [{"params": norm, "weight_decay": 0.0}] if norm else []
    if isinstance(config, LarsConfig):
        return Lars(
            groups,
            variant=config.name,
            lr=lr,
            momentum=config.momentum,
            weight_decay=weight_decay,
            trust_coefficient=config.trust_coefficient,
            eps=config.eps,
        )
    return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)


class Lars(Optimizer):
    """SGD with momentum and a local rate trust·‖w‖ / (‖g‖ + weight_decay·‖w‖ + eps) for each parameter tensor.

    variant lars_apex:       u = rate·(g + wd·w);     m ← momentum·m + u;  w ← w − lr·m
    variant lars_mmselfsup:  u = lr·rate·(g + wd·w);  m ← momentum·m + u;  w ← w − m
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        variant: LarsName,
        lr: float,
        momentum: float,
        weight_decay: float,
        trust_coefficient: float,
        eps: float,
    ) -> None:
        self.variant = variant
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: no line search here
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, float]) -> None:
        decay = group["weight_decay"]
        weight_norm, gradient_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(gradient)
        rate = group["trust_coefficient"] * weight_norm / (gradient_norm + decay * weight_norm + group["eps"])
        rate = torch.where((weight_norm > 0) & (gradient_norm > 0), rate, torch.ones_like(rate))
        scaled = rate * (gradient + decay * parameter)
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(group["momentum"])
        if self.variant == "lars_apex":
            parameter.sub_(buffer.add_(scaled), alpha=group["lr"])
        else:
            parameter.sub_(buffer.add_(scaled, alpha=group["lr"]))
