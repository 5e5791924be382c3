"""What will be trained, and everything that can be known to be wrong with it before the first step."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoo.checkpoint import CARD_NAME, read_card, verify_weights
from zoo.datasets import Manifest, dataset_config, manifest
from zoo.errors import CollapseError, ConfigError, DataError, ZooError, several
from zoo.files import digest, ensure_writable, runs_dir, write_atomic
from zoo.recipe import PretrainConfig, other_run, run_identity, run_key

COLLAPSED_NAME = "collapsed.json"
NONFINITE_NAME = "nonfinite.json"
RUN_NAME = "run.json"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run, checked."""

    config: PretrainConfig
    seed: int
    overrides: tuple[str, ...]  # --set, as given
    key: str
    out: Path
    train: Manifest
    bank: Manifest
    queries: Manifest
    num_classes: int
    num_workers: int  # loader processes beside each training process

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    @property
    def identity(self) -> dict[str, Any]:
        """What `key` is the hash of."""
        return run_identity(self.config, self.train.sha256, self.seed)

    @property
    def title(self) -> str:
        return f"{self.config.name} seed {self.seed}"

    @property
    def lineage(self) -> tuple[str, ...]:
        """For the card: what was done, on what."""
        data = f"{self.train.dataset} {self.train.split} {len(self.train)} images"
        changed = (f"modified: {' '.join(self.overrides)}",) if self.overrides else ()
        return (f"{self.title} on {data}", f"images sha256 {self.train.sha256}", f"run {self.key}", *changed)


def check(
    config: PretrainConfig, *, seed: int, overrides: Sequence[str], out: Path | None, workers: int, processes: int
) -> Plan:
    """The plan of a run on `processes` processes. One ZooError names all problems; nothing is computed or kept.

    out: where everything goes; None for the run's place under ZOO_RUNS.
    """
    problems: list[ZooError] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ZooError as error:
            problems.append(error)
            return None

    monitor = config.monitor
    dataset = attempt(lambda: dataset_config(config.dataset))
    splits = (config.split, monitor.bank_split, monitor.query_split)
    manifests = {split: attempt(lambda split=split: manifest(config.dataset, split)) for split in dict.fromkeys(splits)}
    train, bank, queries = (manifests[split] for split in splits)
    problems += [ConfigError(text) for text in _wrong_numbers(config, train, bank, queries, processes, workers, seed)]
    if dataset is None or train is None or bank is None or queries is None or problems:
        raise _together(problems)
    key = run_key(config, train.sha256, seed)
    out = out or runs_dir() / "pretrain" / f"{config.name}-seed{seed}-{key[:8]}"
    ensure_writable(out)
    return Plan(
        config=config,
        seed=seed,
        overrides=tuple(overrides),
        key=key,
        out=out,
        train=train,
        bank=bank,
        queries=queries,
        num_classes=dataset.num_classes,
        num_workers=workers,
    )


def _together(problems: Sequence[ZooError]) -> ZooError:
    distinct = list({str(problem): problem for problem in problems}.values())
    if len(distinct) == 1:
        return distinct[0]
    kind = DataError if all(isinstance(problem, DataError) for problem in distinct) else ConfigError
    return kind(several(f"{len(distinct)} problems:", [str(problem) for problem in distinct]))


