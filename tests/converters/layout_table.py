"""Every layout, its files as their own code writes them, and what spoilt ones lead to: the rows of docs/layouts.md.

`python -m tests.converters.layout_table` writes the file; test_layout_table.py recomputes every row and holds it to it.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from converters.canonical import write_checkpoint
from converters.full_models import to_mmselfsup0, to_mmselfsup1, to_simsiam
from converters.layouts import LAYOUTS
from converters.layouts.table import Content, Reading
from converters.opening import Opened, open_checkpoint
from converters.read import Checkpoint, understand
from converters.to_detectron2 import to_detectron2
from converters.to_mmpretrain import to_mmpretrain
from converters.to_mmseg import to_mmseg
from converters.to_torchvision import to_timm, to_torchvision
from tests.converters import made_libraries, made_research
from tests.converters.made import Made, State, write
from zoo.backbone import COUNTER, Backbone
from zoo.checkpoint import WEIGHTS_NAME
from zoo.errors import CheckpointError
from zoo.files import ROOT, write_atomic
from zoo.transforms import IMAGENET_PIXELS as PIXELS

MADE: Final[dict[str, Callable[[str], Made]]] = {**made_research.MADE, **made_libraries.MADE}
# one file of every layout is spoilt in every way; the others differ in heads and wrappings
SPOILT: Final = frozenset(
    "simsiam moco_v2_raw moco_v3 dino swav_published barlow_twins vicreg infomin pixpro_training torchvision backbone "
    "mm_extracted mmselfsup_simsiam densecl mmpretrain_simsiam vissl lightly_simsiam solo_learn detectron2_pickle "
    "byol".split()
)
DOCUMENT: Final = ROOT / "docs/layouts.md"
ARCH: Final = "resnet18"
PARITY: Final = 1e-5
HEAD = """# The layouts that are read

Written by `python -m tests.converters.layout_table`; the tests recompute every row. Each file is built as its own code
builds it (by the library itself where it can be installed, else module by module under the names of the source), a
{arch} with random weights and batch-norm statistics, and read back.

- **Detected**: exactly one reader says that the file is its own.
- **Tensors**: backbone tensors that are bit for bit the source's.
- **Parity**: largest difference of the pooled features between the source's own network and ours, in fp32.
- **Spoilt**: of one file a layout, how many spoilt copies end in a clear error, and how many in the right weights; none
  may load in part.
  Tried: {kinds}.

| file | layout | detected | tensors | parity | spoilt: refused + right of all | besides the backbone | built from |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

WRITERS_HEAD: Final = """
## The layouts that are written

A reference SimSiam checkpoint, read, written for every target of `converters convert --to`, and read back. **Proof**:
the test in which the target's own library loads the file and computes the same (detectron2 and mmseg: done again at
every conversion, and kept beside the weights).

| target | read back as | tensors | parity | proof |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. outcomes: kind of damage → "refused", "right" or what went wrong."""

    name: str
    layout: str
    method: str
    unexpected: tuple[str, ...]
    detected: tuple[str, ...]
    equal: int
    tensors: int
    parity: float
    outcomes: dict[str, str]
    groups: frozenset[str]
    source: str

    def __str__(self) -> str:
        outcomes = list(self.outcomes.values())
        spoilt = f"{outcomes.count('refused')} + {outcomes.count('right')} of {len(outcomes)}" if outcomes else "–"
        parity = f"< {PARITY:.0e}" if self.parity < PARITY else f"**{self.parity:.2g}**"
        groups = ", ".join(sorted(self.groups)) or "–"
        detected = "yes" if self.detected == (self.layout,) else f"**{', '.join(self.detected) or 'no'}**"
        cells = (
            self.name,
            self.layout,
            detected,
            f"{self.equal} of {self.tensors}",
            parity,
            spoilt,
            groups,
            self.source,
        )
        return f"| {' | '.join(cells)} |"


def row(name: str, folder: Path) -> Row:
    """Build the file, read it, spoil it."""
    made = MADE[name](ARCH)
    path = write(made, folder / f"{name}.{'safetensors' if made.save == 'safetensors' else 'pth'}")
    opened = open_checkpoint(path)
    content = Content(opened)
    found = understand(opened)
    equal = sum(
        torch.equal(found.state[key], tensor) and found.state[key].dtype == tensor.dtype
        for key, tensor in made.backbone.items()
        if key in found.state
    )
    return Row(
        name=name,
        layout=made.layout,
        method=found.reading.method,
        unexpected=found.reading.unexpected,
        detected=tuple(key for key, reader in LAYOUTS.items() if reader(content) is not None),
        equal=equal if found.state.keys() == made.backbone.keys() else -1,
        tensors=len(made.backbone),
        parity=_parity(made, found.state),
        outcomes=dict(_outcomes(opened, found.reading, made.backbone, folder)) if name in SPOILT else {},
        groups=frozenset(found.reading.groups),
        source=made.source,
    )


