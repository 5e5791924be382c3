"""SimSiam: two views of an image predict each other's projection, and nothing keeps them apart but a stop-gradient.

Source: Chen & He, "Exploring Simple Siamese Representation Learning", §3 (method), §4.1 (stop-gradient); layer by layer
protocols §1.1 and §1.2. The third projector layer has no bias (mmselfsup; the reference keeps a frozen one that the
batch norm behind it cancels). Projector layers are all `projector_dim` wide: 2048 with ResNet-50, as there.
"""

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from zoo.backbone import Backbone


class SimSiam(nn.Module):
    """Backbone, projector and predictor. Called with two views, returns the loss and view 1's projection."""

    num_views = 2

    def __init__(self, arch: str, *, projector_dim: int, predictor_dim: int, stop_gradient: bool = True) -> None:
        super().__init__()
        self.backbone = Backbone(arch, zero_init_residual=True)
        self.projector = nn.Sequential(
            nn.Linear(self.backbone.num_features, projector_dim, bias=False),
            nn.BatchNorm1d(projector_dim),
            nn.ReLU(inplace=True),
            nn.Linear(projector_dim, projector_dim, bias=False),
            nn.BatchNorm1d(projector_dim),
            nn.ReLU(inplace=True),
            nn.Linear(projector_dim, projector_dim, bias=False),
            nn.BatchNorm1d(projector_dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(projector_dim, predictor_dim, bias=False),
            nn.BatchNorm1d(predictor_dim),
            nn.ReLU(inplace=True),
            nn.Linear(predictor_dim, projector_dim),
        )
        self.stop_gradient = stop_gradient

    def forward(self, views: tuple[Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """views: two (N, 3, H, W) normalised. Returns the loss (scalar) and z1 (N, projector_dim), detached.

        Two separate passes, so that batch-norm statistics are per view (§1.2). `labels` are not looked at.
        """
        z1, z2 = self.projector(self.backbone(views[0])), self.projector(self.backbone(views[1]))  # (N, d) each
        p1, p2 = self.predictor(z1), self.predictor(z2)  # (N, d) each
        targets = (z1.detach(), z2.detach()) if self.stop_gradient else (z1, z2)
        return symmetric_loss(p1, p2, *targets), z1.detach()


def symmetric_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """-½ [cos(p1, z2) + cos(p2, z1)], mean over images (paper eq. 1-4): in [-1, 1]. All inputs (N, d)."""
    return -0.5 * (cosine_similarity(p1, z2, dim=1).mean() + cosine_similarity(p2, z1, dim=1).mean())


def num_trainable(model: nn.Module) -> int:
    """How many numbers are trained: 38,199,360 for SimSiam with ResNet-50 (§1.1)."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
