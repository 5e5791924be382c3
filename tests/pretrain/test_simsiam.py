"""SimSiam's layers, sizes and loss, against the plain formulas of the paper and protocols §1."""

from typing import Any

import pytest
import torch
from torch import nn

from pretrain.simsiam import SimSiam, distance, num_trainable
from zoo.recipe import SimSiam as Options

DEFAULT = Options(
    name="simsiam",
    projector_dim=16,
    predictor_dim=4,
    predictor="mlp",
    predictor_lr="constant",
    head_norm="default",
    similarity="cosine",
    symmetry="symmetric",
    stop_gradient=True,
)
WIDE = DEFAULT.model_copy(update={"projector_dim": 2048, "predictor_dim": 512})


def small(**changes: Any) -> SimSiam:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SimSiam("resnet18", DEFAULT.model_copy(update=changes)).double()


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
        model = SimSiam("resnet50", WIDE)
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
    assert isinstance(model.predictor, nn.Sequential)
    assert [type(module) for module in model.predictor] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert model.predictor[0].bias is None and model.predictor[3].bias is not None


def test_residual_blocks_start_as_identity() -> None:
    state = small().backbone.state_dict()
    assert not state["layer1.0.bn2.weight"].any() and not state["layer4.1.bn2.weight"].any()
    assert state["layer1.0.bn1.weight"].all()


def layers(module: nn.Module) -> str:
    """b: fully connected with bias, w: without; n: batch norm with affine, c: without; r: ReLU."""
    letters: list[str] = []
    for each in module.children():
        if isinstance(each, nn.Linear):
            letters.append("w" if each.bias is None else "b")
        else:
            letters.append("r" if isinstance(each, nn.ReLU) else "nc"[each.weight is None])
    return "".join(letters)


@pytest.mark.parametrize(
    ("head_norm", "projector", "predictor"),
    [
        ("none", "brbrb", "brb"),
        ("hidden", "wnrwnrb", "wnrb"),
        ("default", "wnrwnrwc", "wnrb"),
        ("affine", "wnrwnrwn", "wnrb"),
        ("predictor_output", "wnrwnrwc", "wnrwn"),
    ],
)
def test_batch_norms_of_the_heads_are_those_of_table_3(head_norm: str, projector: str, predictor: str) -> None:
    with torch.device("meta"):
        model = SimSiam("resnet18", DEFAULT.model_copy(update={"head_norm": head_norm}))
    assert (layers(model.projector), layers(model.predictor)) == (projector, predictor)


def test_the_distance_has_the_papers_bounds() -> None:
    p, z = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert distance(p, 3 * p, "cosine").item() == pytest.approx(-1)
    assert distance(p, -p, "cosine").item() == pytest.approx(1)
    assert distance(0 * p, z, "cross_entropy").item() == pytest.approx(torch.tensor(7.0).log().item())
    assert distance(p, z, "cross_entropy") > distance(z, z, "cross_entropy") > 0  # the least is z's entropy


def test_without_predictor_stop_gradient_only_halves_the_gradient() -> None:
    """The derivation of §4.2: with h the identity the symmetric loss needs no stop-gradient to collapse."""
    gradients = []
    for stop_gradient in (True, False):
        model = small(predictor="none", stop_gradient=stop_gradient)
        model(views(), NO_LABELS)[0].backward()
        gradients.append(first_gradient(model))
    assert torch.allclose(2 * gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_two_pairs_take_four_views() -> None:
    found = {symmetry: small(symmetry=symmetry).num_views for symmetry in ("symmetric", "asymmetric")}
    assert found == {"symmetric": 2, "asymmetric": 2} and small(symmetry="asymmetric_double").num_views == 4


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
    terms = distance(model.predictor(z1), targets[1], "cosine"), distance(model.predictor(z2), targets[0], "cosine")
    (0.5 * terms[0] + 0.5 * terms[1]).backward()
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
