"""Learning rates, parameter groups and the order of samples."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.schedule import global_batches, learning_rate, local_part, make_optimizer, predictor_rate, set_rates
from pretrain.session import build_model
from zoo.distributed import World
from zoo.transforms import epoch_order


def test_the_rate_is_a_cosine_stepped_per_epoch_from_the_scaled_base(tiny: Any) -> None:
    config = tiny.config(epochs=100, batch_size=512, base_lr=0.05)
    assert config.lr == pytest.approx(0.1)
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 100)) for epoch in range(100)]
    assert [learning_rate(config, epoch) for epoch in range(100)] == pytest.approx(expected)
    assert learning_rate(config, 0) == pytest.approx(0.1) and learning_rate(config, 50) == pytest.approx(0.05)


def test_warm_up_is_linear_per_epoch_and_then_the_cosine_starts_at_the_top(tiny: Any) -> None:
    config = tiny.config(epochs=100, batch_size=1024, base_lr=0.05, warmup_epochs=10)
    assert [learning_rate(config, epoch) for epoch in range(11)] == pytest.approx(
        [0.02 * step for step in range(1, 11)] + [0.2]
    )
    assert learning_rate(config, 55) == pytest.approx(0.1)


def test_a_constant_predictor_knows_neither_cosine_nor_warm_up(tiny: Any) -> None:
    config = tiny.config(epochs=100, warmup_epochs=10)
    assert {predictor_rate(config, epoch) for epoch in range(100)} == {config.lr}
    decayed = tiny.config(method={**tiny.recipe()["method"], "predictor_lr": "decayed"})
    assert predictor_rate(decayed, 1) == learning_rate(decayed, 1) < decayed.lr


def test_every_parameter_is_in_one_group_and_decays(tiny: Any) -> None:
    config = tiny.config()
    model = build_model(config, num_classes=2, seed=0)
    optimizer = make_optimizer(model, config)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {1e-4}
    assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
    set_rates(optimizer, config, 1)
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"model": pytest.approx(0.025), "predictor": pytest.approx(0.05)}
    predictor = next(group for group in optimizer.param_groups if group["part"] == "predictor")
    assert sum(parameter.numel() for parameter in predictor["params"]) == 32 * 8 + 2 * 8 + 8 * 32 + 32


@pytest.mark.parametrize("predictor", ["none", "fixed_random"])
def test_a_predictor_that_does_not_learn_is_in_no_group(tiny: Any, predictor: str) -> None:
    config = tiny.config(method={**tiny.recipe()["method"], "predictor": predictor})
    model = build_model(config, num_classes=2, seed=0)
    optimizer = make_optimizer(model, config)
    assert [group["part"] for group in optimizer.param_groups] == ["model"]
    learning = [*model.get_submodule("backbone").parameters(), *model.get_submodule("projector").parameters()]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning)


def test_batches_go_through_each_epoch_once_without_the_incomplete_one() -> None:
    batches = list(global_batches(3, 43, batch_size=8, epochs=2, start_step=0))
    assert [len(batch) for batch in batches] == [8] * 10
    for epoch in range(2):
        seen = [key for batch in batches[5 * epoch : 5 * epoch + 5] for key in batch]
        assert seen == [(epoch, int(index)) for index in epoch_order(3, epoch, 43)[:40]]
        assert len(set(seen)) == 40


@pytest.mark.parametrize("start", [1, 4, 5, 7, 10])
def test_batches_from_any_step_are_the_rest_of_all(start: int) -> None:
    every = list(global_batches(0, 43, batch_size=8, epochs=2, start_step=0))
    assert list(global_batches(0, 43, batch_size=8, epochs=2, start_step=start)) == every[start:]


def test_parts_in_rank_order_are_the_batch() -> None:
    batch = next(global_batches(0, 43, batch_size=8, epochs=1, start_step=0))
    for size in (1, 2, 4):
        worlds = [World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu")) for rank in range(size)]
        assert [key for me in worlds for key in local_part(batch, me)] == batch


def test_another_seed_is_another_order() -> None:
    assert not np.array_equal(epoch_order(0, 0, 43), epoch_order(1, 0, 43))
