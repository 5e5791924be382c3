"""python -m perf.svm_agreement CARD BENCHMARK: do the batched solver and LinearSVC give the same average precisions?

The benchmark is run twice on the same features, by its own solver and by scikit-learn's LinearSVC at a tight tolerance
(the protocol's 1e-4 leaves some fits unfinished), and the two records are compared: every class at every cost, on
the folds and on the test images, and at the costs that each of them chose.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from evaluate.cells import resolve
from evaluate.run import run_cell
from perf.measure import print_table, write_json
from zoo.distributed import World
from zoo.record import ResultRecord, read_record

TIGHT = "settings.solver={{back_end: liblinear, tolerance: {}, max_iterations: 10000000}}"


def main(
    card: Annotated[Path, typer.Argument(help="a checkpoint's card.yaml")],
    benchmark: Annotated[str, typer.Argument(help="a VOC SVM benchmark")] = "mini_voc07_svm",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="as of `evaluate run`")] = None,
    low_shot: Annotated[bool, typer.Option(help="also the low-shot SVMs")] = False,
    tolerance: Annotated[float, typer.Option(help="LinearSVC's")] = 1e-6,
    out: Annotated[Path | None, typer.Option(help="also as JSON")] = None,
) -> None:
    """Print, a layer, the largest difference of average precision in points and how many choices differ."""
    me = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    rest = (*(overrides or ()), *(() if low_shot else ("settings.low_shot=null",)))
    ours, theirs = (_record(benchmark, card, (*rest, *given), me) for given in ((), (TIGHT.format(tolerance),)))
    rows = [_compared(layer, ours, theirs) for layer in ours.details["full"]]
    title = f"{benchmark}, {ours.checkpoint.name}: largest differences of AP, in points of 100"
    columns = ["layer", "folds, every cost", "test, every cost", "at the chosen cost", "costs chosen otherwise", "mAP"]
    print_table(title, columns, [list(row.values()) for row in rows])
    if low_shot:
        both = [name for name in ours.metrics if name.startswith("low_shot")]
        print_table(
            "low-shot mAP", ["metric", "ours", "LinearSVC"], [(n, ours.metrics[n], theirs.metrics[n]) for n in both]
        )
    if out is not None:
        write_json(out, {"title": title, "rows": rows})


def _record(benchmark: str, card: Path, overrides: tuple[str, ...], me: World) -> ResultRecord:
    with tempfile.TemporaryDirectory() as folder:
        cell = resolve(benchmark, card, 0, overrides)
        return read_record(run_cell(cell, Path(folder) / "records", num_workers=os.cpu_count() or 1, me=me))


def _compared(layer: str, ours: ResultRecord, theirs: ResultRecord) -> dict[str, Any]:
    pairs = [
        (ours.details["full"][layer]["classes"][name], theirs.details["full"][layer]["classes"][name])
        for name in ours.details["full"][layer]["classes"]
    ]

    def largest(key: str) -> float:
        return float(max(np.abs(np.subtract(one[key], other[key])).max() for one, other in pairs))

    return {
        "layer": layer,
        "cv_every_cost": largest("cv_ap_by_cost"),
        "test_every_cost": largest("test_ap_by_cost"),
        "test_at_chosen_cost": largest("test_ap"),
        "chosen_otherwise": f"{sum(one['cost'] != other['cost'] for one, other in pairs)} of {len(pairs)}",
        "map": f"{ours.metrics[f'svm_{layer}']:.3f} {theirs.metrics[f'svm_{layer}']:.3f}",
    }


if __name__ == "__main__":
    typer.run(main)
