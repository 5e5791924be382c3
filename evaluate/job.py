"""What a benchmark is given and what it declares. Needs no torch, so that planning is instant.

A benchmark is a module with
    Settings, Execution     strict models of its YAML's `settings` and `execution`
    roles(settings)         role → split: the datasets its record names ("train", "test", …)
    features(settings)      role → FeatureSpec: what it wants extracted beforehand, shared with other benchmarks
                            that ask for the same
    deterministic(settings) True when the seed changes nothing
    ENGINE                  None, or the engine whose child processes measure (engines.launch.ENGINES)
    run(job)                → Measurement
and imports torch inside functions only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import AfterValidator, BaseModel, Field

from engines.launch import Name
from zoo.checkpoint import CheckpointCard
from zoo.config import Strict
from zoo.datasets import DECODER, Manifest
from zoo.files import digest
from zoo.record import Measurement
from zoo.transforms import TestTransform

if TYPE_CHECKING:
    from zoo.distributed import World


Positive = Annotated[int, Field(gt=0)]
LayerName = Literal["feature1", "feature2", "feature3", "feature4", "feature5", "avgpool"]


class Pool(Strict):
    """Average pooling of a map, padding counted in the average as PyTorch does (protocols §2.2). Pixels of the map."""

    kernel: Positive
    stride: Positive
    padding: Annotated[int, Field(ge=0)]


Layers = Annotated[dict[LayerName, Pool | None], Field(min_length=1)]


def check_layers(layers: Layers) -> Layers:
    """Raise ValueError unless every map has its pooling and avgpool, which is pooled already, has none."""
    wrong = [name for name, pool in layers.items() if (pool is None) != (name == "avgpool")]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: expected {{kernel, stride, padding}} for a map, null for avgpool")
    return layers


class Forward(Strict):
    """How a frozen backbone computes. Every value can move a bit of the features, the batch size included.

    What each option does to numbers and speed is measured in docs/speed.md. fp32, contiguous, without fusing or
    compiling is the plain loop of the reference code.
    """

    batch_size: Positive
    precision: Literal["fp32", "bf16"]  # bf16: weights and activations; pooling and what follows stay fp32
    memory_format: Literal["contiguous", "channels_last"]
    fuse_batch_norm: bool  # fold each batch norm's running statistics into its convolution
    compile: bool  # torch.compile; needs a C++ compiler on CPUs


class FeatureSpec(Strict):
    """How images become features: of which layers, pooled how, computed and stored in which precision."""

    transform: TestTransform
    layers: Annotated[Layers, AfterValidator(check_layers)]
    forward: Forward
    storage: Literal["fp32", "fp16"]


def extraction_key(card: CheckpointCard, manifest_sha256: str, spec: FeatureSpec) -> str:
    """What extractions that can share one pass over the images have in common: all but the layers."""
    return digest(
        {
            "tensors": card.tensors_sha256,
            "preprocessing": card.preprocessing(),
            "manifest": manifest_sha256,
            "decoder": DECODER,
            "spec": spec.model_dump(mode="json", exclude={"layers"}),
        }
    )


def feature_keys(card: CheckpointCard, manifest_sha256: str, spec: FeatureSpec) -> dict[LayerName, str]:
    """The content key of each layer's features: equal keys, equal bits. Paths and names are not in it."""
    base = extraction_key(card, manifest_sha256, spec)
    return {
        layer: digest({"extraction": base, "layer": layer, "pool": pool.model_dump() if pool else None})
        for layer, pool in spec.layers.items()
    }


Features = Mapping[str, Mapping[LayerName, np.ndarray]]  # by role and layer: (N, D), memory-mapped, in manifest order


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell being run, on this process."""

    settings: Any  # the benchmark's Settings
    execution: Any  # the benchmark's Execution
    seed: int
    card: CheckpointCard
    weights: Path  # verified against the card
    manifests: Mapping[str, Manifest]  # by role
    features: Features
    num_workers: int
    me: "World"
    work: Path  # the cell's own folder: what a killed run goes on from
    procs: int  # processes an engine is to start; without an engine the processes are there already (me)


class Benchmark(Protocol):
    """The shape of a benchmark module."""

    @property
    def Settings(self) -> type[BaseModel]: ...
    @property
    def Execution(self) -> type[BaseModel]: ...
    @property
    def ENGINE(self) -> Name | None: ...

    def roles(self, settings: Any, /) -> dict[str, str]: ...
    def features(self, settings: Any, /) -> dict[str, FeatureSpec]: ...
    def deterministic(self, settings: Any, /) -> bool: ...
    def run(self, job: Job, /) -> Measurement: ...
