"""Records and pages for the report's tests, drawn in code on the real benchmark configurations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.published import load_published
from report.suite import suite_page
from zoo.benchmark import benchmark_layout
from zoo.files import digest
from zoo.page import Page, PageCell, PageRow, write_page
from zoo.record import CheckpointRecord, DatasetRecord, ResultRecord

IMAGES = {"train": 12000, "val": 2000}
AVGPOOL = "top1_lars_mmselfsup_avgpool"  # the metric in cifar10_linear's column
OTHERS = {"top1_sgd_lr30_avgpool": 65.0, "top1_sgd_lr100_avgpool": 67.5}  # of imagenet_linear


def heads(avgpool: float, reference: float = 68.0) -> dict[str, float]:
    """The metrics of imagenet_linear."""
    return {AVGPOOL: avgpool, "top1_lars_apex_avgpool": reference, **OTHERS}


def record(
    row: str,
    config: str,
    metrics: Mapping[str, float],
    *,
    seed: int = 0,
    half_width: float = 0.5,
    manifests: str = "a",
    **changes: Any,
) -> ResultRecord:
    """A result of checkpoint `row`, as benchmark `config` is configured now. `manifests` names the images."""
    layout = benchmark_layout(config)
    deterministic = layout.benchmark == "knn"
    settings = json.loads(json.dumps(layout.settings))
    fields: dict[str, Any] = {
        "schema_version": 1,
        "cell_id": digest([row, config, None if deterministic else seed, manifests, sorted(map(str, changes.items()))]),
        "benchmark_config": config,
        "benchmark": layout.benchmark,
        "protocol": layout.protocol,
        "modified": (),
        "seed": seed,
        "deterministic": deterministic,
        "checkpoint": CheckpointRecord(
            name=row,
            family=row,
            arch="resnet18",
            tensors_sha256=digest(row),
            pretrain_seed=0,
            epochs=1,
            preprocessing={"arch": "resnet18"},
        ),
        "datasets": {
            role: DatasetRecord(
                dataset=layout.dataset,
                split=split,
                sha256=digest([layout.dataset, split, manifests]),
                num_images=IMAGES[split],
                num_classes=10,
            )
            for role, split in (("bank" if deterministic else "train", "train"), ("test", "val"))
        },
        "settings": settings,
        "selection": "none: nothing is trained or chosen" if deterministic else "last epoch",
        "num_scored": IMAGES["val"],
        "metrics": dict(metrics),
        "confidence": {name: (value - half_width, value + half_width) for name, value in metrics.items()},
        "details": {},
        "arrays_sha256": "0" * 64,
        "command": "python -m evaluate run",
        "environment": {"host": "host-of-the-run"},
        "started": "2024-01-02T03:04:05+00:00",
        "seconds": 12.5,
    }
    return ResultRecord.model_validate(fields | changes)


def knn(k10: float, k20: float, k100: float, k200: float) -> dict[str, float]:
    return {"top1_k10": k10, "top1_k20": k20, "top1_k100": k100, "top1_k200": k200}


def write_records(folder: Path, records: Sequence[ResultRecord]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        (folder / f"{one.cell_id}.json").write_text(one.model_dump_json())


def row(key: str, **changes: Any) -> PageRow:
    return PageRow.model_validate({"key": key, "label": key, "state": "ready", "note": None} | changes)


def cell(
    key: str, benchmark: str, result: ResultRecord | None = None, *, seed: int = 0, state: str = "ready"
) -> PageCell:
    fields = {"row": key, "benchmark": benchmark, "seed": seed, "cell_id": result.cell_id if result else None}
    return PageCell.model_validate(fields | {"state": "done" if result else state})


def suite(
    folder: Path,
    rows: Sequence[PageRow],
    cells: Sequence[tuple[PageCell, ResultRecord | None]],
) -> str:
    """The page of a suite with these rows, cells and records."""
    benchmarks = tuple(dict.fromkeys(one.benchmark for one, _ in cells))
    page = Page(suite="mini", rows=tuple(rows), benchmarks=benchmarks, cells=tuple(one for one, _ in cells))
    folder.mkdir(parents=True, exist_ok=True)
    write_page(folder, page)
    write_records(folder / "records", [result for _, result in cells if result is not None])
    return suite_page(folder, load_published())


def measured(*results: ResultRecord) -> list[tuple[PageCell, ResultRecord | None]]:
    """A done cell for each record; its row is the checkpoint's name."""
    return [(cell(r.checkpoint.name, r.benchmark_config, r, seed=r.seed), r) for r in results]
