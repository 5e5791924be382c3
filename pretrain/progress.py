"""What a run says while it runs: a progress bar or log lines, log.jsonl, TensorBoard. Only process 0 speaks.

log.jsonl has one line every LOG_STEPS steps, one a kNN measurement and one a step that replaced images. A resumed run
first cuts it back to the step it goes on from, so that it ends as an uninterrupted one's, but for the fields in TIMES.
"""

import json
import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zoo import device as devices
from zoo.files import write_atomic

logger = logging.getLogger(__name__)

T = TypeVar("T")
LOG_NAME = "log.jsonl"
LOG_STEPS = 10
LINE_SECONDS = 10.0
TIMES = ("images_per_second", "seconds", "memory_gb", "gpu_memory_gb", "seconds_waiting", "seconds_computing")
# what a rerun cannot repeat


def is_logged(step: int, total_steps: int) -> bool:
    """Whether log.jsonl gets a line after this step, counted from 1."""
    return step % LOG_STEPS == 0 or step == total_steps


class Waiting:
    """How long has the loop waited for its loader?"""

    def __init__(self) -> None:
        self.seconds = 0.0

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """`items`, the time until each comes added up."""
        waiting = iter(items)
        while True:
            start = time.monotonic()
            try:
                item = next(waiting)
            except StopIteration:
                return
            finally:
                self.seconds += time.monotonic() - start
            yield item


class RunLog:
    """A context manager; outside the main process all its methods do nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        total_steps: int,
        batch_size: int,
        device: torch.device,
        enabled: bool,
    ) -> None:
        self.folder, self.device, self.enabled = folder, device, enabled
        self.start_step, self.total_steps, self.batch_size = start_step, total_steps, batch_size
        self.begun = self.last_line = time.monotonic()
        self.waiting = Waiting()
        self.last_entry = (start_step, self.begun, 0.0)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}"),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not (enabled and sys.stderr.isatty()),
        )

    def __enter__(self) -> "RunLog":
        if self.enabled:
            from torch.utils.tensorboard import SummaryWriter  # a second's import that no other process needs

            _cut_back(self.folder / LOG_NAME, self.start_step)
            self.stream = (self.folder / LOG_NAME).open("a", encoding="utf-8")
            self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start_step + 1)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total_steps, completed=self.start_step, values="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.enabled:
            self.bar.stop()
            self.board.close()
            self.stream.close()

    def step(self, epoch: int, step: int, values: Mapping[str, float | None]) -> None:
        """Called after every step; `step` counts from 1, `epoch` from 0. values: loss, std, lr, …; None is left out."""
        if not self.enabled:
            return
        known = {name: value for name, value in values.items() if value is not None}
        if is_logged(step, self.total_steps):
            now = time.monotonic()
            before, then, waited = self.last_entry
            speed = (step - before) * self.batch_size / max(now - then, 1e-9)
            self.last_entry = (step, now, self.waiting.seconds)
            waited = self.waiting.seconds - waited
            times = {TIMES[0]: round(speed, 1), TIMES[4]: round(waited, 2), TIMES[5]: round(now - then - waited, 2)}
            self._write({"epoch": epoch, "step": step, **known, **times, **self._memory()})
        self._show(epoch, step, known)

    def measure(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        """Something measured at the end of an epoch."""
        if self.enabled:
            self._write({"epoch": epoch, "step": step, **values})
            logger.info("epoch %d  %s", epoch + 1, "  ".join(f"{name} {value:.2f}" for name, value in values.items()))

    def has_measurement(self, step: int) -> bool:
        """Whether log.jsonl has what was measured after `step`; never outside the main process."""
        if not self.enabled:
            return False
        entries = map(json.loads, (self.folder / LOG_NAME).read_text(encoding="utf-8").splitlines())
        return any(entry["step"] == step and any(name.startswith("knn") for name in entry) for entry in entries)

    def note(self, epoch: int, step: int, values: Mapping[str, Any]) -> None:
        """Something that happened in a step."""
        if self.enabled:
            self._write({"epoch": epoch, "step": step, **values})

    def _memory(self) -> dict[str, float]:
        """Peaks so far, in GB: of this process, without its loader workers, and on its GPU if it has one."""
        on_machine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # in KiB, on Linux
        on_gpu = devices.memory_used(self.device)
        peaks = {TIMES[2]: on_machine, **({TIMES[3]: on_gpu} if on_gpu else {})}
        return {name: round(value / 1e9, 3) for name, value in peaks.items()}

    def _write(self, entry: dict[str, Any]) -> None:
        entry = {**entry, TIMES[1]: round(time.monotonic() - self.begun, 2)}
        self.stream.write(json.dumps(entry) + "\n")
        self.stream.flush()
        for name, value in entry.items():
            if name not in ("epoch", "step", TIMES[1]) and isinstance(value, int | float):
                self.board.add_scalar(name, value, entry["step"])

    def _show(self, epoch: int, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        done, took = step - self.start_step, now - self.begun
        speed = f"{done * self.batch_size / took:.1f} img/s"
        shown = [f"{name} {value:.4g}" for name, value in values.items()]
        if not self.bar.disable:
            text = "  ".join([*shown[:3], speed])  # a terminal may be 80 columns wide
            self.bar.update(self.task, completed=step, description=f"epoch {epoch + 1}", values=text)
        elif done == 1 or step == self.total_steps or now - self.last_line >= LINE_SECONDS:
            self.last_line = now
            left = timedelta(seconds=round(took / done * (self.total_steps - step)))
            line = "  ".join([*shown, speed, f"{self.waiting.seconds / took:.0%} of it waiting", f"{left} left"])
            logger.info("epoch %d  step %d/%d  %s", epoch + 1, step, self.total_steps, line)


def _cut_back(path: Path, step: int) -> None:
    """Keep the entries up to `step`; a line torn by a kill, and all after it, go too."""
    if not path.exists():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line)
    write_atomic(path, "".join(kept))


@contextmanager
def log_lines_above(log: RunLog) -> Iterator[None]:
    """Within the block log lines are printed above the progress bar, not through it."""
    if log.bar.disable:
        yield
        return
    root = logging.getLogger()
    above: list[logging.Handler] = [RichHandler(console=log.bar.console, show_path=False, show_level=False)]
    before, root.handlers = root.handlers, above
    try:
        yield
    finally:
        root.handlers = before
