"""A suite's folder with something of all that a page shows: seeds, curves, a log, a label that must not become HTML."""

import json
from pathlib import Path

from tests.report.drawn import cell, heads, knn, measured, record, row, suite
from zoo.record import ResultRecord

NASTY = "<img src=x onerror=\"console.error('ran')\"> & *b* [c](d)"
COLLAPSED = "collapsed, stopped at step 60"
HOST = "host-of-the-run"
PATH = "/home/somebody/zoo/runs/mini/checkpoints/a/card.yaml"
COMMAND = f"python -m evaluate run --checkpoint {PATH} --benchmark cifar10_knn --seed 0"
HEAD = "lars_mmselfsup_avgpool/lr{}/wd0"


def make(folder: Path, *, epochs: int = 3) -> list[ResultRecord]:
    """Write page.json, records and logs into `folder`; the records."""
    names = ("random", "SimSiam", NASTY)
    neighbours = [
        record(name, "cifar10_knn", knn(30.0 + n, 31.0 + 10 * n, 32.0 - n, 9.5 + n), command=COMMAND)
        for n, name in enumerate(names)
    ]
    probes = [
        record(
            name,
            "cifar10_linear",
            heads(50.0 + 10 * n + seed),
            seed=seed,
            details={"history": history(epochs, 40.0 + n)},
        )
        for n, name in enumerate(names)
        for seed in (0, 1)
    ]
    rows = [*map(row, names), row("collapsed", state="collapsed", note=COLLAPSED)]
    results = [*neighbours, *probes]
    suite(folder, rows, [*measured(*results), (cell("collapsed", "cifar10_knn"), None)])
    place = folder / "checkpoints" / "SimSiam"
    place.mkdir(parents=True)
    log = [{"epoch": n // 5, "step": 10 * n, "loss": -n / 10, "std_sqrt_d": 1 - n / 20} for n in range(1, 9)]
    lines = [*log, {"epoch": 1, "step": 80, "knn20_top1": 41.5}]
    (place / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return results


def history(epochs: int, first: float) -> list[dict[str, object]]:
    """Two learning rates of one head; the second ends better."""
    return [
        {"head": HEAD.format(rate), "epoch": epoch, "lr": 0.1, "loss": 2.0 - epoch / 10, "top1": first + epoch * rate}
        for epoch in range(epochs)
        for rate in (1, 2)
    ]
