"""What is this file, and is all of it there? Said before anything is computed, or written.

The answer of `python -m converters inspect` as data (`describe`), of which --json prints all and `lines` the readable
part.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from converters.counts import SIZE, num_parameters, operations
from converters.download import digest_of
from converters.layouts.table import Content, Reading
from converters.opening import Opened, open_checkpoint
from converters.read import addresses, check, identify
from converters.unpickle import Reduced
from zoo.backbone import canonical_shapes, fingerprint, required_names
from zoo.errors import CheckpointError

TRAINED: Final = (
    "projector",
    "predictor",
    "classifier",
    "prototypes",
    "head",
)  # groups that belong to the trained model
FROZEN: Final = {  # in the file and never trained (protocols §1.1, §3.1)
    "simsiam": ("encoder.fc.6.bias",),
    "solo_learn": ("projector.6.bias",),
}
_EPOCHS: Final = {  # where a layout's file says how many epochs are completed (§1.5; their main_*.py)
    **dict.fromkeys(
        ("simsiam", "moco", "moco_v3", "dino", "swav", "barlow_twins", "vicreg", "pycontrast", "pixpro"), ("epoch",)
    ),
    **dict.fromkeys(("mmselfsup0", "mmselfsup1"), ("meta", "epoch")),
}
_TEXTS: Final = 60
_FACTS: Final = 40


def describe(path: Path, take: str | None = None) -> dict[str, Any]:
    """Everything known of a checkpoint file, which must exist; `problems` is empty when it can be evaluated."""
    found: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size, "sha256": digest_of(path)}
    try:
        content = Content(open_checkpoint(path))
    except CheckpointError as error:
        return {**found, "problems": [_told(error, path)]}
    opened = content.opened
    found |= {"container": opened.container, "read_as": opened.way, "reduced_to_data": list(opened.reduced)}
    found["training"] = dict(_facts(opened))
    try:
        reading = identify(content, take)
    except CheckpointError as error:
        return {**found, "backbones": addresses(content), "problems": [_told(error, path)]}
    arch, problems = check(content, reading)
    found |= _identity(reading, arch) | {"coverage": _coverage(content, reading, arch)}
    if arch is not None and not problems:
        found |= {"size": _size(reading, arch), "tensors_sha256": fingerprint(reading.state)}
    return {**found, "epochs": epochs(content, reading), "notes": list(reading.notes), "problems": problems}


def epochs(content: Content, reading: Reading) -> int | None:
    """Completed epochs, where the layout says where they stand."""
    where = _EPOCHS.get(reading.layout)
    value = content.get(*where) if where else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _told(error: CheckpointError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _identity(reading: Reading, arch: str | None) -> dict[str, Any]:
    stem = reading.state.get("conv1.weight")
    return {
        "layout": reading.layout,
        "method": reading.method,
        "where": "/".join(reading.where),
        "prefix": reading.prefix,
        "arch": arch,
        "stem": None if stem is None or stem.dim() != 4 else f"{stem.shape[2]}x{stem.shape[3]} convolution",
    }


def _coverage(content: Content, reading: Reading, arch: str | None) -> dict[str, Any]:
    shapes = {} if arch is None else canonical_shapes(arch)
    matched = [name for name, shape in shapes.items() if name in reading.state and reading.state[name].shape == shape]
    expected = required_names(reading.state, arch) if arch else set[str]()
    return {
        "matched": len(matched),
        "expected": len(expected) if arch else None,
        "missing": sorted(expected - set(reading.state)),
        "unexpected": [*reading.unexpected, *sorted(set(reading.state) - set(shapes))]
        if arch
        else [*reading.unexpected],
        "dtypes": sorted(
            {str(t.dtype).removeprefix("torch.") for t in reading.state.values() if t.is_floating_point()}
        ),
        "groups": {
            group: {"tensors": len(tensors), "parameters": num_parameters(tensors)}
            for group, tensors in reading.groups.items()
        },
        "elsewhere": dict(_elsewhere(content.opened.content, reading.where)),
    }


def _elsewhere(content: Any, where: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """(place, number of tensors) of all that lies outside the state dict that was read."""
    if not where or not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if key == where[0]:
            yield from ((f"{key}/{place}", number) for place, number in _elsewhere(value, where[1:]))
        elif number := _num_tensors(value):
            yield str(key), number


def _num_tensors(value: Any) -> int:
    if isinstance(value, Tensor):
        return 1
    if isinstance(value, Reduced):
        return _num_tensors(value.state)
    if isinstance(value, Mapping):
        return sum(map(_num_tensors, value.values()))
    return sum(map(_num_tensors, value)) if isinstance(value, list | tuple) else 0


def _size(reading: Reading, arch: str) -> dict[str, int]:
    frozen = FROZEN.get(reading.layout, ())
    heads = [tensors for group, tensors in reading.groups.items() if group in TRAINED]
    backbone = num_parameters(reading.state)
    return {
        "backbone_parameters": backbone,
        "parameters": backbone + sum(num_parameters(tensors, frozen) for tensors in heads),
        "operations": operations(arch, pooled="classifier" in reading.groups),
    }


def _facts(opened: Opened) -> Iterator[tuple[str, str | int | float | bool]]:
    """Short facts about the training that the file itself states."""
    told: dict[str, Any] = {**opened.metadata}
    content = opened.content
    if isinstance(content, Mapping):
        told |= content
        optimizer = content.get("optimizer")
        groups = optimizer.get("param_groups") if isinstance(optimizer, Mapping) else None
        if isinstance(groups, list) and groups and isinstance(groups[0], Mapping):
            told["optimizer"] = {key: value for key, value in groups[0].items() if key != "params"}
    facts = ((".".join(place), value) for place, value in _scalars(told, ()))
    for number, fact in enumerate(facts):
        if number == _FACTS:
            return
        yield fact


def _scalars(value: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str | int | float | bool]]:
    if isinstance(value, Reduced):
        value = value.state
    if isinstance(value, Mapping) and len(where) < 2:
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _scalars(inner, (*where, key))
    elif isinstance(value, bool | int | float) or (
        isinstance(value, str) and 0 < len(value) <= _TEXTS and value.isprintable()
    ):
        yield where, value


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The readable part of `describe`'s answer."""
    size = f"{found['bytes'] / 1e6:,.1f} MB, sha256 {found['sha256']}"
    yield f"{found['file']}: {size}"
    if "container" in found:
        way = {"restricted": "restricted reader, nothing executed"}.get(found["read_as"], "tensors and plain data only")
        reduced = f"; reduced to data: {', '.join(found['reduced_to_data'])}" if found["reduced_to_data"] else ""
        yield _row("opened", f"{found['container']}; {way}{reduced}")
    if "layout" in found:
        yield from _layout_lines(found)
    if found.get("training"):
        text = ", ".join(f"{name} {value}" for name, value in found["training"].items())
        yield _row("training", text if len(text) <= 400 else text[:400] + " … (--json has all)")
    for note in found.get("notes", ()):
        yield _row("note", note)
    if "tensors_sha256" in found:
        yield _row("tensors", f"sha256 {found['tensors_sha256']} (names, shapes and fp32 values of the backbone)")
    if "licence" in found:
        yield _row("licence", found["licence"] or "not known")


