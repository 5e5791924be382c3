"""A line of a suite's `checkpoints` → its checkpoints: where a card is or will be, and what makes it. Needs no torch.

A source is a folder with a card, or a command that will make one. A source not yet made is keyed by its recipe; its
cells get their ids once it exists (DESIGN §1).
"""

import glob
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from converters import references
from evaluate.suite_file import CheckpointEntry, Series, SuiteConfig
from zoo.checkpoint import CARD_NAME, WEIGHTS_NAME, CheckpointCard, file_label, read_card
from zoo.config import load
from zoo.datasets import identity
from zoo.errors import CheckpointError, ConfigError, ZooError, several
from zoo.files import ROOT, cache_dir, canonical_json, digest, remembered, remembered_sha256, stat_signature
from zoo.recipe import PretrainConfig, row_label, run_key

_EPOCH: Final = re.compile(r"(?:epoch|ep|e|checkpoint|ckpt)?(\d{1,5})(?:e|ep|epochs?)?")  # not the 50 of resnet50


@dataclass(frozen=True, kw_only=True)
class Source:
    """One checkpoint of a suite: where its card is or will be, and the command that makes it."""

    key: str
    label: str
    card_path: Path
    make: tuple[str, ...] | None  # `python -m …` arguments; None when nothing of ours can make it
    expect_collapse: bool = False
    benchmarks: tuple[str, ...]
    collapse_rule: dict[str, Any] | None = None
    recipe: PretrainConfig | None = None  # of what is trained here
    stated_arch: str | None = None  # where it is known before the card is

    @property
    def folder(self) -> Path:
        return self.card_path.parent

    @cached_property
    def card(self) -> CheckpointCard | None:
        """The card once it exists. Raises CheckpointError when its weights are not the ones it names."""
        return known_card(self.card_path) if self.card_path.exists() else None

    @property
    def arch(self) -> str | None:
        """The card's architecture, or the one that is known to come; None for a file nobody has looked into."""
        return self.card.arch if self.card is not None else self.stated_arch

    @cached_property
    def preprocessing(self) -> str:
        """The card's part of a cell's id, spelt as `cell_id` spells it."""
        assert self.card is not None
        return canonical_json(self.card.preprocessing())

    def collapsed(self) -> str | None:
        """A few words when the run was stopped as collapsed, by the rule that still stands."""
        path = self.folder / "collapsed.json"
        if self.collapse_rule is None or self.card_path.exists() or not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            return f"collapsed, stopped at step {found['step']}" if found["rule"] == self.collapse_rule else None
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: unreadable ({error}); remove it to train again.") from error


def known_card(path: Path) -> CheckpointCard:
    """`read_card`, from the ledger while neither the card nor its weights have changed: parsing YAML takes 40 times as
    long. Raises as `read_card`."""
    weights = path.parent / WEIGHTS_NAME
    try:
        signature = f"{stat_signature(path)}|{stat_signature(weights)}"
    except FileNotFoundError:  # weights of another name, or none
        return read_card(path)
    found = remembered("card", signature, lambda: read_card(path).model_dump(mode="json"))
    if found.get("weights") != WEIGHTS_NAME:
        return read_card(path)
    return CheckpointCard.model_validate_json(json.dumps(found))  # JSON's lists are a strict model's tuples


def sources(entry: CheckpointEntry, suite: SuiteConfig, folder: Path) -> list[Source]:
    """The checkpoints of one line, in page order. folder: the suite's. Raises ZooError of every kind."""
    benchmarks = entry.benchmarks or suite.benchmarks
    seeds = entry.seeds or (0,)
    checkpoints = folder / "checkpoints"
    training = entry.pretrain or entry.supervised
    if training is not None:
        return [_trained(entry, training, seed, checkpoints, benchmarks) for seed in seeds]
    if entry.random is not None or entry.raw_pixels:
        return [_untrained(entry, seed, checkpoints, benchmarks) for seed in seeds]
    if entry.card is not None:
        return _carded(entry.card, benchmarks)
    if entry.series is not None:
        return _series(entry, entry.series, benchmarks)
    assert entry.file is not None
    if not _is_pattern(entry.file):
        return [_foreign(entry, entry.file, benchmarks)]
    paths = [path for path in _matches(entry.file) if path.is_file()]
    if not paths:
        raise CheckpointError(f"file: {entry.file}: no such file; expected at least one that the pattern fits.")
    if entry.name is not None and len(paths) > 1:
        raise ConfigError(f"file: {entry.file}: {len(paths)} files and one name, '{entry.name}'; leave the name out.")
    return [_foreign(entry, str(path), benchmarks) for path in paths]


