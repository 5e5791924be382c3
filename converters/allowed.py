"""Which names may a checkpoint's pickle use, and what comes of a call of each? A literal table, and a function a row.

Nothing here is the thing that is named. What comes of a call is a tensor, a plain container, or a record (Reduced) of
what the file said; every function checks its arguments, as whoever wrote the file may have chosen them freely.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, UntypedStorage


class Refused(ValueError):
    """Not read. The message says why; it wants a file's name before it."""


class NotAllowed(Exception):
    """A call that is not allowed though the name is."""


@dataclass(frozen=True, eq=False, slots=True)
class Reduced:
    """An object of an allowed class, as data: what its file gives the constructor and what it then sets.

    name: "argparse.Namespace". state: of most objects the attributes, as a dict. args is None for the class itself.
    """

    name: str
    args: tuple[Any, ...] | None
    state: Any = None

    def __repr__(self) -> str:  # args and state can be large, and contain the object itself
        return f"Reduced({self.name})"


@dataclass(frozen=True, slots=True)
class Storage:
    """The bytes that tensors are views of."""

    dtype: torch.dtype
    data: UntypedStorage


@dataclass(eq=False, slots=True)
class Dtype:
    """A numpy.dtype: "f4", and its byte order, which the file gives afterwards."""

    code: str
    order: str = ""

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


@dataclass(eq=False, slots=True)
class Array:
    """A numpy.ndarray: the file names it first and gives its content afterwards."""

    tensor: Tensor | None = None


class Budget:
    """What may still be copied: one value can be referred to a million times in a million bytes.

    size: bytes of the stream.
    """

    def __init__(self, size: int) -> None:
        self.entries, self.bytes = 1_000_000, 4 * size + (1 << 20)

    def spend(self, *, entries: int = 0, size: int = 0) -> None:
        self.entries -= entries
        self.bytes -= size
        if self.entries < 0 or self.bytes < 0:
            raise Refused("the same content is copied over and over: not a checkpoint")


LEAVES: Final = frozenset({str, bytes, int, float, complex, bool, type(None), torch.dtype})
KEYS: Final = LEAVES | {Reduced}


def as_key(value: Any) -> Any:
    """`value`, if it can be hashed without going deep: C has no limit for that."""
    if type(value) in KEYS or (type(value) is tuple and all(type(item) in KEYS for item in value)):
        return value
    raise Refused(f"damaged or harmful: {kind_of(value)} as a key")


def natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def kind_of(value: Any) -> str:
    return value.name if type(value) is Reduced else type(value).__name__.lstrip("_").lower()


# ---- what calls come to: (budget, name, arguments) → data


