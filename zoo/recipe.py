"""What a pre-training run is: the schema of configs/pretrain/*.yaml.

It lies here and not in pretrain/ because planning reads it too (a checkpoint not yet trained is keyed by its recipe),
and evaluate/ never imports pretrain/. Field by field the values are those of protocols §1.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from zoo.config import Strict
from zoo.files import digest
from zoo.transforms import Interpolation, Pixels

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Area = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class SimSiam(Strict):
    """Two views, projector, predictor, stop-gradient (paper §3). The knobs of the paper's ablations."""

    name: Literal["simsiam"]
    projector_dim: Positive  # 2048 with ResNet-50
    predictor_dim: Positive  # the predictor's bottleneck: 512
    predictor_lr: Literal["constant", "decayed"]  # constant: the last row of the paper's table 1, and both code bases
    stop_gradient: bool


class Supervised(Strict):
    """One view, a linear classifier on the pooled features, cross-entropy: the field's reference row."""

    name: Literal["supervised"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]


class Views(Strict):
    """Augmentation, in the order applied (§1.3). A probability of 0 switches a step off."""

    crop: Positive
    area: Area
    interpolation: Interpolation
    jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    jitter_probability: Probability
    grayscale_probability: Probability
    blur_sigma: tuple[float, float]
    blur_probability: Probability
    flip_probability: Probability


class Monitor(Strict):
    """kNN during training: bank and held-out queries, test transform, no influence on the run or on any selection."""

    every_epochs: Positive
    bank_split: str
    bank_images: Positive  # the first that many of a fixed permutation of the split
    query_split: str
    query_images: Positive
    k: Positive
    resize: Positive
    crop: Positive


class CollapseRule(Strict):
    """Collapsed: the median over `window` steps of std·√d lies below `below`, from step `grace_steps` on.

    std is the per-channel standard deviation of z/‖z‖ over the global batch, averaged over channels; healthy ≈ 1/√d.
    Calibrated in docs/trials.md.
    """

    below: Annotated[float, Field(gt=0, lt=1)]
    window: Positive
    grace_steps: Positive
    action: Literal["stop", "record"]


class Save(Strict):
    """How often the resumable state is written; the last two are kept."""

    every_steps: Positive


class PretrainConfig(Strict):
    """configs/pretrain/NAME.yaml."""

    name: str
    family: str
    display: str  # the row label on the page
    method: Annotated[SimSiam | Supervised, Field(discriminator="name")]
    arch: Literal["resnet18", "resnet34", "resnet50", "resnet101"]
    dataset: str
    split: str
    pixels: Pixels
    views: Views
    epochs: Positive
    batch_size: Positive  # global, over all processes and nodes
    base_lr: Annotated[float, Field(gt=0)]  # per 256 images: lr = base_lr · batch_size / 256
    warmup_epochs: Annotated[int, Field(ge=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    precision: Literal["fp32"]
    monitor: Monitor
    collapse: CollapseRule | None  # null for supervised training
    save: Save

    @model_validator(mode="after")
    def _consistent(self) -> "PretrainConfig":
        if (self.collapse is None) != (self.method.name == "supervised"):
            raise ValueError("collapse: expected a rule for simsiam and null for supervised")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: expected fewer than epochs ({self.epochs}), found {self.warmup_epochs}")
        return self

    @property
    def lr(self) -> float:
        """The linear scaling rule (paper §3)."""
        return self.base_lr * self.batch_size / 256

    def numerical(self) -> dict[str, Any]:
        """Every value that can change the weights, and none that cannot: what a run is keyed by."""
        return self.model_dump(mode="json", exclude={"name", "family", "display", "monitor", "collapse", "save"})


def run_key(config: PretrainConfig, dataset_sha256: str, seed: int) -> str:
    """What a pre-training run is known by (DESIGN §1): equal keys mean equal weights. Hex SHA-256; needs no torch."""
    return digest({"recipe": config.numerical(), "dataset": dataset_sha256, "seed": seed})


def row_label(config: PretrainConfig, seed: int) -> str:
    """The checkpoint's name on the page: the display name, with the seed when it is not the usual 0."""
    return config.display + (f", seed {seed}" if seed else "")
