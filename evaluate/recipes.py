"""How linear classifiers are trained: the schema of a linear benchmark's `settings`. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from evaluate.job import Forward, LayerName, Layers, check_layers
from zoo.config import Strict
from zoo.transforms import TestTransform, TrainTransform

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Several = Annotated[tuple[NonNegative, ...], Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
LarsName = Literal["lars_mmselfsup", "lars_apex"]


class SgdConfig(Strict):
    """torch.optim.SGD."""

    name: Literal["sgd"]
    momentum: NonNegative
    nesterov: bool


class LarsConfig(Strict):
    """LARS, in one of its two variants (D4)."""

    name: LarsName
    momentum: NonNegative
    trust_coefficient: NonNegative
    eps: NonNegative


class Cosine(Strict):
    """Down to zero over the head's epochs."""

    name: Literal["cosine"]


class Steps(Strict):
    """Times `factor` at each milestone, an epoch counted from 0; one that lies at the end or beyond never fires."""

    name: Literal["steps"]
    milestones: Annotated[tuple[Positive, ...], Field(min_length=1)]
    factor: Annotated[float, Field(gt=0, lt=1)]


OptimiserConfig = Annotated[SgdConfig | LarsConfig, Field(discriminator="name")]
Schedule = Annotated[Cosine | Steps, Field(discriminator="name")]


class Recipe(Strict):
    """One way to train a head, on each of some layers.

    Several learning rates or weight decays make a grid: a head for each pair, trained without `held_out_per_class`
    training images of each class, on which the best of them is chosen.
    """

    layers: Annotated[tuple[LayerName, ...], Field(min_length=1)]
    batch_norm: Literal[
        "none", "plain", "affine"
    ]  # before the linear layer, a channel; plain: no scale and shift (D10)
    head_std: NonNegative
    optimiser: OptimiserConfig
    base_lr: Several  # per 256 images: lr = base_lr · batch_size / 256
    weight_decay: Several  # of the linear layer; a batch norm's own parameters are never decayed
    batch_size: Positive  # global
    epochs: Positive
    schedule: Schedule
    held_out_per_class: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _held_out(self) -> "Recipe":
        pairs = len(self.base_lr) * len(self.weight_decay)
        if (pairs > 1) != (self.held_out_per_class > 0):
            raise ValueError(
                "held_out_per_class: expected images to choose on where base_lr or weight_decay has several values, "
                f"and 0 otherwise; found {self.held_out_per_class} with {pairs} pair(s)"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """One head to be trained."""

    group: str  # the metrics' suffix: recipe and layer; a grid's heads share it
    recipe: Recipe
    layer: LayerName
    base_lr: float
    weight_decay: float

    @property
    def key(self) -> str:
        return f"{self.group}/lr{self.base_lr:g}/wd{self.weight_decay:g}"

    @property
    def lr(self) -> float:
        """The linear scaling rule."""
        return self.base_lr * self.recipe.batch_size / 256


class Settings(Strict):
    """What all heads of one benchmark share (images, augmentation, backbone), and how each is trained."""

    train_split: str
    test_split: str
    train_transform: TrainTransform
    test_transform: TestTransform
    layers: Annotated[Layers, AfterValidator(check_layers)]  # how each map is pooled: k/s/p of §2.2
    forward: Forward
    recipes: Annotated[dict[Name, Recipe], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        problems: list[str] = []
        largest = max(recipe.batch_size for recipe in self.recipes.values())
        for name, recipe in self.recipes.items():
            unknown = [layer for layer in recipe.layers if layer not in self.layers]
            if unknown:
                problems.append(f"recipes.{name}.layers: {', '.join(unknown)} not among settings.layers")
            if recipe.batch_size % self.forward.batch_size or largest % recipe.batch_size:
                problems.append(
                    f"recipes.{name}.batch_size: expected a multiple of forward.batch_size ({self.forward.batch_size}) "
                    f"that divides the largest batch ({largest}), found {recipe.batch_size}"
                )
        unused = set(self.layers) - {layer for recipe in self.recipes.values() for layer in recipe.layers}
        if unused:
            problems.append(f"layers: no recipe uses {', '.join(sorted(unused))}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def chunk(self) -> int:
        """Images between two moments at which no head has a batch begun."""
        return max(recipe.batch_size for recipe in self.recipes.values())

    @property
    def epochs(self) -> int:
        return max(recipe.epochs for recipe in self.recipes.values())

    def heads(self) -> Iterator[HeadPlan]:
        """Every head, in the order of the recipes."""
        for name, recipe in self.recipes.items():
            for layer in recipe.layers:
                for base_lr in recipe.base_lr:
                    for weight_decay in recipe.weight_decay:
                        yield HeadPlan(
                            group=f"{name}_{layer}",
                            recipe=recipe,
                            layer=layer,
                            base_lr=base_lr,
                            weight_decay=weight_decay,
                        )
