"""Checkpoint files → canonical state: whole, or an error that says what was seen. Nothing in a file is executed.

The file is opened as plain data (opening), every reader of LAYOUTS looks at it, and exactly one of them must know it
(layouts). Of what it found, every tensor of one architecture must be there, in its shape and finite, and nothing the
reader's table does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from converters.layouts import LAYOUTS
from converters.layouts.refusals import REFUSALS
from converters.layouts.table import Content, Reading, StateDict, is_canonical
from converters.opening import Opened, open_checkpoint
from zoo.backbone import COUNTER, LAYERS, canonical_shapes, required_names, state_problems
from zoo.errors import CheckpointError, several
from zoo.resnet import Bottleneck

State = dict[str, Tensor]
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file that was read whole."""

    opened: Opened
    content: Content
    reading: Reading
    arch: str

    @property
    def state(self) -> State:
        return self.reading.state


def read(path: Path, take: str | None = None) -> Checkpoint:
    """The checkpoint in a file. take: "WHERE:PREFIX", the address of a backbone that no layout describes.

    Raises CheckpointError: unreadable, of no known layout or of several, not a whole ResNet.
    """
    return understand(open_checkpoint(path), take)


def understand(opened: Opened, take: str | None = None) -> Checkpoint:
    """`read`, of a file that is open already."""
    content = Content(opened)
    reading = identify(content, take)
    arch, problems = check(content, reading)
    if problems:
        raise CheckpointError(several(f"{opened.path} ({reading.layout}): {problems[0]}", problems[1:]))
    assert arch is not None
    return Checkpoint(opened=content.opened, content=content, reading=reading, arch=arch)


def identify(content: Content, take: str | None = None) -> Reading:
    """What the one layout that knows the file makes of it. Raises CheckpointError when none does, or several do."""
    path = content.opened.path
    if take is not None:
        return _taken(content, take)
    readings = [reading for reader in LAYOUTS.values() if (reading := reader(content)) is not None]
    if len(readings) == 1:
        return readings[0]
    if readings:
        names = ", ".join(reading.layout for reading in readings)
        raise CheckpointError(f"{path}: ambiguous: {len(readings)} layouts fit ({names}).\n{_addresses(content)}")
    raise CheckpointError(f"{path}: {_unknown(content)}")


def check(content: Content, reading: Reading) -> tuple[str | None, list[str]]:
    """(architecture or None, everything that is wrong with a reading); the first problem is a title."""
    arch = architecture(reading.state)
    reason = next((reason for refusal in REFUSALS if (reason := refusal(content)) is not None), None)
    if arch is None:
        seen = _shape(reading.state)
        title = reason or (
            f"expected the blocks of one of {', '.join(LAYERS)}, found {seen}: another network, or only a part of one"
        )
        return None, [f"{title}.", *_unexpected(reading)]
    found = state_problems(reading.state, arch)
    if not found and not reading.unexpected:
        return arch, []
    expected = len(required_names(reading.state, arch))
    matched = sum(
        tuple(reading.state[name].shape) == shape
        for name, shape in canonical_shapes(arch).items()
        if name in reading.state
    )
    title = f"not a whole {arch}: {matched} of {expected} expected tensors found."
    return arch, [f"{reason}; {title}" if reason else title, *found[:20], *_unexpected(reading)]


def architecture(state: Mapping[str, Tensor]) -> str | None:
    """The one architecture that has the kind and number of blocks of `state`; None when there is none."""
    for arch, (block, layers) in LAYERS.items():
        if _shape(state) == _described(layers, bottleneck=block is Bottleneck):
            return arch
    return None


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """A line for every tensor in which two backbones of one architecture differ; batch counters are passed over."""
    found: list[str] = []
    for name in sorted(set(first) | set(second)):
        if name.endswith(COUNTER):
            continue
        if name not in first or name not in second:
            found.append(f"{name}: in one of them only")
        elif not torch.equal(first[name].float(), second[name].float()):
            furthest = (first[name].double() - second[name].double()).abs().max().item()
            found.append(f"{name}: largest difference {furthest:.3g}")
    return found


def _shape(state: Mapping[str, Tensor]) -> str:
    stages: dict[str, int] = {f"layer{number}": 0 for number in range(1, 5)}
    for name in state:
        stage, _, rest = name.partition(".")
        if stage in stages:
            stages[stage] = max(stages[stage], int(rest.split(".")[0]) + 1)
    return _described(list(stages.values()), bottleneck=any(".conv3." in name for name in state))