def _parity(made: Made, state: State) -> float:
    images = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1))
    network = Backbone(made.arch)
    own = network.state_dict()
    own.update(state)
    network.load_state_dict(own)
    with torch.inference_mode():
        return (network.eval()(images) - made.forward(images)).abs().max().item()


# --- damage


@dataclass
class Spoilt:
    """A copy of a file's content whose tensors can be exchanged. holders: canonical name → (mapping, key)."""

    content: Any
    holders: dict[str, tuple[dict[str, Any], str]]
    state_dict: dict[str, Any]  # the mapping that holds the first convolution

    def __getitem__(self, name: str) -> Tensor:
        mapping, key = self.holders[name]
        return mapping[key]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        mapping, key = self.holders[name]
        mapping[key] = tensor

    def drop(self, name: str) -> None:
        mapping, key = self.holders[name]
        del mapping[key]

    def rename(self, change: Callable[[str], str]) -> None:
        """Every name of the state dict; of a nested one (arrays by module), every module's."""
        renamed = {change(key): value for key, value in self.state_dict.items()}
        self.state_dict.clear()
        self.state_dict.update(renamed)


def _copied(content: Any) -> Any:
    """The same tensors in new containers."""
    if isinstance(content, Mapping):
        return {key: _copied(value) for key, value in content.items()}
    return content if isinstance(content, Tensor) else copy.copy(content)


def _spoilt(opened: Opened, reading: Reading) -> Spoilt:
    """A copy to spoil. A tensor is found again by its memory, which a reader may only view differently."""
    content = _copied(opened.content)
    place = content
    for key in reading.where:
        place = place[key]
    held = {tensor.data_ptr(): (mapping, key) for mapping, key, tensor in _leaves(place)}
    holders = {name: held[tensor.data_ptr()] for name, tensor in reading.state.items()}
    return Spoilt(content=content, holders=holders, state_dict=place)


def _leaves(content: Any) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, Tensor):
            yield content, key, value
        else:
            yield from _leaves(value)


def _swap(spoilt: Spoilt) -> None:
    first, second = spoilt["layer1.0.conv1.weight"], spoilt["layer2.0.conv1.weight"]
    spoilt["layer1.0.conv1.weight"], spoilt["layer2.0.conv1.weight"] = second, first


def _widen(spoilt: Spoilt) -> None:
    for name in spoilt.holders:
        if spoilt[name].dim() == 4:
            spoilt[name] = spoilt[name].repeat(2, 1, 1, 1)


def _cast(dtype: torch.dtype) -> Callable[[Spoilt], None]:
    def change(spoilt: Spoilt) -> None:
        for mapping, key, tensor in list(_leaves(spoilt.content)):
            if tensor.is_floating_point():
                mapping[key] = tensor.to(dtype)

    return change


def _not_finite(spoilt: Spoilt) -> None:
    spoilt["layer3.1.bn2.weight"] = torch.full_like(spoilt["layer3.1.bn2.weight"], float("nan"))


def _without_counters(spoilt: Spoilt) -> None:
    for name in list(spoilt.holders):
        if name.endswith(COUNTER):
            spoilt.drop(name)


def _without_last_stage(spoilt: Spoilt) -> None:
    for name in list(spoilt.holders):
        if name.startswith("layer4."):
            spoilt.drop(name)


def _absurd(spoilt: Spoilt) -> None:
    spoilt["layer4.1.conv1.weight"] = torch.zeros(1).expand(10**12)


DAMAGE: Final[dict[str, Callable[[Spoilt], None]]] = {
    "first convolution dropped": lambda spoilt: spoilt.drop("conv1.weight"),
    "a batch norm's variance dropped": lambda spoilt: spoilt.drop("layer3.1.bn2.running_var"),
    "last stage dropped": _without_last_stage,
    "a tensor added": lambda spoilt: spoilt.state_dict.update({"zoo_extra.weight": torch.zeros(3)}),
    "two shapes swapped": _swap,
    "prefix renamed": lambda spoilt: spoilt.rename(lambda name: f"zoo_renamed.{name}"),
    "half of the names prefixed": lambda spoilt: spoilt.rename(lambda name: f"module.{name}" if "1" in name else name),
    "DataParallel prefix": lambda spoilt: spoilt.rename(lambda name: f"module.{name}"),
    "fp16": _cast(torch.float16),
    "8-bit integers": _cast(torch.int8),
    "twice as wide": _widen,
    "NaN": _not_finite,
    "counters dropped": _without_counters,
    "absurd shape": _absurd,
}
_TRUNCATED: Final = "half the file"