def entry_of(reference: str) -> CheckpointEntry:
    """The entry of a --checkpoint: paths are the caller's, not the repository's."""
    path = Path(reference)
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        return CheckpointEntry(card=str(path.resolve()))
    if _is_pattern(reference):  # one that the shell was kept from reading
        return CheckpointEntry(file=str(Path.cwd() / reference))
    return CheckpointEntry(file=str(path.resolve()) if path.is_file() else reference)


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) and "://" not in text and not _from_root(text).exists()


def _matches(pattern: str) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(str(ROOT / pattern), recursive=True))]


def _carded(text: str, benchmarks: tuple[str, ...]) -> list[Source]:
    """The rows of a card, of its folder, or of every one that a pattern fits."""
    if not _is_pattern(text):
        path = _from_root(text)
        return [_of_card(path / CARD_NAME if path.is_dir() else path, benchmarks)]
    paths = [path / CARD_NAME if path.is_dir() else path for path in _matches(text)]
    paths = [path for path in paths if path.suffix in (".yaml", ".yml") and path.is_file()]
    if not paths:
        raise CheckpointError(f"card: {text}: expected at least one card, or folder of a card, that the pattern fits.")
    rows: dict[str, Source] = {}
    problems: list[str] = []
    for path in dict.fromkeys(paths):
        try:
            source = _of_card(path, benchmarks)
            rows.setdefault(source.key, source)
        except ZooError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(several(f"card: {text}: {len(problems)} of {len(paths)} cannot be used:", problems))
    return list(rows.values())


def _of_card(path: Path, benchmarks: tuple[str, ...]) -> Source:
    card = known_card(path) if path.is_file() else read_card(path)
    source = Source(key=card.tensors_sha256[:12], label=card.name, card_path=path, make=None, benchmarks=benchmarks)
    source.__dict__["card"] = card  # what the property would read again
    return source


def _foreign(entry: CheckpointEntry, text: str, benchmarks: tuple[str, ...], *, epoch: int | None = None) -> Source:
    """A checkpoint of somebody's: read into the cache by `converters convert`, which also fetches it.

    epoch: of a member of the entry's series.
    """
    reference = references.parse(text if "://" in text or not _from_root(text).is_file() else str(_from_root(text)))
    path = reference.path
    if path is not None and not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; a suite's `file:` is a path from the repository root.")
    what = remembered_sha256(path) if path else reference.text
    label, family = entry.name or reference.label, None
    if entry.series is not None:
        label, family = entry.series.name.replace("{epoch}", str(epoch)), entry.series.family
    pixels = entry.pixels.model_dump(mode="json") if entry.pixels else None
    stated = {"take": entry.take, "pixels": pixels, "family": family, "epochs": epoch}
    key = digest({"file": what, "name": label} | {name: value for name, value in stated.items() if value is not None})
    target = cache_dir() / "checkpoints" / key[:16]
    make = ["converters", "convert", str(path or reference.text), str(target), "--name", label]
    for option, value in (("--take", entry.take), ("--family", family), ("--epochs", epoch)):
        make += [option, str(value)] if value is not None else []
    for option in ("mean", "std") if pixels else ():
        make += [f"--{option}", ",".join(map(str, (pixels or {})[option]))]
    return Source(
        key=key[:12],
        label=label,
        card_path=target / CARD_NAME,
        make=tuple(make),
        benchmarks=benchmarks,
        stated_arch=reference.card.arch if reference.card else None,
    )


