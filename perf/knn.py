"""Is kNN as fast as the products it needs, does it fit into memory at ImageNet's size, and what does fp16 change?

    python -m perf.knn                      all k against a bare blocked matrix product with top-k (torch, same blocks)
    python -m perf.knn --storage            what changes when the same features are stored as fp16
    python -m perf.knn --storage --features X.npy --labels Y.npy       the same, of features given
    python -m perf.knn --scale --scratch DIR --rows 10000 --rows 40000 [--dtype float32]

Synthetic features are seeded: non-negative as after a ReLU, of 1,000 classes in sorted order as ImageNet's list is.
`--scale` writes each bank into DIR block by block, searches it in a fresh process, and removes it.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from evaluate import knn
from perf.measure import medians, print_table, write_json
from zoo.command import guarded
from zoo.errors import ZooError
from zoo.files import ROOT

KS = (10, 20, 100, 200)
NUM_CLASSES = 1000
SIGNAL = 0.22  # of a class's centre against noise of 1: neither everything nor nothing is found
CHECKED = 64  # queries compared with fp64
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def features(rows: slice, total: int, dims: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, dims) float32 features and (n,) labels of some rows of a bank of `total`."""
    centres = SIGNAL * np.random.default_rng(0).standard_normal((NUM_CLASSES, dims), dtype=np.float32)
    labels = np.arange(rows.start, rows.stop) * NUM_CLASSES // total
    noise = np.random.default_rng((seed, rows.start)).standard_normal((len(labels), dims), dtype=np.float32)
    return np.maximum(centres[labels] + noise, 0), labels


def classify(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, back_end: knn.BackEnd) -> dict[int, np.ndarray]:
    return knn.classify(
        queries,
        bank,
        labels,
        ks=KS,
        num_classes=int(labels.max()) + 1,
        temperature=0.07,
        back_end=back_end,
        block_mb=512,
    )


def bare(queries: torch.Tensor, bank: torch.Tensor, k: int) -> None:
    """The rival: products of the same blocks, torch's top-k of each, and the top-k of what two blocks found."""
    for block in queries.split(knn.QUERY_BLOCK):
        best = block.new_empty((len(block), 0))
        rows = best.long()
        for start in range(0, len(bank), knn.BANK_BLOCK):
            products = block @ bank[start : start + knn.BANK_BLOCK].T
            values, columns = products.topk(min(k, products.shape[1]), dim=1)
            both = torch.cat([best, values], 1)
            best, order = both.topk(min(k, both.shape[1]), dim=1)
            rows = torch.cat([rows, columns + start], 1).gather(1, order)


