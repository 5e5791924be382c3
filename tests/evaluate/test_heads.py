"""The LARS variants against a step-by-step loop of the protocol sheet's formulas (§2.1, D4), and the head's start."""

import math

import numpy as np
import pytest
import torch

from evaluate.heads import Lars, learning_rate, linear_head
from evaluate.recipes import Cosine, LarsName, Steps


def plain_loop(
    start: list[np.ndarray],
    gradients: list[list[np.ndarray]],
    lrs: list[float],
    *,
    variant: LarsName,
    momentum: float,
    decay: float,
    trust: float,
    eps: float,
) -> list[np.ndarray]:
    """apex's LARC around SGD, and mmselfsup's LARS, one tensor and one step at a time, in fp64."""
    result = []
    for tensor, w0 in enumerate(start):
        w, m = w0.astype(np.float64), np.zeros(w0.shape)
        for lr, step in zip(lrs, gradients, strict=True):
            g = step[tensor].astype(np.float64)
            w_norm, g_norm = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
            rate = 1.0
            if w_norm != 0 and g_norm != 0:
                rate = trust * w_norm / (g_norm + decay * w_norm + eps)
            if variant == "lars_apex":
                m = momentum * m + rate * (g + decay * w)
                w = w - lr * m
            else:
                m = momentum * m + lr * rate * (g + decay * w)
                w = w - m
        result.append(w)
    return result


def run_ours(
    start: list[np.ndarray],
    gradients: list[list[np.ndarray]],
    lrs: list[float],
    *,
    variant: LarsName,
    decay: float,
) -> list[np.ndarray]:
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in start]
    optimiser = Lars(
        parameters, variant=variant, lr=0.0, momentum=0.9, weight_decay=decay, trust_coefficient=0.001, eps=1e-8
    )
    for lr, step in zip(lrs, gradients, strict=True):
        optimiser.param_groups[0]["lr"] = lr
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient)
        optimiser.step()
    return [parameter.detach().numpy() for parameter in parameters]


def problem() -> tuple[list[np.ndarray], list[list[np.ndarray]], list[float]]:
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(5, 8)), np.zeros(5)]  # the bias starts at zero, as a head's
    gradients = [[rng.normal(size=(5, 8)), rng.normal(size=5)] for _ in range(20)]
    gradients[7][0][:] = 0.0  # a zero gradient too
    return start, gradients, [learning_rate(Cosine(name="cosine"), 1.6, step // 4, 5) for step in range(20)]


@pytest.mark.parametrize("decay", [0.0, 1e-4])
@pytest.mark.parametrize("variant", ["lars_apex", "lars_mmselfsup"])
def test_twenty_steps_equal_the_plain_loop(variant: LarsName, decay: float) -> None:
    start, gradients, lrs = problem()
    ours = run_ours(start, gradients, lrs, variant=variant, decay=decay)
    plain = plain_loop(start, gradients, lrs, variant=variant, momentum=0.9, decay=decay, trust=0.001, eps=1e-8)
    for mine, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)


def test_the_variants_differ_only_while_the_rate_decays() -> None:
    start, gradients, lrs = problem()
    constant = [run_ours(start, gradients, [1.6] * 20, variant=v, decay=0.0) for v in ("lars_apex", "lars_mmselfsup")]
    decaying = [run_ours(start, gradients, lrs, variant=v, decay=0.0) for v in ("lars_apex", "lars_mmselfsup")]
    np.testing.assert_allclose(constant[0][0], constant[1][0], atol=1e-12)
    assert np.abs(decaying[0][0] - decaying[1][0]).max() > 1e-6


def test_the_first_step_of_a_zero_bias_has_local_rate_one() -> None:
    ours = run_ours([np.zeros(3)], [[np.ones(3)]], [0.5], variant="lars_mmselfsup", decay=0.0)
    np.testing.assert_allclose(ours[0], -0.5 * np.ones(3))


def test_the_head_starts_at_normal_weights_and_zero_bias_from_its_seed_alone() -> None:
    before = torch.random.get_rng_state()
    head, again, other = (linear_head(2048, 100, std=0.01, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(head.weight, again.weight) and not torch.equal(head.weight, other.weight)
    assert abs(float(head.weight.detach().std()) - 0.01) < 1e-4 and not head.bias.any()


def test_cosine_is_stepped_per_epoch_and_starts_at_the_full_rate() -> None:
    cosine = Cosine(name="cosine")
    assert learning_rate(cosine, 1.6, 0, 90) == 1.6
    assert learning_rate(cosine, 1.6, 45, 90) == pytest.approx(0.8)
    assert learning_rate(cosine, 1.6, 89, 90) == pytest.approx(1.6 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_steps_divide_at_each_milestone_and_never_at_the_end() -> None:
    rates = [learning_rate(Steps(name="steps", milestones=(30, 60, 90), factor=0.1), 0.01, e, 90) for e in range(90)]
    np.testing.assert_allclose(rates, [0.01] * 30 + [0.001] * 30 + [0.0001] * 30, rtol=1e-12)