def _series(entry: CheckpointEntry, series: Series, benchmarks: tuple[str, ...]) -> list[Source]:
    """One training's epochs, in their order. Raises CheckpointError for all files that say none, or the same."""
    paths = [path for path in _matches(series.files) if path.is_file()]
    if not paths:
        raise CheckpointError(f"series: {series.files}: no such file; expected at least one that the pattern fits.")
    epochs: dict[Path, int] = {}
    problems: list[str] = []
    for path in paths:
        try:
            epochs[path] = _epoch(path, entry.take)
        except CheckpointError as error:
            problems.append(str(error))
    by_epoch = sorted(epochs.items(), key=lambda item: item[1])
    for (first, epoch), (second, other) in zip(by_epoch, by_epoch[1:], strict=False):
        if epoch == other:
            problems.append(f"{first.name} and {second.name}: both of epoch {epoch}")
    if problems:
        raise CheckpointError(several(f"series: {series.files}: expected files of different epochs:", problems))
    return [_foreign(entry, str(path), benchmarks, epoch=epoch) for path, epoch in by_epoch]


def _epoch(path: Path, take: str | None) -> int:
    """Completed epochs, by the file's own metadata or else the last number in its name."""

    def told() -> int | None:
        # torch is loaded for a file that was never looked into; the ledger remembers what it said
        from converters.inspect import epochs
        from converters.read import read

        checkpoint = read(path, take)
        return epochs(checkpoint.content, checkpoint.reading)

    epoch = remembered("epoch", f"{stat_signature(path)}|{take}", told)
    if epoch is not None:
        return epoch
    found = [_EPOCH.fullmatch(part) for part in re.split(r"[_.\- ]", file_label(path.name))]
    numbers = [int(one[1]) for one in found if one]
    if not numbers:
        raise CheckpointError(f"{path}: says no epoch; expected one in its metadata, or a name like epoch_100.pth.")
    return numbers[-1]


def _trained(
    entry: CheckpointEntry, config_path: str, seed: int, checkpoints: Path, benchmarks: tuple[str, ...]
) -> Source:
    config = load(_from_root(config_path), PretrainConfig)
    if entry.supervised is not None and config.method.name != "supervised":
        raise ConfigError(f"{config_path}: method.name: expected supervised for a suite's `supervised:` line")
    key = run_key(config, identity(config.dataset, config.split).sha256, seed)
    folder = checkpoints / f"{config.name}-seed{seed}-{key[:8]}"
    return Source(
        key=folder.name,
        label=row_label(config, seed),
        card_path=folder / CARD_NAME,
        make=("pretrain", str(_from_root(config_path)), "--seed", str(seed), "--out", str(folder)),
        expect_collapse=entry.expect == "collapse",
        benchmarks=benchmarks,
        collapse_rule=config.collapse.model_dump(mode="json") if config.collapse else None,
        recipe=config,
        stated_arch=config.arch,
    )


def _untrained(entry: CheckpointEntry, seed: int, checkpoints: Path, benchmarks: tuple[str, ...]) -> Source:
    arch = entry.random or "raw_pixels"
    arguments = ["pretrain.untrained", "--arch", arch, "--seed", str(seed)]
    identified: dict[str, Any] = {"untrained": arch, "seed": seed}
    slug, label = arch, f"{arch}, random weights" if entry.random else "raw pixels"
    if entry.reestimate is not None:
        chosen = entry.reestimate
        identified |= {"reestimate": chosen.model_dump(mode="json")}
        identified |= {"dataset": identity(chosen.dataset, chosen.split).sha256}
        arguments += ["--batch-norm", "reestimated", "--dataset", chosen.dataset, "--split", chosen.split]
        arguments += ["--images", str(chosen.images), "--resize", str(chosen.resize), "--crop", str(chosen.crop)]
        slug, label = f"{arch}-bn", f"{arch}, random weights, BN re-estimated"
    folder = checkpoints / f"{slug}-random-seed{seed}-{digest(identified)[:8]}"
    return Source(
        key=folder.name,
        label=label + (f", seed {seed}" if seed else ""),
        card_path=folder / CARD_NAME,
        make=(*arguments, "--out", str(folder)),
        benchmarks=benchmarks,
        stated_arch=arch,
    )


def repeated(found: list[Source]) -> Iterator[str]:
    """Keys that stand for more than one row."""
    seen: dict[str, int] = {}
    for source in found:
        seen[source.key] = seen.get(source.key, 0) + 1
    yield from sorted(key for key, times in seen.items() if times > 1)


def _from_root(text: str) -> Path:
    """A path in a suite file: from the repository root, or absolute."""
    return (ROOT / text).resolve()