def against_fp64(queries: np.ndarray, bank: np.ndarray) -> tuple[int, int, float]:
    """Of the neighbours of some queries: their number, how many fp64 would not choose, and the similarity lost."""
    some = queries[:: max(1, len(queries) // CHECKED)][:CHECKED]
    k = min(max(KS), len(bank))
    _, found = knn.search(some, bank, k=k, back_end="torch", block_mb=512)
    unit = some / np.linalg.norm(some.astype(np.float64), axis=1, keepdims=True)
    exact = np.concatenate(
        [
            (unit @ (block.T / np.linalg.norm(block.astype(np.float64), axis=1)))
            for block in (bank[start : start + 8192] for start in range(0, len(bank), 8192))
        ],
        axis=1,
    )
    true = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    differ = [len(set(a) - set(b)) for a, b in zip(found.tolist(), true.tolist(), strict=True)]
    lost = np.take_along_axis(exact, true[:, -1:], 1) - np.take_along_axis(exact, found, 1)
    return found.size, sum(differ), float(lost.max())


def speed(rows: int, queries: int, dims: int, repeats: int, back_end: knn.BackEnd) -> dict[str, Any]:
    bank, labels = features(slice(0, rows), rows, dims, 1)
    asked = features(slice(0, queries), queries, dims, 2)[0]
    unit_bank, unit_queries = (torch.nn.functional.normalize(torch.from_numpy(each)) for each in (bank, asked))
    seconds = medians(
        {
            "ours": lambda: classify(asked, bank, labels, back_end),
            "bare": lambda: bare(unit_queries, unit_bank, max(KS)),
        },
        repeats=repeats,
    )
    checked, wrong, lost = against_fp64(asked, bank)
    threads = torch.get_num_threads()
    title = f"{queries:,} queries, {rows:,} x {dims} fp32, k = {KS}, medians of {repeats}, {threads} threads"
    print_table(
        title,
        ["way", "seconds"],
        [
            (f"ours ({back_end}): normalise, search, vote for all k", seconds["ours"]),
            (f"bare: products and top-{max(KS)}, normalised before", seconds["bare"]),
            ("ours / bare", seconds["ours"] / seconds["bare"]),
        ],
    )
    print(f"neighbours that fp64 would not choose: {wrong} of {checked:,}, at most {lost:.1e} less similar")
    ratio = seconds["ours"] / seconds["bare"]
    return {"setting": title, **seconds, "ratio": ratio, "checked": checked, "wrong": wrong, "lost": lost}


def storage(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """What differs between the features as fp32 and the same rounded to fp16, bank and queries both."""
    results = []
    for dtype in (np.float32, np.float16):
        stored = queries.astype(dtype), bank.astype(dtype)
        neighbours = knn.search(*stored, k=max(KS), back_end="torch", block_mb=512)[1]
        results.append((neighbours, classify(*stored, labels, "torch")))
    (exact, decided), (rounded, decided_16) = results
    rows = []
    for k in KS:
        changed = [len(set(a) - set(b)) for a, b in zip(exact[:, :k].tolist(), rounded[:, :k].tolist(), strict=True)]
        top1 = [100 * float((ranked[k][:, 0] == truth).mean()) for ranked in (decided, decided_16)]
        flips = int((decided[k][:, 0] != decided_16[k][:, 0]).sum())
        rows.append((k, f"{100 * sum(changed) / (k * len(queries)):.3f}", flips, f"{top1[0]:.2f}", f"{top1[1]:.2f}"))
    title = f"fp32 against fp16 storage: {len(queries):,} queries, bank {len(bank):,} x {bank.shape[1]}"
    columns = ["k", "neighbours changed, %", "top-1 decisions changed", "top-1 fp32", "top-1 fp16"]
    print_table(title, columns, rows)
    return {"setting": title, "columns": columns, "rows": rows}


def scale(
    rows: list[int], queries: int, dims: int, dtype: str, back_end: str, scratch: Path
) -> list[dict[str, object]]:
    measured = []
    for size in rows:
        path = scratch / f"bank_{size}_{dtype}.npy"
        try:
            bank = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (size, dims))
            for start in range(0, size, 8192):
                some = slice(start, min(start + 8192, size))
                bank[some] = features(some, size, dims, 1)[0]
            bank.flush()
            del bank
            command = ["-m", "perf.knn", "--one", str(path), "--queries", str(queries), "--back-end", back_end]
            child = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
            if child.returncode:
                raise ZooError(f"bank of {size:,} rows: the search failed:\n{child.stderr}")
            seconds, before, peak = map(float, child.stdout.split())
        finally:
            path.unlink(missing_ok=True)
        measured.append(
            {
                "bank": f"{size:,}",
                "GB": size * dims * np.dtype(dtype).itemsize / 1e9,
                "s": seconds,
                "min for 50,000 (extrapolated)": seconds * 50_000 / queries / 60,
                "MiB before": round(before),
                "peak MiB": round(peak),
            }
        )
        print(f"{size:,} rows: {seconds:.1f} s", file=sys.stderr)
    print_table(
        f"{queries:,} queries, {dims}-d {dtype}, k = {KS}; memory without file pages",
        list(measured[0]),
        [tuple(line.values()) for line in measured],
    )
    return measured


def one(path: Path, queries: int, back_end: knn.BackEnd) -> str:
    """Search one bank: 'seconds, MiB of anonymous memory before, its peak'."""
    bank = np.load(path, mmap_mode="r")
    labels = np.arange(len(bank)) * NUM_CLASSES // len(bank)
    asked = features(slice(0, queries), queries, bank.shape[1], 2)[0].astype(bank.dtype)
    classify(asked[:1], bank[: max(KS)], labels[: max(KS)], back_end)  # what is loaded with the first call
    before = peak = _anonymous_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    classify(asked, bank, labels, back_end)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return f"{seconds} {before} {peak}"


def _anonymous_mb() -> float:
    """This process's memory without file pages, from Linux's own books."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


@app.command()
def main(
    rows: Annotated[list[int] | None, typer.Option(help="of the bank; several with --scale")] = None,
    queries: Annotated[int | None, typer.Option()] = None,
    dims: Annotated[int, typer.Option()] = 2048,
    repeats: Annotated[int, typer.Option()] = 5,
    back_end: Annotated[str, typer.Option()] = "torch",
    dtype: Annotated[str, typer.Option(help="of the banks of --scale")] = "float16",
    measure_storage: Annotated[bool, typer.Option("--storage")] = False,
    features_file: Annotated[Path | None, typer.Option("--features", help="(N, D) fp32; every fifth row asks")] = None,
    labels_file: Annotated[Path | None, typer.Option("--labels", help="(N,) integers")] = None,
    measure_scale: Annotated[bool, typer.Option("--scale")] = False,
    scratch: Annotated[Path | None, typer.Option(help="where --scale writes its banks")] = None,
    one_bank: Annotated[Path | None, typer.Option("--one", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(help="a JSON file")] = None,
) -> None:
    """Measure kNN."""
    if back_end not in ("faiss", "torch") or dtype not in ("float16", "float32"):
        raise ZooError(f"expected --back-end faiss or torch and --dtype float16 or float32, found {back_end}, {dtype}.")
    if one_bank is not None:
        print(one(one_bank, queries or 1024, back_end))
        return
    if (features_file is None) != (labels_file is None) or (features_file and not measure_storage):
        raise ZooError("--features and --labels belong together, with --storage.")
    if measure_scale:
        if scratch is None:
            raise ZooError("--scale needs --scratch DIR, a folder with room for the largest bank.")
        result = scale(rows or [10_000, 40_000], queries or 1024, dims, dtype, back_end, scratch)
    elif measure_storage and features_file and labels_file:
        given, labels = np.load(features_file), np.load(labels_file)
        asks = np.arange(len(given)) % 5 == 4
        result = storage(given[~asks], labels[~asks], given[asks], labels[asks])
    elif measure_storage:
        size, asked = (rows or [40_000])[0], queries or 2000
        bank, test = features(slice(0, size), size, dims, 1), features(slice(0, asked), asked, dims, 2)
        result = storage(*bank, *test)
    else:
        result = speed((rows or [100_000])[0], queries or 2000, dims, repeats, back_end)
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    guarded(app)
