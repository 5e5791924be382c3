"""What is counted of a step, and what a device makes of it."""

import pytest
import torch

from perf.estimate import Counter, Device, Operation, hours, shortest_seconds, simsiam_step
from zoo.config import load
from zoo.files import CONFIGS
from zoo.recipe import PretrainConfig


def test_a_product_counts_its_flops_and_its_operands_and_a_view_nothing() -> None:
    left, right = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    with Counter() as counter:
        (left @ right).view(21)
    assert counter.operations == [Operation(flops=2 * 3 * 5 * 7, numbers=15 + 35 + 21)]


def test_a_device_is_held_up_by_its_arithmetic_or_its_memory() -> None:
    device = Device(name="d", flops=10.0, bytes=4.0, width=2)
    assert shortest_seconds([Operation(flops=50, numbers=1), Operation(flops=0, numbers=6)], device) == 5.0 + 3.0
    assert hours(3600.0, batch_size=1_281_167, epochs=7) == 7.0


def test_a_step_counts_what_the_protocol_says() -> None:
    """4.11 G multiply-adds a view (§1.1), twice that backward but for the pixels' gradient, and the heads."""
    config = load(CONFIGS / "pretrain" / "simsiam_r50_100e.yaml", PretrainConfig)
    images = config.batch_size // 8
    assert sum(each.flops for each in simsiam_step(config)) == pytest.approx(2 * 4.11e9 * 2 * 3 * images, rel=0.02)
