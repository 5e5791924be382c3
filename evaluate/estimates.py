"""What will a suite's tasks take: hours, memory, disk? From what was recorded here, else from stated constants.

Sizes of features are exact: images x values x bytes. Times are as good as their source, which is always said:
`recorded`, the median of this machine's records of the same benchmark and architecture, as they stand; `suite`, what
its `resources` say; `stated`, the constants below times the size of the work. Needs no torch.
"""

import heapq
import json
import math
import os
import platform
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from evaluate.benchmarks import BENCHMARKS
from evaluate.engine import EngineSettings
from evaluate.job import FeatureSpec, LayerName, Pool, feature_keys
from evaluate.sources import Source
from evaluate.suite import Plan, PlannedCell
from zoo.datasets import Identity, identity
from zoo.files import cache_dir, canonical_json, runs_dir

Basis = Literal["recorded", "suite", "stated"]
GB = 1e9

# Operations of one forward pass at 224 x 224; a test holds them to converters/counts.py. Raw pixels are no network.
OPERATIONS: Final = {
    "resnet18": 1.819e9,
    "resnet34": 3.671e9,
    "resnet50": 4.109e9,
    "resnet101": 7.832e9,
    "raw_pixels": 0.0,
}
ASSUMED_ARCH: Final = "resnet50"  # of a file nobody has looked into
# ResNet-50 forward passes a second at 224 pixels, reading the images included.
FORWARDS: Final = {
    "cpu": 7.9,  # a core: 15.8 on two (docs/speed.md, extraction)
    "gpu": 671.0,  # a V100: MoCo's README, 200 epochs of 1,281,167 images in 53 h on 8; 4 forward passes' work an image
}
BACKWARD: Final = 3  # forward and backward pass, in forward passes
START_SECONDS: Final = 5.0  # docs/speed.md, starting
SVM_SECONDS: Final = (17.0, 31.0)  # a layer's full SVMs, all low-shot SVMs: 5,011 images, two cores (docs/speed.md)
SVM_IMAGES: Final = 5011
# A V100 image: training at 720 pixels (0.551 s for 16 on 8), inference at 800. detectron2 MODEL_ZOO.md, R50-C4 1x.
DETECTION_SECONDS: Final = (0.551 * 8 / 16, 0.102)
INSTANCE_SECONDS: Final = {"c4": (0.584 * 8 / 16, 0.110), "fpn": (0.261 * 8 / 16, 0.043)}  # Mask R-CNN, R50 1x; there
DETECTION_PIXELS: Final = (720, 800)
# A V100 pixel of inference: 4.17 images of 2048 x 1024 a second. mmsegmentation configs/fcn/README.md, R-50-D8.
SEGMENTATION_SECONDS: Final = 1 / (4.17 * 2048 * 1024)
PROCESS_GB: Final = 2.0  # a process with torch and its loaders: stated, not measured
RECORDS_A_SUITE: Final = 200  # the newest so many are asked what they took
_STAGES: Final[dict[LayerName, int]] = {"feature1": 1, "feature2": 2, "feature3": 3, "feature4": 4, "feature5": 5}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One task of a plan. disk_bytes: what it adds to the feature cache; nothing is counted twice."""

    label: str
    what: str  # the benchmark, or how the checkpoint is made
    seed: str
    state: str
    note: str  # what it waits for or needs, or why it is not run
    hours: float | None = None  # None where nothing is to be done
    basis: Basis | None = None
    memory_gb: float = 0.0
    disk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A suite's tasks with what they take. hours: of all that is to be done; elapsed: with `jobs` at once."""

    rows: tuple[Row, ...]
    skipped: dict[str, str]
    jobs: int
    elapsed: float

    @property
    def hours(self) -> float:
        return sum(row.hours or 0.0 for row in self.rows)

    @property
    def disk_bytes(self) -> int:
        return sum(row.disk_bytes for row in self.rows)

    def lines(self) -> Iterator[str]:
        """The plan as text, one line a task, then the totals."""
        table = [("checkpoint", "task", "seed", "state", "time", "memory", "disk", "")]
        table += [_shown(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        yield ""
        yield from self._totals()
        for name, reason in self.skipped.items():
            yield f"skipped: {name}: {reason}"

    def _totals(self) -> Iterator[str]:
        todo = [row for row in self.rows if row.hours is not None]
        states = [row.state for row in self.rows]
        yield f"{len(states)} tasks: " + ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        if not todo:
            return
        by_basis = {basis: [row.hours or 0.0 for row in todo if row.basis == basis] for basis in BASES}
        parts = [f"{duration(sum(hours))} {basis}" for basis, hours in by_basis.items() if hours]
        elapsed = f"about {duration(self.elapsed)} with --jobs {self.jobs}"
        yield f"to do: {duration(self.hours)} in sum ({', '.join(parts)}); {elapsed}"
        place = next(p for p in (cache_dir(), *cache_dir().parents) if p.exists())
        free = shutil.disk_usage(place).free
        enough = "" if self.disk_bytes < free else ": NOT ENOUGH; set ZOO_CACHE to a larger disk"
        yield f"new features: {size(self.disk_bytes)}, of {size(free)} free{enough}"
        yield f"largest task: {max(row.memory_gb for row in todo):.1f} GB of memory (stated)"
        if by_basis["stated"]:
            yield "~: from stated constants (evaluate/estimates.py), good to a factor of a few"


BASES: Final[tuple[Basis, ...]] = ("recorded", "suite", "stated")


def _shown(row: Row) -> tuple[str, ...]:
    time = memory = disk = ""
    if row.hours is not None:
        time = f"{'~' if row.basis == 'stated' else ''}{duration(row.hours)} {row.basis}"
        memory = f"{row.memory_gb:.1f} GB"
        disk = size(row.disk_bytes) if row.disk_bytes else ""
    return (row.label, row.what, row.seed, row.state, time, memory, disk, row.note)


def duration(hours: float) -> str:
    """Hours, minutes or seconds, two digits."""
    if hours >= 1:
        return f"{hours:,.1f} h" if hours < 100 else f"{hours:,.0f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"


def size(count: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def width(arch: str, layer: LayerName, pool: Pool | None, crop: int) -> int:
    """How many values a layer's features have for images of `crop` x `crop`."""
    if arch == "raw_pixels":
        return 3 * crop * crop
    expansion = 4 if arch in ("resnet50", "resnet101") else 1
    if layer == "avgpool":
        return 512 * expansion
    stage = _STAGES[layer]
    channels = 64 if stage == 1 else 64 * 2 ** (stage - 2) * expansion
    assert pool is not None
    out = (math.ceil(crop / 2**stage) + 2 * pool.padding - pool.kernel) // pool.stride + 1
    return channels * out * out


def recorded_hours(runs: Path) -> dict[tuple[str, str], float]:
    """(benchmark, architecture) → median hours of the records under `runs` that this machine made unmodified.

    A record that cannot be read is no source of an estimate; that it is broken is said where it is used.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for folder in runs.glob("*/records"):
        with os.scandir(folder) as entries:
            paths = [(entry.stat().st_mtime, entry.path) for entry in entries if entry.name.endswith(".json")]
        for _, path in heapq.nlargest(RECORDS_A_SUITE, paths):
            try:
                record = json.loads(Path(path).read_bytes())
                where = record["environment"]
                if record["modified"] or (where["platform"], where["cores"]) != (platform.platform(), os.cpu_count()):
                    continue
                key = record["benchmark_config"], record["checkpoint"]["arch"]
                found.setdefault(key, []).append(float(record["seconds"]) / 3600)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return {key: statistics.median(hours) for key, hours in found.items()}


def estimate(plan: Plan, *, jobs: int | None = None, procs: int = 1) -> Estimate:
    """What is left to do of `plan`, with `jobs` tasks at once of `procs` processes each.

    jobs: as the queue has it by default: the suite's, else one for as many GPUs as a task has processes, else one.
    """
    jobs = jobs or plan.suite.resources.jobs or max(1, num_gpus() // procs)
    work = _Work(plan, procs)
    rows: list[Row] = []
    slots = [0.0] * jobs
    made: dict[str, float] = {}  # source → when its checkpoint is there
    failed, done = plan.failures(), plan.done()
    for source in plan.sources:
        if source.card is None and not source.collapsed() and source.make is not None:
            row = work.make(source, failed)
            rows.append(row)
            start = heapq.heappop(slots)
            made[source.key] = start + (row.hours or 0.0)
            heapq.heappush(slots, made[source.key])
    elapsed = max(slots)
    for planned in plan.cells():
        row = work.cell(planned, done, failed)
        rows.append(row)
        if row.hours is not None:
            end = max(heapq.heappop(slots), made.get(planned.source.key, 0.0)) + row.hours
            heapq.heappush(slots, end)
            elapsed = max(elapsed, end)
    return Estimate(rows=tuple(rows), skipped=plan.skipped, jobs=jobs, elapsed=elapsed)


class _Work:
    """Sizes of a plan's tasks. It remembers which features it has counted: a later cell finds them in the cache."""

    def __init__(self, plan: Plan, procs: int) -> None:
        self.plan = plan
        self.resources = plan.suite.resources
        self.gpus = num_gpus()
        self.procs = procs
        self.recorded = recorded_hours(runs_dir())
        self.cores = os.cpu_count() or 1
        self.measuring: dict[tuple[str, str], tuple[float, Basis, float]] = {}
        self.planned_features: set[tuple[str, ...]] = set()
        features = cache_dir() / "features"
        self.cached = frozenset(os.listdir(features)) if features.is_dir() else frozenset[str]()
        self.specs = {
            name: {
                role: (spec, canonical_json(spec.model_dump(mode="json", exclude={"layers"})))
                for role, spec in BENCHMARKS[config.benchmark].features(config.settings).items()
            }
            for name, config in plan.configs.items()
        }
        self.collapsed = {source.key: source.collapsed() for source in plan.sources}

    def make(self, source: Source, failed: frozenset[str]) -> Row:
        """Of training, converting or drawing a checkpoint."""
        stated = self.resources.of("make")
        seconds = START_SECONDS
        recipe = source.recipe
        if recipe is not None:
            images = identity(recipe.dataset, recipe.split).num_images * recipe.epochs
            views = 2 if recipe.method.name == "simsiam" else 1
            seconds += self._forward_seconds(recipe.arch, recipe.views.crop, images * views * BACKWARD)
        assert source.make is not None
        hours, basis = (stated.hours, "suite") if stated.hours is not None else (seconds / 3600, "stated")
        return Row(
            label=source.label,
            what={"pretrain": "training", "converters": "reading"}.get(source.make[0], "drawing"),
            seed="",
            state="failed" if source.key in failed else "ready",
            note=_last_line(self.plan.failure(source.key)) if source.key in failed else "",
            hours=hours,
            basis=basis,  # type: ignore[arg-type]
            memory_gb=stated.memory_gb or PROCESS_GB * self.procs,
        )

    def cell(self, planned: PlannedCell, done: frozenset[str], failed: frozenset[str]) -> Row:
        """Of one cell."""
        label, seed = planned.source.label, str(planned.seed)
        cell, name = planned.cell, planned.benchmark
        if cell is not None and cell.id in done:
            return Row(label=label, what=name, seed=seed, state="done", note="")
        reason = self.collapsed[planned.source.key] or self.plan.skipped.get(name)
        if reason is not None:
            return Row(label=label, what=name, seed=seed, state="skipped", note=reason)
        hours, basis, memory, disk = self._take(planned)
        state, note = "ready", "features to extract" if disk else ""
        if cell is None:
            state, note = "waiting", f"for its checkpoint{', which failed' if planned.source.key in failed else ''}"
        elif cell.id in failed:
            state, note = "failed", _last_line(self.plan.failure(cell.id))
        elif planned.features_key in failed and disk:
            note = "features to extract, which failed"
        return Row(
            label=label,
            what=name,
            seed=seed,
            state=state,
            note=note,
            hours=hours,
            basis=basis,
            memory_gb=memory,
            disk_bytes=disk,
        )

    def _take(self, planned: PlannedCell) -> tuple[float, Basis, float, int]:
        """(hours, their basis, memory in GB, bytes of new features)."""
        name, arch = planned.benchmark, planned.source.arch or ASSUMED_ARCH
        extracting, disk = self._features(planned, arch)
        if (name, arch) not in self.measuring:
            self.measuring[name, arch] = self._measuring(name, arch)
        hours, basis, memory = self.measuring[name, arch]
        return hours + (extracting / 3600 if basis == "stated" else 0.0), basis, memory, disk

    def _measuring(self, name: str, arch: str) -> tuple[float, Basis, float]:
        """(hours, their basis, memory in GB) of a benchmark that finds its features."""
        config, datasets = self.plan.configs[name], self.plan.datasets[name]
        said = self.resources.of("cell", config.benchmark)
        memory = said.memory_gb or self._memory_gb(config.benchmark, config.settings, config.execution, arch, datasets)
        if (name, arch) in self.recorded:
            return self.recorded[name, arch], "recorded", memory
        if said.hours is not None:
            return said.hours, "suite", memory
        seconds = START_SECONDS + self._measuring_seconds(config.benchmark, config.settings, arch, datasets)
        return seconds / 3600, "stated", memory

    def _features(self, planned: PlannedCell, arch: str) -> tuple[float, int]:
        """(seconds, bytes) of the features that neither the cache nor an earlier cell has."""
        seconds, disk = 0.0, 0
        for role, (spec, plain) in self.specs[planned.benchmark].items():
            who = self.plan.datasets[planned.benchmark][role]
            new: list[tuple[LayerName, Pool | None]] = [
                (layer, pool) for layer, pool in spec.layers.items() if self._is_new(planned, who, spec, plain, layer)
            ]
            if new:
                crop = spec.transform.crop
                seconds += self._forward_seconds(arch, crop, who.num_images)
                values = sum(width(arch, layer, pool, crop) for layer, pool in new)
                disk += who.num_images * values * (4 if spec.storage == "fp32" else 2)
        return seconds, disk

    def _is_new(self, planned: PlannedCell, who: Identity, spec: FeatureSpec, plain: str, layer: LayerName) -> bool:
        key = (planned.source.key, who.sha256, plain, layer, str(spec.layers[layer]))
        if key in self.planned_features:
            return False
        self.planned_features.add(key)
        if planned.cell is None or not self.cached:
            return True
        return feature_keys(planned.cell.card, who.sha256, spec)[layer] not in self.cached

    def _forward_seconds(self, arch: str, crop: int, images: float) -> float:
        """Of forward passes on this machine: all cores, or a GPU a process."""
        share = OPERATIONS[arch] / OPERATIONS["resnet50"] * (crop / 224) ** 2
        return images * share / self._rate()

    def _rate(self) -> float:
        if self.gpus:
            return FORWARDS["gpu"] * min(self.procs, self.gpus)
        return FORWARDS["cpu"] * self.cores

    def _measuring_seconds(self, kind: str, settings: Any, arch: str, datasets: dict[str, Identity]) -> float:
        """What a benchmark takes once it has its features."""
        share = OPERATIONS[arch] / OPERATIONS["resnet50"]
        slower = FORWARDS["gpu"] / self._rate()  # than one V100
        if kind == "knn":
            (layer,) = settings.features.layers
            values = width(arch, layer, settings.features.layers[layer], settings.features.transform.crop)
            products = datasets["bank"].num_images * datasets["test"].num_images * values
            return products / OPERATIONS["resnet50"] / self._rate()
        if kind == "linear":
            epochs = max(recipe.epochs for recipe in settings.recipes.values())
            crop = settings.test_transform.crop
            return self._forward_seconds(arch, crop, epochs * datasets["train"].num_images)
        if kind == "voc_svm":
            full, low_shot = SVM_SECONDS
            scale = (datasets["train"].num_images / SVM_IMAGES) ** 2  # kernels
            return (full * len(settings.features.layers) + low_shot) * scale
        if BENCHMARKS[kind].ENGINE is None:
            return 0.0  # of a kind that is new here nothing is known beyond its features
        engine = settings.engine_config
        tests = datasets["test"].num_images
        if kind in ("detection", "instance_segmentation"):
            solver, sizes = engine["SOLVER"], engine["INPUT"]
            train, test = DETECTION_SECONDS if kind == "detection" else INSTANCE_SECONDS[settings.layout]
            train *= (statistics.mean(sizes["MIN_SIZE_TRAIN"]) / DETECTION_PIXELS[0]) ** 2
            test *= (sizes["MIN_SIZE_TEST"] / DETECTION_PIXELS[1]) ** 2
            images = solver["MAX_ITER"] * solver["IMS_PER_BATCH"] * _trainings(settings)
            return (images * train + tests * test) * share * slower
        assert kind == "segmentation", kind
        height, wide = engine["model"]["data_preprocessor"]["size"]
        images = engine["train_cfg"]["max_iters"] * engine["train_dataloader"]["batch_size"] * _trainings(settings)
        return (images * BACKWARD + tests) * height * wide * SEGMENTATION_SECONDS * share * slower

    def _memory_gb(self, kind: str, settings: Any, execution: Any, arch: str, datasets: dict[str, Identity]) -> float:
        total = PROCESS_GB * self.procs
        if kind in ("knn", "voc_svm"):
            spec: FeatureSpec = settings.features
            values = max(width(arch, layer, pool, spec.transform.crop) for layer, pool in spec.layers.items())
            total += sum(who.num_images for who in datasets.values()) * values * 4 / GB
        if kind == "voc_svm":
            total += datasets["train"].num_images ** 2 * 8 / GB + execution.memory_mb / 1000
        return total


def _trainings(settings: EngineSettings) -> float:
    """How many full schedules an engine trains: one, and the points of a sweep of rates."""
    sweep = settings.lr_sweep
    return 1.0 if sweep is None else 1.0 + sweep.iterations * len(sweep.factors)


def num_gpus() -> int:
    """What the driver lists; asking torch would take seconds."""
    if os.environ.get("ZOO_DEVICE") == "cpu":
        return 0
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def _last_line(text: str | None) -> str:
    lines = (text or "").strip().splitlines()
    return lines[-1].strip()[:120] if lines else ""
