"""SimSiam: two views of an image predict each other's projection, and nothing keeps them apart but a stop-gradient.

Source: Chen & He, "Exploring Simple Siamese Representation Learning", §3 (method), §4.1 to §4.6 (the options); layer by
layer protocols §1.1 and §1.2. The third projector layer has no bias (mmselfsup; the reference keeps a frozen one that
the batch norm behind it cancels). Projector layers are all `projector_dim` wide: 2048 with ResNet-50, as there.

What the options build, and what was chosen where the paper does not say:

- predictor: `none` is the identity (§4.2, table 1a). `fixed_random` keeps weights, biases and its batch norm's affine
  at their initial values, without weight decay (1b); that batch norm goes on normalising by the batch, as in training.
- head_norm: which fully-connected layers of the heads have a batch norm behind them (§4.4, table 3). `none`; `hidden`:
  all but the two output layers; `default`: the projector's output too, without affine, as all published code; `affine`:
  the same with affine, the paper's own default; `predictor_output`: the default, and the predictor's output, with
  affine. A layer without a batch norm behind it has a bias, a layer with one has none.
- similarity: `cross_entropy` takes z as soft labels over its channels and p as logits, symmetrised alike (§4.5).
- symmetry: `asymmetric` predicts view 2 from view 1 only (§4.6). `asymmetric_double` draws two such pairs an image, so
  four views, and averages the two terms: as many predictions an image as the symmetric loss has.
"""

from itertools import pairwise
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from zoo.backbone import Backbone
from zoo.precision import full_precision
from zoo.recipe import SimSiam as Options

Affine = bool | None  # of the batch norm behind a layer; None: there is no batch norm


class _Norms(NamedTuple):
    hidden: Affine  # of both heads
    projector_output: Affine
    predictor_output: Affine


_NORMS: Final = {
    "none": _Norms(None, None, None),
    "hidden": _Norms(True, None, None),
    "default": _Norms(True, False, None),
    "affine": _Norms(True, True, None),
    "predictor_output": _Norms(True, False, True),
}
# which view's prediction is compared with which view's projection
_PAIRS: Final = {
    "symmetric": ((0, 1), (1, 0)),
    "asymmetric": ((0, 1),),
    "asymmetric_double": ((0, 1), (2, 3)),
}


class SimSiam(nn.Module):
    """Backbone, projector and predictor. Called with `num_views` views, returns the loss and view 1's projection."""

    def __init__(self, arch: str, options: Options) -> None:
        super().__init__()
        norms, dim = _NORMS[options.head_norm], options.projector_dim
        self.backbone = Backbone(arch, zero_init_residual=True)
        widths = (self.backbone.num_features, dim, dim, dim)
        self.projector = _mlp(widths, hidden=norms.hidden, output=norms.projector_output)
        self.predictor = (
            nn.Identity()
            if options.predictor == "none"
            else _mlp((dim, options.predictor_dim, dim), hidden=norms.hidden, output=norms.predictor_output)
        )
        self.predictor.requires_grad_(options.predictor != "fixed_random")
        self.pairs = _PAIRS[options.symmetry]
        self.num_views = 1 + max(max(pair) for pair in self.pairs)
        self.similarity: Literal["cosine", "cross_entropy"] = options.similarity
        self.stop_gradient = options.stop_gradient

    def forward(self, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        """views: `num_views` of (N, 3, H, W) normalised. Returns the loss (scalar) and z1 (N, projector_dim), detached.

        A pass for each view, so that batch-norm statistics are per view (§1.2). `labels` are not looked at.
        """
        z = [self.projector(self.backbone(view)) for view in views]  # (N, d) each
        targets = [each.detach() for each in z] if self.stop_gradient else z
        terms = [distance(self.predictor(z[source]), targets[target], self.similarity) for source, target in self.pairs]
        return torch.stack(terms).mean(), z[0].detach()


def _mlp(widths: tuple[int, ...], *, hidden: Affine, output: Affine) -> nn.Sequential:
    """Fully-connected layers of these widths, each but the last with a ReLU behind it, batch norms as told."""
    layers: list[nn.Module] = []
    last = len(widths) - 1
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        affine = output if number == last else hidden
        layers.append(nn.Linear(inputs, outputs, bias=affine is None))
        if affine is not None:
            layers.append(nn.BatchNorm1d(outputs, affine=affine))
        if number < last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def distance(p: Tensor, z: Tensor, similarity: Literal["cosine", "cross_entropy"]) -> Tensor:
    """The paper's D(p, z), mean over images. p, z: (N, d); computed in float32 at least.

    Cosine (eq. 1): -cos(p, z), in [-1, 1]. Cross-entropy (§4.5): -softmax(z) · log softmax(p), 0 or more, log d where
    both are flat.
    """
    p, z = full_precision(p), full_precision(z)
    if similarity == "cosine":
        return -cosine_similarity(p, z, dim=1).mean()
    return cross_entropy(p, z.softmax(dim=1))


def num_trainable(model: nn.Module) -> int:
    """How many numbers are trained: 38,199,360 for SimSiam with ResNet-50 (§1.1)."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
