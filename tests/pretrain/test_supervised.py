"""The supervised reference row's network."""

import pytest
import torch

from pretrain.simsiam import num_trainable
from pretrain.supervised import Supervised


def test_resnet50_with_its_classifier_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert num_trainable(Supervised("resnet50", num_classes=1000)) == 25_557_032


def test_loss_is_cross_entropy() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Supervised("resnet18", num_classes=3).double()
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    loss, projection = model((images,), labels)
    logits = model.classifier(model.backbone(images))
    expected = (logits.logsumexp(1) - logits[torch.arange(6), labels]).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12) and projection is None
