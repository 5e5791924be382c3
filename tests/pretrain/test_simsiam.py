"""SimSiam's layers, sizes and loss, against the plain formulas of the paper and protocols §1."""

import pytest
import torch
from torch import nn

from pretrain.simsiam import SimSiam, num_trainable, symmetric_loss


def small(*, stop_gradient: bool = True) -> SimSiam:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimSiam("resnet18", projector_dim=16, predictor_dim=4, stop_gradient=stop_gradient).double()


def views() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)
    return first, torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=generator)


NO_LABELS = torch.empty(0)


def first_gradient(model: SimSiam) -> torch.Tensor:
    gradient = dict(model.named_parameters())["projector.0.weight"].grad
    assert gradient is not None
    return gradient


def test_resnet50_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = SimSiam("resnet50", projector_dim=2048, predictor_dim=512)
    assert num_trainable(model) == 38_199_360
    assert num_trainable(model.backbone) == 23_508_032
    assert num_trainable(model.projector) == 12_591_104
    assert num_trainable(model.predictor) == 2_100_224


def test_heads_follow_section_1_1() -> None:
    model = small()
    linears = [module for module in model.projector if isinstance(module, nn.Linear)]
    assert [linear.bias is None for linear in linears] == [True, True, True]
    last = model.projector[-1]
    assert isinstance(last, nn.BatchNorm1d) and not last.affine
    assert [type(module) for module in model.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.predictor[0].bias is None and model.predictor[3].bias is not None


def test_residual_blocks_start_as_identity() -> None:
    state = small().backbone.state_dict()
    assert not state["layer1.0.bn2.weight"].any() and not state["layer4.1.bn2.weight"].any()
    assert state["layer1.0.bn1.weight"].all()


def test_loss_is_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    p1, p2, z1, z2 = (torch.randn(5, 7, dtype=torch.float64, generator=generator) for _ in range(4))

    def distance(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:  # the paper's D, eq. 1
        return -((p / p.norm(dim=1, keepdim=True)) * (z / z.norm(dim=1, keepdim=True))).sum(1).mean()

    expected = distance(p1, z2) / 2 + distance(p2, z1) / 2
    assert symmetric_loss(p1, p2, z1, z2).item() == pytest.approx(expected.item(), abs=1e-14)
    assert symmetric_loss(p1, p2, p2, p1).item() == pytest.approx(-1.0)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_switch_decides_whether_gradients_pass_through_the_targets(stop_gradient: bool) -> None:
    model = small(stop_gradient=stop_gradient)
    batch = views()
    loss, _ = model(batch, NO_LABELS)
    loss.backward()
    found = first_gradient(model).clone()
    model.zero_grad()
    z1, z2 = model.projector(model.backbone(batch[0])), model.projector(model.backbone(batch[1]))
    targets = (z1.detach(), z2.detach()) if stop_gradient else (z1, z2)
    symmetric_loss(model.predictor(z1), model.predictor(z2), *targets).backward()
    assert torch.allclose(found, first_gradient(model), rtol=0, atol=1e-12)
    assert found.abs().max() > 0


def test_stop_gradient_changes_the_gradient_and_not_the_loss() -> None:
    losses, gradients = [], []
    for stop_gradient in (True, False):
        model = small(stop_gradient=stop_gradient)
        loss, _ = model(views(), NO_LABELS)
        loss.backward()
        losses.append(loss.item())
        gradients.append(first_gradient(model))
    assert losses[0] == losses[1]
    assert not torch.allclose(gradients[0], gradients[1], atol=1e-6)


def test_batch_norm_statistics_are_per_view() -> None:
    """Two passes: after one call every batch norm has counted two batches, and z1 does not depend on view 2."""
    model, batch = small(), views()
    _, z1 = model(batch, NO_LABELS)
    assert int(model.backbone.state_dict()["bn1.num_batches_tracked"]) == 2
    _, other = small()((batch[0], batch[1] + 5), NO_LABELS)
    assert torch.equal(z1, other) and not z1.requires_grad