def _described(layers: list[int], *, bottleneck: bool) -> str:
    return f"stages of {', '.join(map(str, layers))} {'bottleneck' if bottleneck else 'basic'} blocks"


def _unexpected(reading: Reading) -> list[str]:
    if not reading.unexpected:
        return []
    names = ", ".join(reading.unexpected[:SHOWN]) + (", …" if len(reading.unexpected) > SHOWN else "")
    return [f"unexpected: {len(reading.unexpected)} tensors that {reading.layout} does not have ({names})"]


def _taken(content: Content, take: str) -> Reading:
    """The reading of a backbone whose address the user stated; all other tensors beside it are passed over."""
    place, _, prefix = take.rpartition(":")
    where = tuple(filter(None, place.split("/")))
    found = content.state_dicts.get(where)
    names = {} if found is None else _backbone_names(found, prefix)
    if found is None or not names:
        raise CheckpointError(
            f"{content.opened.path}: --take {take}: no tensors of a ResNet there.\n{_addresses(content)}"
        )
    full = {found.wrapper + name: tensor for name, tensor in found.tensors.items()}
    rest = {name: tensor for name, tensor in full.items() if name not in names.values()}
    return Reading(
        layout="stated",
        method="not said by the file",
        where=where,
        wrapper="",
        prefix=prefix,
        state={canonical: full[name] for canonical, name in names.items()},
        names=names,
        groups={"passed over": rest} if rest else {},
        unexpected=(),
    )


def _backbone_names(found: StateDict, prefix: str) -> dict[str, str]:
    """Canonical name → whole name in the file, of the tensors below a prefix (the wrapper included)."""
    whole = (found.wrapper + name for name in found.tensors)
    return {n.removeprefix(prefix): n for n in whole if n.startswith(prefix) and is_canonical(n.removeprefix(prefix))}


def addresses(content: Content) -> dict[str, str]:
    """ "WHERE:PREFIX" → architecture, of every place in the file where a whole ResNet's names stand."""
    found: dict[str, str] = {}
    for where, state in content.state_dicts.items():
        whole = [state.wrapper + name for name in state.tensors]
        for prefix in sorted({n.removesuffix("conv1.weight") for n in whole if n.endswith("conv1.weight")}):
            names = _backbone_names(state, prefix)
            arch = architecture({name: state.tensors[n.removeprefix(state.wrapper)] for name, n in names.items()})
            if arch is not None:
                found[f"{'/'.join(where)}:{prefix}"] = arch
    return found


def _addresses(content: Content) -> str:
    found = addresses(content)
    if not found:
        return "No place in it holds the names of a ResNet's tensors."
    listed = "\n".join(f"  --take '{address}'  ({arch})" for address, arch in found.items())
    return f"These places hold the names of a whole ResNet; say which one to take:\n{listed}"


def _unknown(content: Content) -> str:
    """A message about a file of no known layout: what was seen, the nearest layout, and the way on."""
    reason = next((reason for refusal in REFUSALS if (reason := refusal(content)) is not None), None)
    if reason is not None:
        return f"{reason}."
    if not content.state_dicts:
        kind = type(content.opened.content).__name__
        return f"expected a state dict (names to tensors), found {kind} without tensors by name."
    largest = max(content.state_dicts.values(), key=lambda found: len(found.tensors))
    total = len(largest.tensors)
    names = ", ".join(largest.wrapper + name for name in list(largest.tensors)[:SHOWN])
    place = f" under {'/'.join(largest.where)}" if largest.where else ""
    seen = f"none of the known layouts. Found {total} tensors{place}: {names}{', …' if total > SHOWN else ''}"
    known, nearest = max(((a.known, a) for a in content.attempts), key=lambda pair: pair[0], default=(0, None))
    near = ""
    if nearest is not None and known:
        lacks = [f"no name like {anchor}" for anchor in nearest.lacks]
        has = [f"names like {pattern}" for pattern in nearest.forbidden]
        near = f"\nNearest: {nearest.layout}, which knows {known} of them; but there are {', '.join(lacks + has)}."
    return f"{seen}.{near}\n{_addresses(content)}"
