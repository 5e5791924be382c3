"""What a pre-training run is: the schema of configs/pretrain/*.yaml.

It lies here and not in pretrain/ because planning reads it too (a checkpoint not yet trained is keyed by its recipe),
and evaluate/ never imports pretrain/. Field by field the values are those of protocols §1.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from zoo.config import Strict
from zoo.errors import ConfigError, several
from zoo.files import canonical_json, digest
from zoo.transforms import Interpolation, Pixels

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Area = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class SimSiam(Strict):
    """Two views, projector, predictor, stop-gradient (paper §3). The knobs are those of the paper's §4.1 to §4.6.

    pretrain/simsiam.py says what each value builds. Without a predictor that learns, predictor_lr changes nothing.
    """

    name: Literal["simsiam"]
    projector_dim: Positive  # 2048 with ResNet-50
    predictor_dim: Positive  # the predictor's bottleneck: 512; no matter without a predictor
    predictor: Literal["mlp", "none", "fixed_random"]
    predictor_lr: Literal["constant", "decayed"]  # constant: the last row of the paper's table 1, and both code bases
    head_norm: Literal["none", "hidden", "default", "affine", "predictor_output"]
    similarity: Literal["cosine", "cross_entropy"]
    symmetry: Literal["symmetric", "asymmetric", "asymmetric_double"]
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
    photometric: Literal["pil", "device"]  # where jitter, greyscale and blur are computed: docs/speed.md


class Arithmetic(Strict):
    """How a step is computed. The reference: fp32, false, false, false, 1; all else changes numbers (docs/speed.md).

    precision bf16: network under autocast; loss, batch-norm statistics, weights and optimizer stay fp32. accumulate: a
    process's share of the batch goes through in that many parts, whose batch-norm statistics are each part's own.
    """

    precision: Literal["fp32", "bf16"]
    channels_last: bool
    compile: bool
    fused_sgd: bool
    accumulate: Positive


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
    """How often the resumable state is written, beside the end of each epoch, and which states stay on the disk."""

    every_steps: Positive
    keep_last: Annotated[int, Field(ge=2)]  # two at least: a damaged newest one must have one before it
    keep_every_steps: Positive | None  # states of multiples of it are never removed; null: none

    @model_validator(mode="after")
    def _consistent(self) -> "Save":
        if self.keep_every_steps is not None and self.keep_every_steps % self.every_steps:
            raise ValueError(
                f"keep_every_steps: expected a multiple of every_steps ({self.every_steps}), found "
                f"{self.keep_every_steps}"
            )
        return self


class PretrainConfig(Strict):
    """configs/pretrain/NAME.yaml; a variant of a recipe names it as its `base` and states what differs."""

    may_have_base: ClassVar[bool] = True

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
    arithmetic: Arithmetic
    monitor: Monitor
    collapse: CollapseRule | None  # null for supervised training
    save: Save
    bad_images: Literal["stop", "replace"]  # replace: another image by rule (pretrain/replacement.py), counted

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
        """Every value that can change the weights, and none that cannot: what a run is keyed by.

        bad_images is not among them: what `stop` finishes, `replace` would have finished alike, and a run that was
        stopped by an image may go on with `replace`.
        """
        looks = {"name", "family", "display", "monitor", "collapse", "save", "bad_images"}
        return self.model_dump(mode="json", exclude=looks)


def run_identity(config: PretrainConfig, dataset_sha256: str, seed: int) -> dict[str, Any]:
    """Everything that a run's weights depend on; its folder keeps it, so that a changed run can say what changed."""
    return {"recipe": config.numerical(), "dataset": dataset_sha256, "seed": seed}


def run_key(config: PretrainConfig, dataset_sha256: str, seed: int) -> str:
    """What a pre-training run is known by (DESIGN §1): equal keys mean equal weights. Hex SHA-256; needs no torch."""
    return digest(run_identity(config, dataset_sha256, seed))


def changes(was: Any, now: Any, *, where: str = "") -> list[str]:
    """Where two `run_identity` differ, one text a value, named as in the YAML: "base_lr: was 0.05, is 0.1"."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys((*was, *now))
        inside = ((name, f"{where}.{name}" if where else name) for name in names)
        return [text for name, place in inside for text in changes(was.get(name), now.get(name), where=place)]
    spelt = canonical_json(was), canonical_json(now)
    return [] if spelt[0] == spelt[1] else [f"{where.removeprefix('recipe.')}: was {spelt[0]}, is {spelt[1]}"]


def other_run(where: object, was: Mapping[str, Any], now: Mapping[str, Any]) -> ConfigError:
    """The error of a folder or file that belongs to the run `was`, not to `now`; both from `run_identity`."""
    return ConfigError(
        several(
            f"{where}: belongs to run {digest(was)[:12]}…, expected {digest(now)[:12]}…. Changed:", changes(was, now)
        )
        + "\nPut the old values back, choose another --out, or remove the folder to start anew."
    )


def row_label(config: PretrainConfig, seed: int) -> str:
    """The checkpoint's name on the page: the display name, with the seed when it is not the usual 0."""
    return config.display + (f", seed {seed}" if seed else "")
