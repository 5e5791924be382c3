"""What does a pickle say, if nothing in it may run? A reader that can call nothing but what converters.allowed defines.

A pickle is a program for a small stack machine, and its instructions to import and to call are what makes it dangerous.
This machine imports nothing: a name is looked up in ALLOWED, a literal table of functions of ours. A name that is not
in the table is noted, the rest is read without calling anything, and all such names are refused together. What a file
has attributes set on is a record (Reduced), on which it sets nothing but `state`.

Memory and time are bounded by the stream: lengths are checked before anything is read, a memo is a dict (C's unpickler
allocates an array as long as its largest index), copies are counted, what contains itself is refused.
"""

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, cast

import torch
from torch import Tensor, UntypedStorage

from converters.allowed import (
    ALLOWED,
    DTYPES,
    LEAVES,
    PLAIN,
    STORAGES,
    Array,
    Budget,
    Dtype,
    NotAllowed,
    Reduced,
    Refused,
    Storage,
    array,
    array_state,
    as_key,
    byte_order,
    kind_of,
    natural,
    refusal,
)

MOST_OPERATIONS: Final = 5_000_000  # in one stream: an R101 with its optimiser has 50,000
MOST_VALUES: Final = 5_000_000  # of the content, a container counted as often as it is referred to
DEEPEST: Final = 200
_LONGEST_INTEGER: Final = 2040  # bits
_MOST_NAMES: Final = 1000


class Cut(Refused):
    """The stream ends in the middle."""

    def __init__(self) -> None:
        super().__init__("the file ends in the middle: it is truncated; fetch it again")


Storages = Callable[[str, torch.dtype, int, tuple[str, int, int] | None], UntypedStorage]  # key, dtype, numel, view


@dataclass(frozen=True, kw_only=True)
class Unpickled:
    """content: see Opened. plain: nothing in it but what torch.load(weights_only=True) takes without question."""

    content: Any
    plain: bool
    reduced: tuple[str, ...]