def _layout_lines(found: Mapping[str, Any]) -> Iterator[str]:
    coverage = found["coverage"]
    place = f"{found['where'] or 'the file itself'}, prefix '{found['prefix']}'"
    yield _row("layout", f"{found['layout']}; method: {found['method']}")
    yield _row("backbone", f"{found['arch'] or 'no architecture that is known'}, stem {found['stem']}; at {place}")
    expected = "" if coverage["expected"] is None else f" of {coverage['expected']}"
    yield _row(
        "coverage",
        f"{coverage['matched']}{expected} tensors matched ({', '.join(coverage['dtypes'])}), "
        f"{len(coverage['missing'])} missing, {len(coverage['unexpected'])} unexpected",
    )
    for group, numbers in coverage["groups"].items():
        yield _row(
            "", f"{group}: {numbers['tensors']} tensors, {numbers['parameters'] / 1e6:.2f} M numbers; not evaluated"
        )
    if coverage["elsewhere"]:
        rest = ", ".join(f"{place} ({number})" for place, number in coverage["elsewhere"].items())
        yield _row("", f"tensors elsewhere in the file: {rest}")
    if "size" in found:
        size = found["size"]
        yield _row(
            "size",
            f"{size['parameters'] / 1e6:.2f} M parameters (backbone {size['backbone_parameters'] / 1e6:.2f} M), "
            f"{size['operations'] / 1e9:.2f} G operations at {SIZE} x {SIZE}",
        )


def _row(title: str, text: str) -> str:
    return f"  {title:<9} {text}"
