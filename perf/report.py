"""python -m perf.report: how long does the page of 10,000 records take, and how much memory?

Makes a suite's folder of synthetic records (as many checkpoints as are needed for ten benchmarks each, replicates and
all), then builds its page in a process of its own.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from perf.measure import write_json
from zoo.benchmark import AnyBenchmark, benchmark_layout
from zoo.files import digest
from zoo.page import Page, PageCell, PageRow, write_page
from zoo.record import CheckpointRecord, DatasetRecord, ResultRecord, write_record

BENCHMARKS = (
    "imagenet_knn",
    "imagenet_linear",
    "imagenet_linear_stages",
    "places205_linear",
    "inaturalist2018_linear",
    "voc07_svm",
    "voc0712_detection_zoo",
    "voc12aug_segmentation_zoo",
    "cifar10_knn",
    "mini_linear",
)
NUM_REPLICATES = 1000


def main(
    records: Annotated[int, typer.Option(help="how many, a multiple of ten")] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="where; kept. Default: a temporary one")] = None,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print seconds and the largest resident set, in MiB, of `python -m report build`."""
    if folder is not None:
        result = _measured(folder, records)
    else:
        with tempfile.TemporaryDirectory() as made:
            result = _measured(Path(made), records)
    typer.echo(json.dumps(result))
    if out is not None:
        write_json(out, result)


def _measured(folder: Path, records: int) -> dict[str, Any]:
    if not (folder / "page.json").exists():
        make(folder, records)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "report", "build", str(folder)], check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"records": records, "seconds": round(seconds, 2), "peak_mib": round(peak)}


def make(folder: Path, records: int) -> None:
    """Write a page.json and its records: rows of random quality, their replicates correlated as on shared images."""
    rng = np.random.default_rng(0)
    layouts = {name: benchmark_layout(name) for name in BENCHMARKS}
    noise = {name: rng.standard_normal(NUM_REPLICATES) for name in BENCHMARKS}  # of the test images, shared
    rows: list[PageRow] = []
    cells: list[PageCell] = []
    for number in range(records // len(BENCHMARKS)):
        label = f"checkpoint {number}"
        rows.append(PageRow(key=f"row{number}", label=label, state="ready", note=None))
        quality = 60.0 + 5.0 * rng.standard_normal()
        for name, layout in layouts.items():
            record, arrays = _record(name, layout, label, quality, noise[name], rng)
            write_record(folder / "records", record, arrays)
            cells.append(PageCell(row=f"row{number}", benchmark=name, seed=0, cell_id=record.cell_id, state="done"))
    write_page(folder, Page(suite="synthetic", rows=tuple(rows), benchmarks=BENCHMARKS, cells=tuple(cells)))


def _names(layout: AnyBenchmark) -> Iterator[str]:
    for table in layout.tables:
        yield from (name for name in table.columns.values() if name is not None)


def _record(
    name: str, layout: AnyBenchmark, label: str, quality: float, noise: np.ndarray, rng: np.random.Generator
) -> tuple[ResultRecord, dict[str, np.ndarray]]:
    names = list(dict.fromkeys(_names(layout)))
    labels = {each: "feature5" for each in names if each.startswith("best_layer")}
    replicates: dict[str, np.ndarray] = {}
    for metric in names:
        if metric not in labels:
            drawn = quality + rng.standard_normal() + 0.3 * noise + 0.2 * rng.standard_normal(NUM_REPLICATES)
            replicates[metric] = drawn.astype(np.float32)
    ends = {metric: np.percentile(drawn.astype(float), [2.5, 97.5]) for metric, drawn in replicates.items()}
    splits = {"train": 120_000, "val": 5_000}
    record = ResultRecord(
        schema_version=1,
        cell_id=digest([label, name]),
        benchmark_config=name,
        benchmark=layout.benchmark,
        protocol=layout.protocol,
        modified=(),
        seed=0,
        deterministic=layout.benchmark in ("knn", "voc_svm"),
        checkpoint=CheckpointRecord(
            name=label,
            family=label,
            arch="resnet50",
            tensors_sha256=digest(label),
            pretrain_seed=0,
            epochs=100,
            preprocessing={"arch": "resnet50"},
        ),
        datasets={
            role: DatasetRecord(
                dataset=layout.dataset,
                split=split,
                sha256=digest([layout.dataset, split]),
                num_images=splits[split],
                num_classes=1000,
            )
            for role, split in (("train", "train"), ("test", "val"))
        },
        settings=json.loads(json.dumps(layout.settings)),
        selection="last epoch",
        num_scored=splits["val"],
        metrics={metric: float(drawn.mean()) for metric, drawn in replicates.items()},
        labels=labels,
        confidence={metric: (float(low), float(high)) for metric, (low, high) in ends.items()},
        details={},
        arrays_sha256="",
        command=f"python -m evaluate run --benchmark {name}",
        environment={"python": "3.11"},
        started="2024-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    predictions = rng.integers(0, 1000, splits["val"]).astype(np.int16)  # not read by the report
    return record, {"sample/top1": predictions} | {f"replicates/{metric}": d for metric, d in replicates.items()}


if __name__ == "__main__":
    typer.run(main)
