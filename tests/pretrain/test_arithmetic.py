"""The fast ways of computing a step: exact resume, parts of a batch, what stays in float32, what is refused."""

import dataclasses
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pretrain.preflight import check, least_deviation
from pretrain.progress import LOG_NAME, Waiting
from pretrain.schedule import make_optimizer
from pretrain.session import Session, open_session
from pretrain.simsiam import SimSiam
from pretrain.train import accumulate_gradients, train
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME
from zoo.distributed import World
from zoo.errors import ConfigError, ZooError

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
RULE = {"below": 0.95, "window": 5, "grace_steps": 1000, "action": "record"}  # above what parts of 4 can fall to
FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "fused_sgd": True}


def session(tiny: Any, dtype: torch.dtype = torch.float32, **arithmetic: Any) -> Session:
    config = tiny.config(arithmetic=arithmetic, collapse=RULE)
    out = tiny.folder / "-".join(["out", *map(str, arithmetic.values())])
    return open_session(check(config, seed=0, overrides=(), out=out, workers=0, processes=1), ALONE, dtype)


def batch(dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = tuple(torch.randn(8, 3, 16, 16, generator=generator, dtype=dtype) for _ in range(2))
    return views, torch.zeros(8, dtype=torch.int64)


def gradients(opened: Session) -> list[torch.Tensor]:
    """Those of the small tensors, of every part of the network."""
    small = (each for each in opened.core.parameters() if each.numel() < 100_000)
    return [each.grad.clone() for each in small if each.grad is not None]


def test_gradients_of_the_parts_are_averaged(tiny: Any) -> None:
    """Against the parts computed one after the other by hand; statistics are each part's own."""
    views, labels = batch(torch.float64)
    opened, by_hand = session(tiny, torch.float64, accumulate=2), session(tiny, torch.float64)
    loss, z = accumulate_gradients(opened, views, labels)
    assert z is not None and z.shape == (8, 32)
    expected, losses = [], []
    for part in (slice(0, 4), slice(4, 8)):
        by_hand.optimizer.zero_grad()
        one, projections = by_hand.core(tuple(view[part] for view in views), labels[part])
        one.backward()
        losses.append(float(one.detach()))
        expected.append(gradients(by_hand))
        assert torch.equal(z[part], projections)
    assert float(loss) == pytest.approx(sum(losses) / 2, rel=1e-12)
    for found, first, second in zip(gradients(opened), *expected, strict=True):
        assert torch.allclose(found, (first + second) / 2, rtol=1e-10, atol=1e-14)
    with pytest.raises(AssertionError):  # it is not the training with that batch size
        torch.testing.assert_close(float(loss), float(by_hand.core(views, labels)[0].detach()), rtol=1e-4, atol=0)


def test_in_bf16_loss_statistics_weights_and_gradients_are_float32(tiny: Any) -> None:
    views, labels = batch(torch.float32)
    seen: list[torch.dtype] = []
    opened, reference = session(tiny, **FAST), session(tiny)
    assert isinstance(opened.core, SimSiam)
    opened.core.projector.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    loss, _ = accumulate_gradients(opened, views, labels)
    assert set(seen) == {torch.bfloat16} and loss.dtype == torch.float32
    assert {value.dtype for value in opened.core.state_dict().values()} == {torch.float32, torch.int64}
    assert {gradient.dtype for gradient in gradients(opened)} == {torch.float32}
    expected, _ = accumulate_gradients(reference, views, labels)
    assert float(loss) == pytest.approx(float(expected), abs=0.02) and float(loss) != float(expected)
    bn, other = opened.core.backbone.bn1, reference.core.backbone.bn1
    torch.testing.assert_close(bn.running_var, other.running_var, rtol=1e-2, atol=1e-3)


def test_a_fast_run_that_is_cut_off_ends_in_the_same_bytes(tiny: Any) -> None:
    changes: dict[str, Any] = {
        "arithmetic": {**FAST, "accumulate": 2},
        "views": {"photometric": "device"},
        "epochs": 1,
        "collapse": RULE,
        "save": {"every_steps": 2, "keep_last": 9},
    }
    config = tiny.config(**changes)
    whole, parts = tiny.folder / "whole", tiny.folder / "parts"
    train(check(config, seed=0, overrides=(), out=whole, workers=0, processes=1), ALONE)
    parts.mkdir()
    for name in ("state-000000004.pt", LOG_NAME):
        shutil.copy(whole / name, parts / name)
    train(check(config, seed=0, overrides=(), out=parts, workers=0, processes=1), ALONE)
    assert (parts / WEIGHTS_NAME).read_bytes() == (whole / WEIGHTS_NAME).read_bytes()
    assert (parts / CARD_NAME).read_bytes() == (whole / CARD_NAME).read_bytes()
    line = (whole / LOG_NAME).read_text().splitlines()[0]
    assert '"seconds_waiting": ' in line and '"seconds_computing": ' in line


def test_parts_of_a_batch_must_be_equal_and_hold_two_images(tiny: Any) -> None:
    for accumulate in (3, 8):
        with pytest.raises(ZooError, match=rf"arithmetic.accumulate: .* found {accumulate} for 8 images on 1 process"):
            session(tiny, accumulate=accumulate)


def test_the_collapse_rule_must_lie_above_what_a_part_can_fall_to(tiny: Any) -> None:
    config = tiny.config(arithmetic={"accumulate": 2}, collapse={"below": 0.8})
    with pytest.raises(
        ZooError, match=f"collapse.below: expected more than {least_deviation(4):.3f}.* batch of 4 gets"
    ):
        check(config, seed=0, overrides=(), out=tiny.folder / "out", workers=0, processes=1)


def test_accumulation_says_what_it_does(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        session(tiny, accumulate=2)
    assert "8 images go through in 2 parts of 4 (arithmetic.accumulate); batch-norm statistics are each" in caplog.text


def test_a_compiler_that_fails_is_named(tiny: Any) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def broken(*_: Any) -> None:
        raise TorchDynamoException("no C++ compiler\nand more")

    config = tiny.config(arithmetic={"compile": True})
    opened = session(tiny)
    opened = dataclasses.replace(opened, plan=dataclasses.replace(opened.plan, config=config), model=broken)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"torch.compile has failed \(no C\+\+ compiler\).*arithmetic.compile=false"):
        opened.forward(*batch(torch.float32))


def test_waiting_is_counted_and_passes_on_what_comes() -> None:
    waiting = Waiting()

    def slow() -> Iterator[str]:
        for item in "ab":
            time.sleep(0.02)
            yield item

    assert list(waiting.counted(slow())) == ["a", "b"]
    assert 0.04 <= waiting.seconds < 1


def test_a_fused_step_is_the_plain_one_but_for_rounding(tiny: Any) -> None:
    ended: list[torch.Tensor] = []
    for fused in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layer = torch.nn.Linear(7, 5).double()
        optimizer = make_optimizer(layer, tiny.config(arithmetic={"fused_sgd": fused}))
        assert bool(optimizer.param_groups[0]["fused"]) == fused
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.ones(2, 7, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        ended.append(layer.weight.detach())
    assert torch.allclose(*ended, rtol=0, atol=1e-12)