def _record(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Reduced:
    return Reduced(name, arguments)


def _mapping(budget: Budget, name: str, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Any mapping as a dict: of nothing, a default's class, a mapping, or pairs."""
    given = arguments[-1] if arguments else None
    source: Any = () if given is None or (type(given) is Reduced and given.args is None) else given
    if len(arguments) > 1 or type(source) not in (dict, list, tuple):
        raise Refused(f"damaged or harmful: {name} made of something else than a mapping")
    budget.spend(entries=len(source))
    if type(source) is dict:
        return dict(source)
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in source):
        raise Refused(f"damaged or harmful: {name} made of something else than pairs")
    return {as_key(key): value for key, value in source}


def _sequence(kind: Callable[[Any], Any]) -> Callable[[Budget, str, tuple[Any, ...]], Any]:
    """A sequence or set of what the first argument lists; a deque has its greatest length after that."""

    def make(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Any:
        source = arguments[0] if arguments else ()
        if type(source) not in (list, tuple, set, frozenset):
            raise Refused(f"damaged or harmful: {name} made of {kind_of(source)}")
        budget.spend(entries=len(source))
        return kind(map(as_key, source)) if kind in (set, frozenset) else kind(source)

    return make


def _named_tuple(*fields: str) -> Callable[[Budget, str, tuple[Any, ...]], Any]:
    """A named tuple as a dict."""

    def make(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Any:
        if len(arguments) != len(fields):
            raise Refused(f"{name} has {len(arguments)} fields; expected {', '.join(fields)}")
        return dict(zip(fields, arguments, strict=True))

    return make


def _encoded(budget: Budget, name: str, arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes bytes."""
    text, *encoding = arguments
    if type(text) is not str or encoding not in (["latin1"], ["latin-1"]):
        raise Refused("damaged or harmful: _codecs.encode of something else than latin1 text")
    budget.spend(size=len(text))
    return text.encode("latin-1")


def _bytes(budget: Budget, name: str, arguments: tuple[Any, ...]) -> bytes:
    """bytes and bytearray, of bytes, or of text and "latin-1"; never of a number, which is a length."""
    if len(arguments) == 2:
        return _encoded(budget, name, arguments)
    source = arguments[0] if arguments else b""
    if type(source) not in (bytes, bytearray) or len(arguments) > 1:
        raise Refused(f"damaged or harmful: {name} of something else than bytes")
    budget.spend(size=len(source))
    return bytes(source)


def _complex(budget: Budget, name: str, arguments: tuple[Any, ...]) -> complex:
    if len(arguments) != 2 or not all(type(part) is float for part in arguments):
        raise Refused("damaged: complex of something else than two numbers")
    return complex(*arguments)


def _method(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Any:
    """mmengine's HistoryBuffer names four of its methods by getattr. Any other getattr is an attempt at something."""
    owner = arguments[0] if len(arguments) == 2 else None
    if type(owner) is Reduced and owner.args is None and owner.name in _HISTORY_BUFFERS:
        if arguments[1] in ("min", "max", "mean", "current"):
            return Reduced(f"{owner.name}.{arguments[1]}", None)
    raise NotAllowed("builtins.getattr")


def _tensor(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Tensor:
    """(storage, offset, size, stride, requires grad, hooks[, dtype][, what is conjugated or negated])."""
    storage, offset, size, stride, *rest = arguments
    rest = rest[2:]
    dtype = rest.pop(0) if name.endswith("_v3") else storage.dtype
    if type(storage) is not Storage or not isinstance(dtype, torch.dtype) or any(rest):
        raise Refused("damaged: a tensor that is not a view of a storage")
    if not (natural(offset) and type(size) is type(stride) is tuple and len(size) == len(stride)):
        raise Refused("damaged: a tensor whose size and strides do not fit")
    if not all(map(natural, (*size, *stride))):
        raise Refused("damaged: a tensor whose size and strides do not fit")
    if 0 not in size:
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if (last + 1) * dtype.itemsize > storage.data.nbytes():
            raise Refused(f"damaged: a tensor of size {size} reaches beyond its storage")
    return torch.empty(0, dtype=dtype, device=storage.data.device).set_(storage.data, offset, size, stride)


def _parameter(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Tensor:
    """(tensor, requires grad, hooks, state): the tensor."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise Refused("damaged: a parameter that is no tensor")
    return arguments[0]


def _size(budget: Budget, name: str, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    if len(arguments) != 1 or type(arguments[0]) is not tuple or not all(map(natural, arguments[0])):
        raise Refused("damaged: torch.Size of something else than lengths")
    return arguments[0]


def _numpy_dtype(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Dtype:
    code = arguments[0] if arguments else None
    if type(code) is not str or len(code) > 12:
        raise Refused("damaged: a numpy.dtype without a name")
    if code.startswith("O"):
        raise Refused("numpy arrays of objects: not read, as they hold anything; expected arrays of numbers")
    text = code[:1] in "SU" and code[1:].isdecimal()
    if code not in _NUMBERS and not text:
        raise Refused(f"numpy arrays of type {code}: expected one of {', '.join(_NUMBERS)}")
    return Dtype(code)


def byte_order(state: Any) -> str:
    """(version, "<", None, None, None, …): what is None here is of structured types."""
    if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
        raise Refused("damaged: a numpy.dtype without a byte order")
    if any(part is not None for part in state[2:5]):
        raise Refused("numpy arrays of a structured type: expected arrays of numbers")
    return state[1]


def _new_array(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Array:
    kind = arguments[0] if arguments else None
    if type(kind) is not Reduced or kind.args is not None or kind.name != "numpy.ndarray":
        raise Refused("an array of a class other than numpy.ndarray")
    return Array()


def array_state(state: Any) -> tuple[Any, Any, Literal["C", "F"], Any]:
    """numpy.ndarray.__setstate__'s ([version,] shape, dtype, Fortran order, bytes)."""
    if type(state) is not tuple or len(state) not in (4, 5):
        raise Refused("damaged: a numpy array without its content")
    shape, dtype, fortran, content = state[-4:]
    return shape, dtype, "F" if fortran else "C", content


def array(budget: Budget, shape: Any, dtype: Any, order: Literal["C", "F"], content: Any) -> Tensor:
    if type(content) is list:
        raise Refused("numpy arrays of objects: not read, as they hold anything; expected arrays of numbers")
    if type(content) is str:  # python 2 wrote it
        content = content.encode("latin-1")
    if type(dtype) is not Dtype or type(shape) is not tuple or not all(map(natural, shape)) or len(shape) > 32:
        raise Refused("damaged: a numpy array without a type or a shape")
    if dtype.code not in _NUMBERS:
        raise Refused("numpy arrays of text: expected arrays of numbers")
    kind, count = dtype.numpy(), math.prod(shape)
    if type(content) not in (bytes, bytearray) or len(content) != count * kind.itemsize:
        raise Refused(f"damaged: a numpy array of shape {shape} and type {dtype.code} with not as many bytes")
    budget.spend(size=len(content))
    if not count:
        return torch.from_numpy(np.empty(shape, kind.newbyteorder("=")))
    flat = np.frombuffer(content if type(content) is bytearray else bytearray(content), kind)
    return torch.from_numpy(flat.astype(kind.newbyteorder("="), copy=False).reshape(shape, order=order))


def _array_of_buffer(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Tensor:
    """How protocol 5 writes arrays: (bytes, dtype, shape, order)."""
    content, dtype, shape, order = arguments
    return array(budget, shape, dtype, "F" if order == "F" else "C", content)


def _array_of_jax(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Tensor:
    """(numpy's function, its arguments, the array's state, what jax adds)."""
    function, _, state, *_ = arguments
    if type(function) is not Reduced or function.name != "numpy._core.multiarray._reconstruct":
        raise Refused("damaged or harmful: a jax array that is not numpy's")
    return array(budget, *array_state(state))


def _scalar(budget: Budget, name: str, arguments: tuple[Any, ...]) -> Any:
    """A numpy number or text as Python's."""
    if len(arguments) != 2 or type(arguments[0]) is not Dtype:
        raise Refused("damaged: a numpy scalar without a type")
    dtype, content = arguments
    content = content.encode("latin-1") if type(content) is str else content
    kind = dtype.numpy()
    if type(content) is not bytes or len(content) != kind.itemsize:
        raise Refused(f"damaged: a numpy scalar of type {dtype.code} with not as many bytes")
    budget.spend(size=len(content))
    return np.frombuffer(content, kind)[0].item() if content else ""


_NUMBERS: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16")
STORAGES: Final = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
DTYPES: Final = {
    f"torch.{name}": getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex64 "
    "complex128".split()
}
_HISTORY_BUFFERS: Final = ("mmengine.logging.history_buffer.HistoryBuffer",)

Make = Callable[[Budget, str, tuple[Any, ...]], Any]

# Name → what a call of it comes to; None: it is only ever named. The comment says who writes it.
ALLOWED: Final[dict[str, Make | None]] = {
    # torch.save, every version
    **dict.fromkeys((*STORAGES, *DTYPES)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,  # 0.4
    "torch.Size": _size,
    "torch.device": _record,
    "collections.OrderedDict": _mapping,
    # Python's own types, as protocols 2 and 3 write them
    "builtins.set": _sequence(set),
    "builtins.frozenset": _sequence(frozenset),
    "builtins.list": _sequence(list),  # a defaultdict's default, mostly
    "builtins.dict": _mapping,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.complex": _complex,
    "builtins.slice": _record,
    "builtins.range": _record,
    "builtins.xrange": _record,
    **dict.fromkeys(("builtins.int", "builtins.float", "builtins.str", "builtins.bool", "builtins.tuple")),
    **dict.fromkeys(("builtins.long", "builtins.unicode", "builtins.object", "typing.Any")),
    "_codecs.encode": _encoded,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,  # MultiStepLR's milestones
    "collections.deque": _sequence(list),
    "types.SimpleNamespace": _record,
    # numpy: scalars among the metrics, arrays in .pkl files
    "numpy._core.multiarray._reconstruct": _new_array,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "numpy.ndarray": None,
    "numpy.dtype": _numpy_dtype,
    # the arguments of a training script: DINO, MAE, torchvision's references, timm
    "argparse.Namespace": _record,
    "pathlib.Path": _record,
    "pathlib.PosixPath": _record,
    "pathlib.WindowsPath": _record,
    "pathlib.PurePosixPath": _record,
    "pathlib.PureWindowsPath": _record,
    "pathlib._local.PosixPath": _record,  # Python 3.13
    "pathlib._local.WindowsPath": _record,
    "datetime.datetime": _record,
    "datetime.date": _record,
    "datetime.timedelta": _record,
    # mmengine and mmcv runners: message hub, configuration
    **dict.fromkeys(_HISTORY_BUFFERS, _record),
    **dict.fromkeys(f"{owner}.{name}" for owner in _HISTORY_BUFFERS for name in ("min", "max", "mean", "current")),
    "builtins.getattr": _method,
    "mmengine.config.config.ConfigDict": _mapping,
    "mmcv.utils.config.ConfigDict": _mapping,
    "addict.addict.Dict": _mapping,
    # VISSL and classy vision, detectron2's and fvcore's configurations
    "vissl.utils.hydra_config.AttrDict": _mapping,
    "vissl.config.attr_dict.AttrDict": _mapping,
    "fvcore.common.config.CfgNode": _mapping,
    "detectron2.config.config.CfgNode": _mapping,
    "yacs.config.CfgNode": _mapping,
    # lightning: hyper-parameters; until 1.4 callbacks' states stood under their classes
    "pytorch_lightning.utilities.parsing.AttributeDict": _mapping,
    "lightning.fabric.utilities.data.AttributeDict": _mapping,
    "lightning_fabric.utilities.data.AttributeDict": _mapping,
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": None,
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping": None,
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor": None,
    "pytorch_lightning.callbacks.progress.ProgressBar": None,
    # hydra and omegaconf: solo-learn, lightly's benchmarks
    "omegaconf.dictconfig.DictConfig": _record,
    "omegaconf.listconfig.ListConfig": _record,
    "omegaconf.base.ContainerMetadata": _record,
    "omegaconf.base.Metadata": _record,
    "omegaconf.nodes.AnyNode": _record,
    "omegaconf.nodes.StringNode": _record,
    "omegaconf.nodes.IntegerNode": _record,
    "omegaconf.nodes.FloatNode": _record,
    "omegaconf.nodes.BooleanNode": _record,
    # DeepMind's BYOL (deepmind-research: byol/byol_experiment.py, byol/utils/optimizers.py), haiku, optax, jax
    "byol.byol_experiment._ByolExperimentState": _named_tuple(
        "online_params", "target_params", "online_state", "target_state", "opt_state"
    ),
    "byol.utils.optimizers.ScaleByLarsState": _named_tuple("mu"),
    "optax._src.transform.AdditiveWeightDecayState": _record,
    "optax._src.transform.AddDecayedWeightsState": _record,
    "optax._src.transform.ScaleState": _record,
    "optax._src.base.EmptyState": _record,
    "haiku._src.data_structures.FlatMapping": _mapping,  # dm-haiku: haiku/_src/data_structures.py, __reduce__
    "haiku._src.data_structures.FlatMap": _mapping,
    "haiku._src.data_structures.frozendict": _mapping,
    "jax._src.array._reconstruct_array": _array_of_jax,
    "jax._src.device_array.reconstruct_device_array": _array_of_jax,
}
PLAIN: Final = frozenset(
    {
        *STORAGES,
        *DTYPES,
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.device",
    }
)
_NOT_DENSE: Final = {
    "torch._utils._rebuild_qtensor": "quantised tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without values (meta)",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a class of their own",
    "torch._tensor._rebuild_from_type_v2": "tensors of a class, or with attributes, of their own",
    "torch.storage._load_from_bytes": "tensors written by pickle, not by torch.save",
}


def refusal(names: dict[str, None]) -> str:
    shown = ", ".join(list(names)[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    kinds = dict.fromkeys(_NOT_DENSE[name] for name in names if name in _NOT_DENSE)
    if any(name.startswith(("torch.nn.", "torchvision.models.", "timm.models.")) for name in names):
        kinds["a whole network object, not its state dict"] = None
    what = f" (it holds {'; '.join(kinds)})" if kinds else ""
    return (
        f"not opened: to read it, {shown} would have to be called{what}; nothing was. A checkpoint needs tensors and "
        "plain containers only: ask for a plain state dict or safetensors, which its owner writes with "
        "torch.save(model.state_dict(), 'weights.pth') or "
        "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
    )
