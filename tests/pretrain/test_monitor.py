"""The collapse probe and its rule, and the kNN monitor that leaves no trace."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.monitor import (
    CollapseWatch,
    StepValues,
    effective_rank,
    gradient_norm,
    knn_top1,
    monitor_indices,
    reduce_step,
)
from pretrain.session import build_model
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.recipe import CollapseRule

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def deviation(z: torch.Tensor) -> float:
    value = reduced(z=z).std
    assert value is not None
    return value


def reduced(loss: float = 0.0, z: torch.Tensor | None = None, **changes: Any) -> StepValues:
    asked = {"gradient": torch.tensor(1.0), "replaced": 0, "interrupted": 0, "with_rank": False, "me": ALONE}
    return reduce_step(torch.tensor(loss), z, **{**asked, **changes})


def test_the_deviation_is_the_papers_times_the_root_of_d() -> None:
    z = torch.randn(64, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    plain = (z / z.norm(dim=1, keepdim=True)).std(0, unbiased=False).mean() * math.sqrt(20)
    assert deviation(z) == pytest.approx(plain.item(), abs=1e-12)


def test_random_outputs_give_one_and_a_constant_gives_zero() -> None:
    z = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    assert deviation(z) == pytest.approx(1.0, abs=0.01)
    assert deviation(torch.ones(64, 1) * z[:1]) == pytest.approx(0.0, abs=1e-6)


def test_the_step_carries_loss_and_the_wish_to_stop() -> None:
    values = reduced(-0.25, interrupted=130, gradient=torch.tensor(2.5), replaced=3)
    assert values.loss == -0.25 and values.std is None and values.interrupted == 130 and values.is_finite
    assert (values.gradient_norm, values.replaced, values.effective_rank) == (2.5, 3, None)


@pytest.mark.parametrize("loss, gradient", [(math.nan, 1.0), (math.inf, 1.0), (0.0, math.nan), (0.0, math.inf)])
def test_neither_a_loss_nor_a_gradient_may_be_anything_but_finite(loss: float, gradient: float) -> None:
    values = reduced(loss, torch.ones(4, 3), gradient=torch.tensor(gradient), with_rank=True)
    assert not values.is_finite and values.effective_rank is None


def test_the_gradients_norm_is_that_of_all_parameters_together() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.weight.grad, layer.bias.grad = torch.full((2, 2), 2.0), torch.tensor([0.0, 3.0])
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    assert gradient_norm([*layer.parameters(), frozen]).item() == 5.0


def test_the_effective_rank_is_that_of_the_singular_values() -> None:
    """Against numpy's decomposition, for more rows than columns and for fewer."""
    for shape in ((40, 7), (12, 30)):
        z = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
        unit = (z / z.norm(dim=1, keepdim=True)).numpy()
        singular = np.linalg.svd(unit - unit.mean(0), compute_uv=False)
        shares = singular[singular > 1e-12] / singular.sum()
        expected = math.exp(-(shares * np.log(shares)).sum())
        assert reduced(z=z, with_rank=True).effective_rank == pytest.approx(expected, rel=1e-9)


def test_the_effective_rank_counts_directions() -> None:
    axes = torch.eye(5, 16)
    assert effective_rank(torch.cat([axes, -axes]).double()) == pytest.approx(5.0)
    assert effective_rank(axes[:1].repeat(8, 1).double()) == pytest.approx(1.0)  # a constant
    assert effective_rank(torch.cat([axes[:1], -axes[:1]]).double()) == pytest.approx(1.0)  # a line
    assert effective_rank(torch.eye(64).double()) == pytest.approx(63.0)  # less one, for the mean


def test_the_rule_is_a_median_over_a_full_window_after_the_grace() -> None:
    rule = CollapseRule(below=0.5, window=3, grace_steps=4, action="stop")
    watch = CollapseWatch(rule)
    seen = []
    for step, std in enumerate([0.1, 0.1, 0.1, 0.9, 0.1, 0.9, 0.9, 0.4, 0.4], start=1):
        watch.add(std)
        seen.append(watch.collapsed(step))
    #       grace: not before step 4; then medians of the last three: .1, .1, .9, .9, .9, .4
    assert seen == [False, False, False, True, True, False, False, False, True]
    assert not CollapseWatch(rule, [0.1, 0.1]).collapsed(100)


def test_bank_and_queries_of_one_split_are_disjoint(tiny: Any) -> None:
    config = tiny.config(monitor={"query_split": "train", "bank_images": 30, "query_images": 13})
    train = manifest("tiny", "train")
    bank, queries = monitor_indices(config.monitor, train, train)
    assert len(bank) == 30 and sorted([*bank, *queries]) == list(range(43))


def test_monitoring_leaves_weights_statistics_modes_and_generators_alone(tiny: Any) -> None:
    config = tiny.config()
    backbone = build_model(config, num_classes=2, seed=0).backbone.train()
    backbone.layer1.eval()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    generator = torch.random.get_rng_state()
    bank, queries = manifest("tiny", "train"), manifest("tiny", "val")
    top1 = knn_top1(
        backbone,
        bank,
        queries,
        config.monitor,
        config.pixels,
        indices=monitor_indices(config.monitor, bank, queries),
        workers=0,
        me=ALONE,
    )
    assert top1 is not None and 0 <= top1 <= 100
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert [module.training for module in backbone.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_a_training_image_is_its_own_nearest_neighbour(tiny: Any) -> None:
    """The same split as bank and, through another name, as queries: k = 1 must be right."""
    config = tiny.config(monitor={"bank_images": 43, "query_images": 43, "k": 1})
    backbone = build_model(config, num_classes=2, seed=0).backbone
    train = manifest("tiny", "train")
    twin = type(train)(**{**vars(train), "split": "twin"})
    rows = monitor_indices(config.monitor, train, twin)
    top1 = knn_top1(backbone, train, twin, config.monitor, config.pixels, indices=rows, workers=0, me=ALONE)
    assert top1 == 100.0
