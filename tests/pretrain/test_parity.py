"""Ten steps of the training loop against a plain reading of the paper's Algorithm 1, for every option, in fp64.

The other side is written out here from the paper and protocols §1 alone: batch norm, heads, loss, schedule and SGD
update by hand on a list of tensors, gradients by autograd. Only the numbers that training starts from are copied.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d

from pretrain.preflight import check
from pretrain.session import Session, open_session
from pretrain.train import _step  # the step itself, without files and monitor  # pyright: ignore[reportPrivateUsage]
from zoo.distributed import World

STEPS, STEPS_PER_EPOCH = 10, 2
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
Take = Callable[[], Tensor]  # the next parameter, in the order they are registered in

# layers of the heads: b with bias, n batch norm with affine, c without, r ReLU
PROJECTOR = {
    "none": ("br", "br", "b"),
    "hidden": ("nr", "nr", "b"),
    "default": ("nr", "nr", "c"),
    "affine": ("nr", "nr", "n"),
    "predictor_output": ("nr", "nr", "c"),
}
PREDICTOR = {
    "none": ("br", "b"),
    "hidden": ("nr", "b"),
    "default": ("nr", "b"),
    "affine": ("nr", "b"),
    "predictor_output": ("nr", "n"),
}


class TinyBackbone(nn.Module):
    """In place of a ResNet: a convolution, a batch norm, pooling."""

    num_features = 6

    def __init__(self, arch: str, *, zero_init_residual: bool) -> None:
        super().__init__()
        assert arch == "resnet18" and zero_init_residual
        self.conv = nn.Conv2d(3, self.num_features, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(self.num_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.bn(self.conv(images)).relu().mean((2, 3))


def batch_norm(x: Tensor) -> Tensor:
    over = [dim for dim in range(x.ndim) if dim != 1]
    mean = x.mean(over, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(over, keepdim=True) + 1e-5).sqrt()


def affine_norm(x: Tensor, take: Take) -> Tensor:
    shape = [1, -1] + [1] * (x.ndim - 2)
    return batch_norm(x) * take().view(shape) + take().view(shape)


def tiny_features(images: Tensor, take: Take) -> Tensor:
    return affine_norm(conv2d(images, take(), padding=1), take).clamp(min=0).mean((2, 3))


def resnet18_features(images: Tensor, take: Take) -> Tensor:
    x = affine_norm(conv2d(images, take(), stride=2, padding=3), take).clamp(min=0)
    x = max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(4):
        for block in range(2):
            shrinks = stage > 0 and block == 0
            y = affine_norm(conv2d(x, take(), stride=2 if shrinks else 1, padding=1), take).clamp(min=0)
            y = affine_norm(conv2d(y, take(), padding=1), take)
            x = (y + (affine_norm(conv2d(x, take(), stride=2), take) if shrinks else x)).clamp(min=0)
    return x.mean((2, 3))


def head(x: Tensor, layers: Sequence[str], take: Take) -> Tensor:
    for layer in layers:
        x = x @ take().T
        if "b" in layer:
            x = x + take()
        if "n" in layer:
            x = affine_norm(x, take)
        if "c" in layer:
            x = batch_norm(x)
        if "r" in layer:
            x = x.clamp(min=0)
    return x


def cosine(p: Tensor, z: Tensor) -> Tensor:
    return -(p / p.square().sum(1, keepdim=True).sqrt() * z / z.square().sum(1, keepdim=True).sqrt()).sum(1).mean()


def cross_entropy(p: Tensor, z: Tensor) -> Tensor:
    soft_z = z.exp() / z.exp().sum(1, keepdim=True)
    return -(soft_z * (p - p.exp().sum(1, keepdim=True).log())).sum(1).mean()


def rate(epoch: int, recipe: dict[str, Any]) -> float:
    top, warmup = recipe["base_lr"] * recipe["batch_size"] / 256, recipe["warmup_epochs"]
    if epoch < warmup:
        return top * (epoch + 1) / warmup
    return top * (1 + math.cos(math.pi * (epoch - warmup) / (recipe["epochs"] - warmup))) / 2


class Reference:
    """Algorithm 1. `parameters`: f's backbone, f's projector, h, in that order; the last `of_h` are h's."""

    def __init__(
        self, parameters: list[Tensor], of_h: int, features: Callable[[Tensor, Take], Tensor], recipe: dict[str, Any]
    ) -> None:
        self.of_f = len(parameters) - of_h
        self.parameters = [parameter.clone().requires_grad_() for parameter in parameters]
        self.momenta: list[Tensor | None] = [None] * len(parameters)
        self.features, self.recipe, self.method = features, recipe, recipe["method"]

    def f(self, view: Tensor) -> Tensor:
        numbers = iter(self.parameters[: self.of_f])
        z = head(self.features(view, numbers.__next__), PROJECTOR[self.method["head_norm"]], numbers.__next__)
        assert next(numbers, None) is None
        return z

    def h(self, z: Tensor) -> Tensor:
        numbers = iter(self.parameters[self.of_f :])
        none = self.method["predictor"] == "none"
        p = z if none else head(z, PREDICTOR[self.method["head_norm"]], numbers.__next__)
        assert next(numbers, None) is None
        return p

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        z = [self.f(view) for view in views]
        target = [each.detach() for each in z] if self.method["stop_gradient"] else z
        d = cosine if self.method["similarity"] == "cosine" else cross_entropy
        if self.method["symmetry"] == "symmetric":
            return d(self.h(z[0]), target[1]) / 2 + d(self.h(z[1]), target[0]) / 2
        if self.method["symmetry"] == "asymmetric":
            return d(self.h(z[0]), target[1])
        return d(self.h(z[0]), target[1]) / 2 + d(self.h(z[2]), target[3]) / 2

    def update(self, epoch: int) -> None:
        recipe = self.recipe
        for number, parameter in enumerate(self.parameters):
            in_h = number >= self.of_f
            if in_h and self.method["predictor"] == "fixed_random":
                continue
            lr = rate(epoch, recipe)
            if in_h and self.method["predictor_lr"] == "constant":
                lr = recipe["base_lr"] * recipe["batch_size"] / 256
            assert parameter.grad is not None
            step = parameter.grad + recipe["weight_decay"] * parameter.detach()
            before = self.momenta[number]
            self.momenta[number] = moved = step if before is None else recipe["momentum"] * before + step
            self.parameters[number] = (parameter.detach() - lr * moved).requires_grad_()

    def step(self, views: Sequence[Tensor], epoch: int) -> float:
        loss = self.loss(views)
        loss.backward()
        self.update(epoch)
        return loss.item()


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "decayed predictor": {"predictor_lr": "decayed"},
    "no predictor": {"predictor": "none"},
    "fixed random predictor": {"predictor": "fixed_random"},
    "no stop-gradient": {"stop_gradient": False},
    "no batch norm in the heads": {"head_norm": "none"},
    "batch norm in hidden layers": {"head_norm": "hidden"},
    "output batch norm with affine": {"head_norm": "affine"},
    "batch norm on the predictor's output": {"head_norm": "predictor_output"},
    "cross-entropy": {"similarity": "cross_entropy"},
    "cross-entropy without stop-gradient": {"similarity": "cross_entropy", "stop_gradient": False},
    "asymmetric": {"symmetry": "asymmetric"},
    "asymmetric without predictor": {"symmetry": "asymmetric", "predictor": "none"},
    "asymmetric, two pairs": {"symmetry": "asymmetric_double"},
}