class Stream:
    """The part of a file from `start` to before `end`; reading beyond it is Cut."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self.file, self.size, self.position, self.end = file, end - start, start, end
        file.seek(start)

    def read(self, length: int) -> bytes:
        if length > self.end - self.position:
            raise Cut
        data = self.file.read(length)
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        line = self.file.readline(self.end - self.position)
        self.position += len(line)
        return line

    def tell(self) -> int:
        return self.position

    def seek(self, position: int) -> None:
        self.file.seek(position)
        self.position = position


def unpickle(stream: Stream, storages: Storages | None = None) -> Unpickled:
    """The next pickle of `stream` as data; the stream stands behind it then.

    storages: gives the bytes of torch's storages, which lie outside the pickle. Raises Refused, and where bytes are
    damaged any exception.
    """
    start = stream.tell()
    fetched, asked = _scanned(stream)
    stream.seek(start)
    machine = _Machine(stream, storages, fetched)
    try:
        content = machine.run()
    except Exception:
        if not machine.refused and not asked:
            raise
        raise Refused(refusal(machine.refused | asked)) from None
    if machine.refused:
        raise Refused(refusal(machine.refused))
    _check(content)
    return Unpickled(
        content=content,
        plain=machine.protocol == 2 and machine.named <= PLAIN,
        reduced=tuple(sorted(machine.reduced)),
    )


def _operations(stream: Stream) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
        yield operation, argument


def _scanned(stream: Stream) -> tuple[set[int], dict[str, None]]:
    """The memo's indices that are read again, and the names that are not allowed, as far as they stand there plainly.

    Nothing else of the memo needs to be kept: numpy's arrays go through it three times.
    """
    put: set[int] = set()
    fetched: set[int] = set()
    asked: dict[str, None] = {}
    for count, (operation, argument) in enumerate(_operations(stream)):
        if count > MOST_OPERATIONS:
            raise Refused(f"more than {MOST_OPERATIONS:,} objects: not a checkpoint")
        if operation.name in _PUTS:
            put.add(len(put) if operation.name == "MEMOIZE" else int(argument))
        elif operation.name in _GETS:
            fetched.add(int(argument))
        elif operation.name in ("GLOBAL", "INST") and len(asked) < _MOST_NAMES:
            name = _whole(*argument.split(" ", 1))
            if name not in ALLOWED:
                asked[name] = None
    return fetched, asked


def _whole(module: str, name: str) -> str:
    """ "module.name", by its name of today."""
    whole = f"{module}.{name}"
    for old, new in (("__builtin__.", "builtins."), ("numpy.core.", "numpy._core.")):
        if whole.startswith(old):
            return new + whole.removeprefix(old)
    return whole


_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_CONSTANTS: Final = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Unknown:
    """What a name that is not allowed, or a call of one, would be."""


class _Machine:
    def __init__(self, stream: Stream, storages: Storages | None, fetched: set[int]) -> None:
        self.stream, self.storages, self.fetched = stream, storages, fetched
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.memoised: set[int] = set()
        self.protocol = 0
        self.refused: dict[str, None] = {}  # in the order they are met
        self.named: set[str] = set()
        self.reduced: set[str] = set()
        self.budget = Budget(stream.size)

    def run(self) -> Any:
        stack = self.stack
        for operation, argument in _operations(self.stream):
            name = operation.name
            if name in _CONSTANTS:
                if isinstance(argument, int) and argument.bit_length() > _LONGEST_INTEGER:
                    raise Refused(f"an integer of {argument.bit_length()} bits: not a checkpoint")
                stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
            elif name in _PUTS:
                index = len(self.memoised) if name == "MEMOIZE" else int(argument)
                self.memoised.add(index)
                if index in self.fetched:
                    self.memo[index] = stack[-1]
            elif name in _GETS:
                value = self.memo[int(argument)]
                stack.append(value.tensor if isinstance(value, Array) and value.tensor is not None else value)
            elif name in _EMPTY:
                stack.append(_EMPTY[name]())
            elif name in _TUPLES:
                stack.append(tuple(self.top(_TUPLES[name])))
            elif name == "STOP":
                break
            else:
                _OPERATIONS[name](self, argument)
        if len(stack) != 1 or self.marks:
            raise Refused("damaged: the pickle leaves its stack in disorder")
        return stack.pop()

    def top(self, count: int) -> list[Any]:
        """Take the last `count` values off the stack."""
        if len(self.stack) < count:
            raise Refused("damaged: the pickle takes more from its stack than there is")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list[Any]:
        """Take all values above the last mark off the stack."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def look_up(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("damaged: the pickle names something by what is not text")
        whole = _whole(module, name)
        if whole in ALLOWED:
            self.named.add(whole)
            self.stack.append(DTYPES.get(whole) or Reduced(whole, None))
        else:
            self.refuse(whole)

    def refuse(self, name: str) -> None:
        if len(self.refused) < _MOST_NAMES:
            self.refused[name] = None
        self.stack.append(_Unknown())

    def call(self, function: Any, arguments: Any) -> None:
        if self.refused:
            self.stack.append(_Unknown())
            return
        if type(function) is not Reduced or function.args is not None or type(arguments) is not tuple:
            raise Refused("damaged or harmful: the pickle calls something that it did not name")
        make = ALLOWED[function.name]
        if make is None:
            raise Refused(f"damaged or harmful: the pickle calls {function.name}, which is only ever named")
        try:
            result = make(self.budget, function.name, arguments)
        except NotAllowed as error:
            self.refuse(str(error))
            return
        if type(result) is Reduced and result.args is not None:
            self.reduced.add(result.name)
        self.stack.append(result)

    def build(self, argument: Any) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if self.refused or type(target) is dict:  # the attributes of an AttrDict or OrderedDict (_metadata)
            return
        if type(target) is Reduced and target.args is not None and target.state is None:
            if target.name.startswith("omegaconf.") and type(state) is dict:
                state.pop("_parent", None)  # the node that it is part of: a circle
            object.__setattr__(target, "state", state)
        elif type(target) is Dtype and not target.order:
            target.order = byte_order(state)
        elif type(target) is Array and target.tensor is None:
            target.tensor = self.stack[-1] = array(self.budget, *array_state(state))
        else:
            raise Refused(f"damaged or harmful: the pickle sets attributes on {kind_of(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if self.refused:
            return
        if type(target) is not dict or len(items) % 2:
            raise Refused(f"damaged or harmful: the pickle sets items of {kind_of(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[as_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if self.refused:
            return
        if type(target) is not list:
            raise Refused(f"damaged or harmful: the pickle appends to {kind_of(target)}")
        target.extend(items)

    def add(self, argument: Any) -> None:
        items, target = self.marked(), self.stack[-1]
        if self.refused:
            return
        if type(target) is not set:
            raise Refused(f"damaged or harmful: the pickle adds to {kind_of(target)}")
        target.update(map(as_key, items))

    def persistent(self, identity: Any) -> None:
        """Torch's storages: ("storage", type, key, location, number of elements, and in old files a view of it)."""
        if self.refused:
            self.stack.append(_Unknown())
            return
        if self.storages is None or type(identity) is not tuple or len(identity) not in (5, 6):
            raise Refused("damaged or harmful: the pickle refers to something outside it that is no storage of torch")
        what, kind, key, _, count, *rest = identity
        known = type(kind) is Reduced and kind.args is None and kind.name in STORAGES
        if what != "storage" or not known or type(key) is not str or not natural(count):
            raise Refused("damaged or harmful: the pickle refers to something outside it that is no storage of torch")
        view = rest[0] if rest else None
        if view is not None:
            view = tuple(view)
            if len(view) != 3 or type(view[0]) is not str or not natural(view[1]) or not natural(view[2]):
                raise Refused("damaged: a view of a storage that has not a key, an offset and a length")
        dtype = STORAGES[kind.name]
        self.stack.append(Storage(dtype, self.storages(key, dtype, count, view)))

    # ---- the operations that take more than one line

    def stack_global(self, argument: Any) -> None:
        module, name = self.top(2)
        if self.refused and (type(module) is _Unknown or type(name) is _Unknown):
            self.stack.append(_Unknown())
        else:
            self.look_up(module, name)

    def inst(self, argument: Any) -> None:
        arguments = tuple(self.marked())
        self.look_up(*argument.split(" ", 1))
        self.call(self.stack.pop(), arguments)

    def obj(self, argument: Any) -> None:
        function, *arguments = self.marked()
        self.call(function, tuple(arguments))

    def newobj_ex(self, argument: Any) -> None:
        function, arguments, keywords = self.top(3)
        if not self.refused and keywords:
            arguments = (*arguments, keywords)  # a record takes it; anything else refuses it
        self.call(function, arguments)

    def pop(self, argument: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()


_OPERATIONS: Final[dict[str, Callable[[_Machine, Any], Any]]] = {
    "PROTO": lambda machine, argument: setattr(machine, "protocol", argument),
    "FRAME": lambda machine, argument: None,
    "MARK": lambda machine, argument: machine.marks.append(len(machine.stack)),
    "POP": _Machine.pop,
    "POP_MARK": lambda machine, argument: machine.marked(),
    "DUP": lambda machine, argument: machine.stack.append(machine.stack[-1]),
    "TUPLE": lambda machine, argument: machine.stack.append(tuple(machine.marked())),
    "LIST": lambda machine, argument: machine.stack.append(machine.marked()),
    "DICT": lambda machine, argument: _dict(machine),
    "FROZENSET": lambda machine, argument: machine.stack.append(frozenset(map(as_key, machine.marked()))),
    "APPEND": lambda machine, argument: machine.append(machine.top(1)),
    "APPENDS": lambda machine, argument: machine.append(machine.marked()),
    "SETITEM": lambda machine, argument: machine.set_items(machine.top(2)),
    "SETITEMS": lambda machine, argument: machine.set_items(machine.marked()),
    "ADDITEMS": _Machine.add,
    "GLOBAL": lambda machine, argument: machine.look_up(*argument.split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda machine, argument: machine.call(*machine.top(2)),
    "NEWOBJ": lambda machine, argument: machine.call(*machine.top(2)),
    "NEWOBJ_EX": _Machine.newobj_ex,
    "INST": _Machine.inst,
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": lambda machine, argument: machine.persistent(*machine.top(1)),
    "EXT1": lambda machine, argument: machine.refuse(f"copyreg extension {argument}"),
    "EXT2": lambda machine, argument: machine.refuse(f"copyreg extension {argument}"),
    "EXT4": lambda machine, argument: machine.refuse(f"copyreg extension {argument}"),
    "NEXT_BUFFER": lambda machine, argument: machine.refuse("a buffer outside the file"),
    "READONLY_BUFFER": lambda machine, argument: None,
}


def _dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _check(content: Any) -> None:
    """Raise Refused unless `content` is made of what Opened says, and whoever walks it comes to an end soon."""
    seen: dict[int, tuple[int, int]] = {}  # identity → values in it, how deep; (0, 0) while its content is looked at
    todo = [content]
    while todo:
        value = todo[-1]
        scalars, inner = _within(value)
        known = seen.get(id(value))
        if known is None:
            seen[id(value)] = (0, 0)
            if any(seen.get(id(item)) == (0, 0) for item in inner):
                raise Refused("damaged or harmful: a container that contains itself")
            todo += inner
            continue
        todo.pop()
        if known == (0, 0):
            parts = [seen[id(item)] for item in inner]
            total, deep = 1 + scalars + sum(part[0] for part in parts), 1 + max((part[1] for part in parts), default=0)
            if total > MOST_VALUES or deep > DEEPEST:
                raise Refused(f"more than {MOST_VALUES:,} values, or more than {DEEPEST} inside one another")
            seen[id(value)] = (total, deep)


def _within(value: Any) -> tuple[int, list[Any]]:
    """How many plain values stand in a container, and the containers in it."""
    if type(value) is dict:
        items = [*value, *value.values()]
    elif type(value) is Reduced:
        items = [value.args, value.state]
    elif type(value) in (list, tuple, set, frozenset):
        items = value
    elif type(value) in LEAVES or isinstance(value, Tensor):
        items = ()
    else:
        raise Refused(f"damaged or harmful: {kind_of(value)} where data should be")
    inner = [item for item in items if type(item) not in LEAVES]
    return len(items) - len(inner), inner
