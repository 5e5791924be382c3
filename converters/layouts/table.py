"""What the readers share: where a file's tensors lie, what wraps their names, and key tables that match names whole.

A reader states where its tensors lie, which names show that the file is of its kind, how a name becomes canonical, and
a table of all other names with the group each belongs to. A name that no row knows is unexpected, and the file is
refused: so a file is read whole or not at all.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from torch import Tensor

from converters.opening import Opened

WRAPPERS: Final = ("module.", "_orig_mod.")  # DataParallel and DistributedDataParallel; torch.compile
FLAT: Final = ()
STATE_DICT: Final = ("state_dict",)
MODEL: Final = ("model",)
ANYWHERE: Final = (STATE_DICT, MODEL, ("model_state_dict",), FLAT)  # people save a state again in other wrappings
NAME: Final = (  # a canonical name
    r"(?P<name>(?:conv1|bn1|layer[1-4]\.\d+\.(?:conv[1-3]|bn[1-3]|downsample\.[01]))"
    r"\.(?:weight|bias|running_mean|running_var|num_batches_tracked))"
)
_CANONICAL: Final = re.compile(NAME)
_DEPTH: Final = 6

Where = tuple[str, ...]
Rename = Callable[[str], str | None]


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """One mapping of names to tensors in a file. `wrapper` stood before every name and is taken off."""

    where: Where
    wrapper: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a reader made of a file. `names`: canonical name → name in the file. groups: known tensors besides."""

    layout: str
    method: str
    where: Where
    wrapper: str
    prefix: str  # before the backbone's names, wrapper included; "" also where names are translated one by one
    state: dict[str, Tensor]
    names: dict[str, str]
    groups: dict[str, dict[str, Tensor]]  # "projector" → name in the file, without the wrapper → tensor
    unexpected: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How near a file came to a layout that it is not of."""

    layout: str
    lacks: tuple[str, ...]  # the anchors that match nothing
    forbidden: tuple[str, ...]  # what it has and this layout has not
    count: Callable[[], int]

    @property
    def known(self) -> int:
        """How many names the layout knows: counted only where somebody asks."""
        return self.count()


@dataclass
class Content:
    """An opened file as the readers see it."""

    opened: Opened
    state_dicts: dict[Where, StateDict] = field(init=False)
    attempts: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state_dicts = {found.where: found for found in _state_dicts(self.opened.content, ())}

    def get(self, *where: str) -> Any:
        """The value at a place in the file, or None."""
        value = self.opened.content
        for key in where:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def sort(
        self,
        *,
        layout: str,
        method: str,
        at: Sequence[Where],
        anchors: Sequence[str],
        backbone: str | Rename,
        others: Mapping[str, str],
        absent: Sequence[str] = (),
    ) -> Reading | None:
        """The first state dict `at` one of these places, its names sorted; None where it is not of this layout.

        anchors, absent: patterns, of which every one, or none, must match a name. backbone: the prefix of canonical
        names, or a function that gives a name's canonical one. others: pattern → group of the names that are not the
        backbone's. Patterns match whole names, without the wrapper.
        """
        for where in at:
            found = self.state_dicts.get(where)
            if found is None:
                continue
            lacks = tuple(anchor for anchor in anchors if not _any(anchor, found.tensors))
            forbidden = tuple(pattern for pattern in absent if _any(pattern, found.tensors))
            sort = partial(_sorted, found, layout, method, backbone, others)
            if not lacks and not forbidden:
                return sort()
            count = partial(_num_known, found, sort)
            self.attempts.append(Attempt(layout=layout, lacks=lacks, forbidden=forbidden, count=count))
        return None


def prefixed(prefix: str) -> Rename:
    """Names of the form prefix + canonical name."""

    def rename(name: str) -> str | None:
        bare = name.removeprefix(prefix) if name.startswith(prefix) else ""
        return bare if is_canonical(bare) else None

    return rename


def is_canonical(name: str) -> bool:
    """Whether `name` has the form of a canonical name (of any depth)."""
    return _CANONICAL.fullmatch(name) is not None


def _num_known(found: StateDict, sort: Callable[[], Reading]) -> int:
    return len(found.tensors) - len(sort().unexpected)


def _any(pattern: str, names: Mapping[str, Tensor]) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(name) for name in names)


def _sorted(found: StateDict, layout: str, method: str, backbone: str | Rename, others: Mapping[str, str]) -> Reading:
    rename = prefixed(backbone) if isinstance(backbone, str) else backbone
    rows = [(re.compile(pattern), group) for pattern, group in others.items()]
    state: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    groups: dict[str, dict[str, Tensor]] = {}
    unexpected: list[str] = []
    for name, tensor in found.tensors.items():
        canonical = rename(name)
        group = next((group for row, group in rows if row.fullmatch(name)), None)
        if canonical is not None and canonical not in state:
            state[canonical], names[canonical] = tensor, found.wrapper + name
        elif group is not None:
            groups.setdefault(group, {})[name] = tensor
        else:
            unexpected.append(found.wrapper + name)
    return Reading(
        layout=layout,
        method=method,
        where=found.where,
        wrapper=found.wrapper,
        prefix=found.wrapper + backbone if isinstance(backbone, str) else "",
        state=state,
        names=names,
        groups=groups,
        unexpected=tuple(unexpected),
    )


def _state_dicts(content: Any, where: Where) -> list[StateDict]:
    """Every mapping in a file that holds tensors by name, outermost first."""
    if not isinstance(content, Mapping) or len(where) > _DEPTH:
        return []
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    found = [_unwrapped(where, tensors)] if tensors else []
    for name, value in content.items():
        if isinstance(name, str):
            found += _state_dicts(value, (*where, name))
    return found


def _unwrapped(where: Where, tensors: dict[str, Tensor]) -> StateDict:
    wrapper = ""
    while True:
        more = next((w for w in WRAPPERS if all(name.startswith(wrapper + w) for name in tensors)), None)
        if more is None:
            break
        wrapper += more
    return StateDict(where=where, wrapper=wrapper, tensors={n[len(wrapper) :]: t for n, t in tensors.items()})
