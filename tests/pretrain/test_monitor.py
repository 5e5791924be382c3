"""The collapse probe and its rule, and the kNN monitor that leaves no trace."""

import math
from typing import Any

import pytest
import torch

from pretrain.monitor import CollapseWatch, knn_top1, monitor_indices, reduce_step
from pretrain.session import build_model
from zoo.datasets import manifest
from zoo.distributed import World
from zoo.recipe import CollapseRule

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def deviation(z: torch.Tensor) -> float:
    value = reduce_step(torch.tensor(0.0), z, interrupted=False, me=ALONE).std
    assert value is not None
    return value


def test_the_deviation_is_the_papers_times_the_root_of_d() -> None:
    z = torch.randn(64, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    plain = (z / z.norm(dim=1, keepdim=True)).std(0, unbiased=False).mean() * math.sqrt(20)
    assert deviation(z) == pytest.approx(plain.item(), abs=1e-12)


def test_random_outputs_give_one_and_a_constant_gives_zero() -> None:
    z = torch.randn(4096, 128, generator=torch.Generator().manual_seed(0))
    assert deviation(z) == pytest.approx(1.0, abs=0.01)
    assert deviation(torch.ones(64, 1) * z[:1]) == pytest.approx(0.0, abs=1e-6)


def test_the_step_carries_loss_and_the_wish_to_stop() -> None:
    values = reduce_step(torch.tensor(-0.25), None, interrupted=True, me=ALONE)
    assert values.loss == -0.25 and values.std is None and values.interrupted
    assert math.isnan(reduce_step(torch.tensor(math.nan), None, interrupted=False, me=ALONE).loss)


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
    top1 = knn_top1(backbone, bank, queries, config.monitor, config.pixels, workers=0, me=ALONE)
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
    assert knn_top1(backbone, train, twin, config.monitor, config.pixels, workers=0, me=ALONE) == 100.0
