"""Linear classifiers on frozen features, and the optimisers that train them (protocols §2.1).

The two LARS variants differ in where the learning rate enters (D4): apex's LARC scales the gradient and leaves the rate
to SGD, which multiplies the momentum buffer with it; mmselfsup folds the rate into what the buffer accumulates. With a
decaying rate the updates differ slightly. Neither excludes the bias; while a norm is zero, as the bias's is at first,
the local rate is 1.
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

OptimiserName = Literal["lars_mmselfsup", "lars_apex"]


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


def cosine_lr(lr: float, epoch: int, num_epochs: int) -> float:
    """Cosine decay stepped per epoch: lr·½(1 + cos(π·epoch/num_epochs)), epoch = 0 … num_epochs−1."""
    return lr * 0.5 * (1.0 + math.cos(math.pi * epoch / num_epochs))


class Lars(Optimizer):
    """SGD with momentum and a local rate trust·‖w‖ / (‖g‖ + weight_decay·‖w‖ + eps) for each parameter tensor.

    variant lars_apex:       u = rate·(g + wd·w);     m ← momentum·m + u;  w ← w − lr·m
    variant lars_mmselfsup:  u = lr·rate·(g + wd·w);  m ← momentum·m + u;  w ← w − m
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        variant: OptimiserName,
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
