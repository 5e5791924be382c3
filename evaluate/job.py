"""What a benchmark is given and what it declares. Needs no torch, so that planning is instant.

A benchmark is a module with
    Settings, Execution     strict models of its YAML's `settings` and `execution`
    roles(settings)         role → split: the datasets its record names ("train", "test", …)
    features(settings)      role → FeatureSpec: what it wants extracted beforehand, shared with other benchmarks
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
from pydantic import BaseModel, Field

from engines.launch import Name
from zoo.checkpoint import CheckpointCard
from zoo.config import Strict
from zoo.datasets import DECODER, Manifest
from zoo.files import digest
from zoo.record import Measurement
from zoo.transforms import TestTransform

if TYPE_CHECKING:
    from zoo.distributed import World


class FeatureSpec(Strict):
    """How images become features. Every value can change a bit of them, the batch size included."""

    transform: TestTransform
    layer: Literal["avgpool"]
    precision: Literal["fp32"]
    batch_size: Annotated[int, Field(gt=0)]


def feature_key(card: CheckpointCard, manifest_sha256: str, spec: FeatureSpec) -> str:
    """The content key of one extraction: equal keys, equal bits. Paths and names are not in it."""
    return digest(
        {
            "tensors": card.tensors_sha256,
            "preprocessing": card.preprocessing(),
            "manifest": manifest_sha256,
            "decoder": DECODER,
            "spec": spec.model_dump(mode="json"),
        }
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One cell being run, on this process."""

    settings: Any  # the benchmark's Settings
    execution: Any  # the benchmark's Execution
    seed: int
    card: CheckpointCard
    weights: Path  # verified against the card
    manifests: Mapping[str, Manifest]  # by role
    features: Mapping[str, np.ndarray]  # by role: (N, D) float32, memory-mapped, in manifest order
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