def views(number: int, recipe: dict[str, Any], size: int) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    shape = (recipe["batch_size"], 3, size, size)
    for _ in range(STEPS):
        yield tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(number))


def compare(
    tiny: Any, features: Callable[[Tensor, Take], Tensor], size: int, steps: int = STEPS, **changes: Any
) -> Session:
    """Both sides for some steps; the session after them."""
    recipe = tiny.recipe(epochs=STEPS // STEPS_PER_EPOCH, **changes)
    config = tiny.config(epochs=STEPS // STEPS_PER_EPOCH, **changes)
    plan = check(config, seed=0, overrides=(), out=tiny.folder / "out", workers=0, processes=1)
    session = open_session(plan, ALONE, torch.float64)
    start = [parameter.detach().clone() for parameter in session.core.parameters()]
    reference = Reference(start, len(list(session.core.get_submodule("predictor").parameters())), features, recipe)
    for number, batch in enumerate(islice(views(session.core.num_views, recipe, size), steps)):
        epoch = number // STEPS_PER_EPOCH
        found = _step(session, number + 1, epoch, batch, torch.empty(0), interrupted=0).loss
        assert found == pytest.approx(reference.step(batch, epoch), rel=0, abs=1e-9), f"step {number + 1}"
    for (name, parameter), expected in zip(session.core.named_parameters(), reference.parameters, strict=True):
        assert (parameter - expected).abs().max() <= 1e-9, name
    return session


@pytest.fixture
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.simsiam.Backbone", TinyBackbone)


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
def test_each_option_is_the_papers(tiny: Any, option: dict[str, Any]) -> None:
    compare(tiny, tiny_features, 6, method={**tiny.recipe()["method"], **option})


@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_epochs": 2},
        {"warmup_epochs": 2, "predictor_lr": "decayed"},
        {"batch_size": 16},
        {"weight_decay": 0.1, "momentum": 0.5},
    ],
    ids=["warm-up", "warm-up and decayed predictor", "batch of 16", "decay and momentum"],
)
def test_schedule_and_update_are_the_papers(tiny: Any, changes: dict[str, Any]) -> None:
    changes = dict(changes)
    method = {**tiny.recipe()["method"], "predictor_lr": changes.pop("predictor_lr", "constant")}
    compare(tiny, tiny_features, 6, method=method, **changes)


@pytest.mark.usefixtures("tiny_backbone")
def test_a_fixed_predictor_stays_as_it_was_drawn(tiny: Any) -> None:
    method = {**tiny.recipe()["method"], "predictor": "fixed_random"}
    session = compare(tiny, tiny_features, 6, method=method)
    fresh = open_session(session.plan, ALONE, torch.float64)
    for (name, found), drawn in zip(session.core.named_parameters(), fresh.core.parameters(), strict=True):
        assert torch.equal(found, drawn) == name.startswith("predictor."), name


def test_a_whole_resnet18_is_the_papers(tiny: Any) -> None:
    """Three steps, as it is slow: residual branches start at zero and have gradients from the second step on."""
    compare(tiny, resnet18_features, 16, steps=3, batch_size=4, base_lr=0.5, collapse={"below": 0.9})
