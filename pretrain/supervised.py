"""The supervised reference row: the same loop, one view, a linear classifier and cross-entropy.

The field's usual yardstick for a self-supervised backbone (He et al. 2016; torchvision's initialisation, without
zero-initialised residuals). Only the backbone leaves this file; the classifier is thrown away.
"""

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from zoo.backbone import Backbone
from zoo.precision import full_precision


class Supervised(nn.Module):
    """Backbone and linear classifier. Called with one view and labels, returns the loss."""

    num_views = 1

    def __init__(self, arch: str, *, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.backbone = Backbone(arch)
        self.classifier = nn.Linear(self.backbone.num_features, num_classes)
        self.label_smoothing = label_smoothing

    def forward(self, views: tuple[Tensor], labels: Tensor) -> tuple[Tensor, None]:
        """views: one (N, 3, H, W) normalised; labels: (N,) int64. Returns the loss (scalar), and no projection."""
        logits = self.classifier(self.backbone(views[0]))  # (N, num_classes)
        return cross_entropy(full_precision(logits), labels, label_smoothing=self.label_smoothing), None
