"""Make the engines importable beside today's numpy, Pillow and torch, and close the ways they load strangers' pickles.

Call `prepare_detectron2()` or `prepare_mmseg()` before the first import of the engine. Every step looks for the real
thing first, so an official build is used as it is. Imports torch and numpy only: it runs in engine interpreters too.
"""

import builtins
import importlib.util
import os
import pickle
import sys
import types
import warnings
from typing import IO, Any


def prepare_detectron2() -> None:
    """detectron2 v0.6: aliases that numpy and Pillow have dropped, `pkg_resources`, and the compiled part's name.

    Nothing the benchmarks use calls the compiled part: ROIAlign and NMS come from torchvision. What does ask for one of
    its operators gets a NotImplementedError that names it.
    """
    import numpy as np
    from PIL import Image

    for name in ("bool", "int", "float", "object", "str"):
        if name not in vars(np):
            setattr(np, name, getattr(builtins, name))
    if not hasattr(Image, "LINEAR"):
        setattr(Image, "LINEAR", Image.Resampling.BILINEAR)  # noqa: B010  # a name that type checkers know is gone
    if importlib.util.find_spec("pkg_resources") is None:
        stub = types.ModuleType("pkg_resources")
        setattr(stub, "resource_filename", _resource_filename)  # noqa: B010
        sys.modules["pkg_resources"] = stub
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources announces its own end at every import
        import detectron2

        if importlib.util.find_spec("detectron2._C") is None:
            compiled = types.ModuleType("detectron2._C")
            setattr(compiled, "__getattr__", _missing_operator)  # noqa: B010
            sys.modules["detectron2._C"] = compiled
            setattr(detectron2, "_C", compiled)  # noqa: B010
        import detectron2.model_zoo  # noqa: F401  # imports pkg_resources; once, here, without its warning
        from detectron2.checkpoint import detection_checkpoint
    setattr(detection_checkpoint, "pickle", types.SimpleNamespace(load=load_arrays_only))  # noqa: B010


def prepare_mmseg() -> None:
    """mmengine falls back to unpickling anything when a file is not tensors only: it must refuse instead.

    Nor is anything let in beside tensors (mmengine's own list has `getattr`): our checkpoints hold nothing else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmcv.cnn.bricks.transformer  # noqa: F401  # says that mmcv's compiled operators are not there
        import mmengine.runner.checkpoint as checkpoints
    setattr(checkpoints, "_safe_torch_load", _load_tensors_only)  # noqa: B010


def load_arrays_only(stream: IO[bytes], **options: Any) -> Any:
    """`pickle.load` for numpy arrays in plain containers; anything else raises pickle.UnpicklingError naming it."""
    return _ArraysOnly(stream, **options).load()


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        array_parts = {"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}
        if module.split(".")[0] == "numpy" and name in array_parts:
            return super().find_class(module, name)
        if (module, name) in {("_codecs", "encode"), ("collections", "OrderedDict")}:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed: expected numpy arrays in dicts and lists")


def _load_tensors_only(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    import torch

    return torch.load(file, map_location=map_location, weights_only=True)


def _resource_filename(package: str, relative: str) -> str:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return os.path.join(os.path.dirname(spec.origin), relative)


def _missing_operator(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError(f"detectron2._C.{name}: this detectron2 has no compiled extension")

    return refuse