def _wrong_numbers(
    config: PretrainConfig,
    train: Manifest | None,
    bank: Manifest | None,
    queries: Manifest | None,
    processes: int,
    workers: int,
    seed: int,
) -> list[str]:
    monitor = config.monitor
    problems: list[str] = []
    if seed < 0:
        problems.append(f"--seed: expected 0 or more, found {seed}")
    if workers < 0:
        problems.append(f"--workers: expected 0 or more, found {workers}")
    if config.batch_size % processes:
        problems.append(
            f"batch_size: expected a multiple of the number of processes, found {config.batch_size} for {processes}"
        )
    if config.batch_size // processes < 2:
        problems.append(f"batch_size: expected 2 images a process at least, found {config.batch_size} for {processes}")
    parts = config.arithmetic.accumulate
    if parts > 1 and (config.batch_size % (processes * parts) or config.batch_size // (processes * parts) < 2):
        problems.append(
            f"arithmetic.accumulate: expected to divide each process's share of the batch into equal parts of 2 images "
            f"or more, found {parts} for {config.batch_size} images on {processes} process(es)"
        )
    if train is not None and len(train) < config.batch_size:
        problems.append(
            f"batch_size: expected at most the {len(train):,} images of {train.dataset} {train.split}, "
            f"found {config.batch_size}"
        )
    together = config.batch_size // parts  # images that share batch-norm statistics
    floor = least_deviation(together)
    if config.collapse is not None and config.collapse.below <= floor:
        problems.append(
            f"collapse.below: expected more than {floor:.3f}, as low as a collapsed batch of {together} gets, "
            f"found {config.collapse.below}: the rule would never fire"
        )
    if monitor.k > monitor.bank_images:
        problems.append(f"monitor.k: expected at most bank_images ({monitor.bank_images}), found {monitor.k}")
    shared = monitor.query_images if monitor.bank_split == monitor.query_split else 0
    if bank is not None and len(bank) < monitor.bank_images + shared:
        problems.append(
            f"monitor.bank_images: expected at most {len(bank) - shared:,} (images of {bank.dataset} {bank.split}"
            f"{', less the queries' if shared else ''}), found {monitor.bank_images}"
        )
    if queries is not None and not shared and len(queries) < monitor.query_images:
        problems.append(
            f"monitor.query_images: expected at most the {len(queries):,} images of {queries.dataset} {queries.split}, "
            f"found {monitor.query_images}"
        )
    return problems


def least_deviation(batch_size: int) -> float:
    """How far std(z/|z|)·√d falls in a collapsed batch of N: 2·√(N - 1)/N, not 0.

    The projector's last batch norm gives every channel unit variance, whatever comes in. In a collapse one outlier is
    left of it: N - 1 outputs point one way and a single one the other. Runs without stop-gradient end there.
    """
    return 2 * math.sqrt(batch_size - 1) / batch_size


def finished(plan: Plan) -> Path | None:
    """The card of this run when it is complete, its weights read and compared; None when there is work to do.

    Raises CollapseError when the run is known to collapse under its rule, ConfigError when the folder is another run's.
    """
    _refuse_other_run(plan)
    path = plan.out / CARD_NAME
    if path.exists():
        card = read_card(path)
        if f"run {plan.key}" not in card.lineage:
            raise ConfigError(
                f"{path}: is the result of another run ({card.lineage[0]}), expected {plan.lineage[0]}, run "
                f"{plan.key}. Choose another --out."
            )
        verify_weights(path, card)
        return path
    _refuse_collapsed(plan)
    return None


def _refuse_other_run(plan: Plan) -> None:
    path = plan.out / RUN_NAME
    if not path.exists():
        return
    try:
        run = json.loads(path.read_text())["run"]
        key = digest(run)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: expected what this version writes there, found something else ({error!r}). Choose another --out, "
            "or remove the folder to start anew."
        ) from error
    if key != plan.key:
        raise other_run(path, run, plan.identity)


def _refuse_collapsed(plan: Plan) -> None:
    path = plan.out / COLLAPSED_NAME
    if path.exists() and plan.config.collapse is not None:
        found = json.loads(path.read_text())
        if found["rule"] == plan.config.collapse.model_dump(mode="json"):
            raise CollapseError(f"{plan.title} has collapsed before, at step {found['step']} ({path}); it would again.")


def write_run(plan: Plan, replaced: Mapping[str, int]) -> None:
    """Say what is trained in this folder, for whoever finds it, and forget how it ended under another rule or before.

    replaced: the images that could not be read, and how often another stood in.
    """
    for name in (COLLAPSED_NAME, NONFINITE_NAME):
        (plan.out / name).unlink(missing_ok=True)
    run = {
        "key": plan.key,
        "run": plan.identity,
        "overrides": plan.overrides,
        "config": plan.config.model_dump(mode="json"),
        "replaced": dict(replaced),
    }
    write_atomic(plan.out / RUN_NAME, json.dumps(run, indent=2) + "\n")
