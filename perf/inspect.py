"""python -m perf.inspect: what `converters inspect` of a ResNet-50's file costs beyond starting Python.

The rival is a process that starts the same way and loads the file as everybody does, torch.load(weights_only=True), and
knows nothing of it then. Each file (100 MB: torch's zip format, the one before, safetensors) is inspected in a fresh
process; time and memory have those of `import torch` alone taken off. Memory is the process's peak (VmHWM, the mapped
file included).
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import safetensors.torch
import torch
import typer

from perf.measure import print_table, write_json
from zoo.backbone import Backbone
from zoo.files import ROOT

TOLD: Final = """
import json, time
started = time.perf_counter()
import torch
{work}
with open("/proc/self/status") as status:  # ru_maxrss would be the parent's where that was larger
    (peak,) = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
print(json.dumps([time.perf_counter() - started, peak]))
"""
INSPECT: Final = """
from pathlib import Path
from converters.inspect import describe
found = describe(Path({path!r}))
assert not found["problems"] and found["coverage"]["matched"] == 318
"""
LOAD: Final = "torch.load({path!r}, weights_only=True)"


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 5, out: Annotated[Path | None, typer.Option(help="JSON")] = None
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        files = _files(Path(name))
        works = {"import torch": ""}
        works |= {f"inspect, {kind}": INSPECT.format(path=str(path)) for kind, path in files.items()}
        works["torch.load, zip"] = LOAD.format(path=str(files["zip"]))
        told = {work: [] for work in works}
        for number in range(repeats):
            for work, text in works.items():
                told[work].append(_run(text, Path(name) / f"cache{number}"))
        size = files["zip"].stat().st_size
    seconds, peak = ({work: statistics.median(t[i] for t in each) for work, each in told.items()} for i in (0, 1))
    base = "import torch"
    rows = [(work, seconds[work] - seconds[base], (peak[work] - peak[base]) / size) for work in works if work != base]
    print_table(
        f"beyond `import torch` ({seconds[base]:.2f} s); file of {size / 1e6:.0f} MB, median of {repeats}",
        ["", "seconds", "peak memory / file"],
        rows,
    )
    if out is not None:
        write_json(out, {"bytes": size, "seconds": seconds, "peak_bytes": peak})


def _files(folder: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    state = Backbone("resnet50").state_dict() | {"fc.weight": torch.randn(1000, 2048), "fc.bias": torch.zeros(1000)}
    files = {"zip": folder / "zip.pth", "before 1.6": folder / "old.pth", "safetensors": folder / "a.safetensors"}
    torch.save(state, files["zip"])
    torch.save(state, files["before 1.6"], _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, files["safetensors"])
    return files


def _run(work: str, cache: Path) -> tuple[float, float]:
    ended = subprocess.run(
        [sys.executable, "-c", TOLD.format(work=work)],
        cwd=ROOT,
        env={"ZOO_CACHE": str(cache), "PATH": "/usr/bin:/bin"},  # no ledger: the file is hashed
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, peak = json.loads(ended.stdout)
    return seconds, peak


if __name__ == "__main__":
    typer.run(main)