def _outcomes(opened: Opened, reading: Reading, truth: State, folder: Path) -> Iterator[tuple[str, str]]:
    for kind, damage in DAMAGE.items():
        spoilt = _spoilt(opened, reading)
        damage(spoilt)
        expected = {name: t.half() if kind == "fp16" and t.is_floating_point() else t for name, t in truth.items()}
        if kind == "counters dropped":
            expected = {name: tensor for name, tensor in expected.items() if not name.endswith(COUNTER)}
        changed = replace(opened, content=spoilt.content)
        yield kind, _outcome(partial(_state, changed), expected)
    half = folder / f"half-{opened.path.name}"
    half.write_bytes(opened.path.read_bytes()[: opened.path.stat().st_size // 2])
    yield _TRUNCATED, _outcome(lambda: _state(open_checkpoint(half)), truth)


def _state(opened: Opened) -> State:
    return understand(opened).state


def _outcome(read: Callable[[], State], expected: State) -> str:
    try:
        found = read()
    except CheckpointError as error:
        return "refused" if len(str(error)) > 40 else f"an error that says little: {error}"
    if found.keys() != expected.keys():
        return f"loaded in part: {len(found)} of {len(expected)} tensors"
    wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    return f"wrong values: {', '.join(wrong[:3])}" if wrong else "right"


# --- writers

# target of `converters convert --to` → the writer, and the test that proves the file inside the library itself
WRITERS: Final[dict[str, tuple[Callable[[Path, Checkpoint], Path], str]]] = {
    "canonical": (lambda folder, it: _canonical(folder, it), "test_canonical.py"),
    "torchvision": (lambda folder, it: to_torchvision(folder, it.state, it.arch), "test_to_torchvision.py"),
    "timm": (lambda folder, it: to_timm(folder, it.state, it.arch), "test_to_torchvision.py"),
    "mmpretrain": (lambda folder, it: to_mmpretrain(folder, it.state, it.arch, PIXELS), "test_to_mmpretrain.py"),
    "simsiam": (to_simsiam, "test_full_models.py"),
    "mmselfsup0": (to_mmselfsup0, "test_full_models.py"),
    "mmselfsup1": (to_mmselfsup1, "test_full_models.py"),
    "detectron2": (
        lambda folder, it: to_detectron2(folder, it.state, it.arch, PIXELS),
        "every conversion: parity.json",
    ),
    "mmseg": (lambda folder, it: to_mmseg(folder, it.state, it.arch, PIXELS), "every conversion: parity.json"),
}


def _canonical(folder: Path, checkpoint: Checkpoint) -> Path:
    write_checkpoint(
        folder,
        checkpoint.state,
        name="a",
        family="a",
        arch=checkpoint.arch,
        pixels=PIXELS,
        source_format=checkpoint.reading.layout,
        lineage=(),
    )
    return folder / WEIGHTS_NAME


@dataclass(frozen=True, kw_only=True)
class Written:
    """One line of the writers' table."""

    target: str
    layout: str
    equal: int
    tensors: int
    parity: float
    proof: str

    def __str__(self) -> str:
        parity = f"< {PARITY:.0e}" if self.parity < PARITY else f"**{self.parity:.2g}**"
        return f"| {self.target} | {self.layout} | {self.equal} of {self.tensors} | {parity} | {self.proof} |"


def written(target: str, folder: Path) -> Written:
    """Write a SimSiam checkpoint for `target` and read the file back."""
    made = MADE["simsiam"](ARCH)
    source = understand(open_checkpoint(write(made, folder / "source.pth")))
    writer, proof = WRITERS[target]
    found = understand(open_checkpoint(writer(folder / target, source)))
    equal = sum(torch.equal(found.state[name], made.backbone[name]) for name in found.state)
    return Written(
        target=target,
        layout=found.reading.layout,
        equal=equal,
        tensors=len(made.backbone),
        parity=_parity(made, found.state),
        proof=proof,
    )


def document(rows: list[Row], writers: list[Written]) -> str:
    outcomes = [outcome for found in rows for outcome in found.outcomes.values()]
    counted = (
        f"Of {len(outcomes)} spoilt files ({len(SPOILT)} layouts, {len(DAMAGE) + 1} kinds of damage) "
        f"{outcomes.count('refused')} are refused and {outcomes.count('right')} read with the right weights."
    )
    head = HEAD.format(arch=ARCH, kinds=", ".join([*DAMAGE, _TRUNCATED]))
    return f"{head}{_lines(rows)}\n\n{counted}\n{WRITERS_HEAD}{_lines(writers)}\n"


def _lines(rows: list[Row] | list[Written]) -> str:
    return "\n".join(map(str, rows))


def main() -> None:
    rows: list[Row] = []
    for name in MADE:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(name, Path(folder)))
        wrong = {kind: text for kind, text in rows[-1].outcomes.items() if text not in ("refused", "right")}
        print(rows[-1].name, wrong or "")
    writers: list[Written] = []
    for target in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            writers.append(written(target, Path(folder)))
    write_atomic(DOCUMENT, document(rows, writers))
    print(f"{len(rows)} files -> {DOCUMENT}")


if __name__ == "__main__":
    main()
