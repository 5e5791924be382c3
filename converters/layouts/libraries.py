"""Readers of the layouts that libraries write: torchvision, timm, mmselfsup and mmpretrain, VISSL, lightly, solo-learn.

Every function gets a file's content and returns None where it is not of that layout (protocols §3.1).
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from converters.layouts.table import ANYWHERE, FLAT, NAME, STATE_DICT, Content, Reading, is_canonical
from zoo.backbone import COUNTER
from zoo.errors import CheckpointError, several

_TENSOR = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_MM_NECK = rf"(fc\d*|bn\d*|mlp2?\.\d+|projection_neck(\.\d+)?)\.{_TENSOR}"  # every neck of OpenSelfSup and its heirs
_LIGHTLY_HEAD = rf"(layers\.\d+\.{_TENSOR}|last_layer\.(weight(_g|_v)?|parametrizations\.weight\.original[01]))"
_LIGHTLY_INDICES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_LIGHTLY_BACKBONE = rf"({NAME}|0\.weight|1\.{_TENSOR}|[4-7]\.\d+\.(conv[1-3]|bn[1-3]|downsample\.[01])\.{_TENSOR})"
_VISSL_TRUNK = ("classy_state_dict", "base_model", "model", "trunk")
_SHOWN = 5


def torchvision(content: Content) -> Reading | None:
    """Canonical names as they are, with or without the classifier: torchvision, timm, our own files.

    So are the published backbones of DINO, Barlow Twins and VICReg; nothing in such a file says whose it is.
    """
    if _is_extracted(content):
        return None
    reading = content.sort(
        layout="torchvision",
        method="not said by the file",
        at=ANYWHERE,
        anchors=(NAME,),
        backbone="",
        others={r"fc\.(weight|bias)": "classifier"},
        absent=(r"(projection_head|prototypes)\..+",),  # swav
    )
    averages = [place for place in ("state_dict_ema", "model_ema") if (place,) in content.state_dicts]
    if reading is None or not averages or reading.where in [(place,) for place in averages]:
        return reading
    return replace(reading, notes=(f"taken: {_place(reading)}; the moving average beside it ({averages[0]}) is not",))


def mm_extracted(content: Content) -> Reading | None:
    """Canonical names under state_dict, and `author`: what OpenMMLab's extraction tools write (§3.1).

    MM0:tools/model_converters/extract_backbone_weights.py; OpenSelfSup and DenseCL: tools/extract_backbone_weights.py.
    """
    if not _is_extracted(content):
        return None
    return content.sort(
        layout="mm_extracted",
        method="not said by the file",
        at=(STATE_DICT,),
        anchors=(NAME,),
        backbone="",
        others={},
    )


def backbone(content: Content) -> Reading | None:
    """Names behind `backbone.` and nothing else: a part that someone kept of a larger model."""
    return content.sort(
        layout="backbone",
        method="not said by the file",
        at=ANYWHERE,
        anchors=(rf"backbone\.{NAME}",),
        backbone="backbone.",
        others={},
        absent=(r"(?!backbone\.).+",),
    )


def mmselfsup0(content: Content) -> Reading | None:
    """SimSiam of mmselfsup 0.x, whose `encoder` is backbone and neck once more (§1.5: 676 tensors).

    MM0:mmselfsup/models/algorithms/simsiam.py. Raises CheckpointError where an alias is not what it stands for.
    """
    reading = content.sort(
        layout="mmselfsup0",
        method="SimSiam",
        at=ANYWHERE,
        anchors=(rf"backbone\.{NAME}", rf"encoder\.0\.{NAME}"),
        backbone="backbone.",
        others={
            rf"neck\.{_MM_NECK}": "projector",
            rf"head\.predictor\.{_MM_NECK}": "predictor",
            rf"encoder\.(0\.{NAME}|1\.{_MM_NECK})": "aliases",
        },
    )
    return reading and _checked_aliases(content, reading, {"encoder.0.": "backbone.", "encoder.1.": "neck."})


def openselfsup(content: Content) -> Reading | None:
    """MoCo, BYOL and DenseCL of OpenSelfSup and mmselfsup 0.x: two encoders, of which the first is `backbone` too.

    OpenSelfSup:openselfsup/models/{moco,byol}.py, WXinlong/DenseCL:openselfsup/models/densecl.py,
    MM0:mmselfsup/models/algorithms/moco.py (there `neck` is an alias as well). Raises CheckpointError where an alias
    is not what it stands for.
    """
    reading = content.sort(
        layout="openselfsup",
        method="MoCo",
        at=ANYWHERE,
        anchors=(rf"backbone\.{NAME}", rf"(encoder_q|online_net)\.0\.{NAME}"),
        backbone="backbone.",
        others={
            rf"(encoder_q|online_net)\.1\.{_MM_NECK}": "projector",
            rf"head\.predictor\.{_MM_NECK}": "predictor",
            rf"(encoder_k|target_net)\.(0\.{NAME}|1\.{_MM_NECK})": "momentum encoder",
            r"queue2?(_ptr)?": "queue",
            rf"(encoder_q|online_net)\.0\.{NAME}|neck\.{_MM_NECK}": "aliases",
        },
    )
    if reading is None:
        return None
    encoder = "online_net" if any(name.startswith("online_net.") for name in _names(content, reading)) else "encoder_q"
    reading = replace(reading, method=_method(content, reading, {r"queue2": "DenseCL", r"online_net\..+": "BYOL"}))
    return _checked_aliases(content, reading, {f"{encoder}.0.": "backbone.", "neck.": f"{encoder}.1."})


def mmselfsup1(content: Content) -> Reading | None:
    """mmselfsup 1.x and mmpretrain, classifiers too, and what mmselfsup 0.x writes without an encoder (§1.5, §3.1).

    MP:mmpretrain/models/selfsup/, heads/, necks/; the momentum encoder is mmengine's averaged model (module, steps).
    Raises CheckpointError where an alias is not what it stands for.
    """
    reading = content.sort(
        layout="mmselfsup1",
        method="SimCLR or another without a trained head",
        at=ANYWHERE,
        anchors=(rf"backbone\.{NAME}", r"(neck|head)\..+"),
        backbone="backbone.",
        others={
            rf"neck\.{_MM_NECK}": "projector",
            rf"head\.predictor\.{_MM_NECK}": "predictor",
            rf"neck\.norm\.{_TENSOR}": "aliases",  # SwAV's neck registers the norm within projection_neck once more
            r"head\.(loss_module\.)?prototypes(\.prototypes\d+)?\.weight": "prototypes",
            rf"head\.bn\.{_TENSOR}": "head",
            r"head\.fc(_cls)?\.(weight|bias)": "classifier",
            rf"(encoder_k|target_net|momentum_encoder)\.(module\.(0\.{NAME}|1\.{_MM_NECK})|steps)": "momentum encoder",
            r"queue2?(_ptr)?": "queue",
            r"data_preprocessor\.(mean|std)": "pixel statistics",
        },
        absent=(
            r"(encoder|encoder_q|online_net)\.[01]\..+",  # mmselfsup0, openselfsup
            r"head\.(mlp|last_layer)\..+",  # DINO
            r"(projection_head|projector|classifier)\..+",  # lightly, Barlow Twins, solo-learn
            r"(rpn|roi|bbox|mask|decode|auxiliary)_head\..+",  # mmdetection, mmsegmentation: a neck, too
        ),
    )
    method = {
        r"queue2": "DenseCL",
        r"queue": "MoCo",
        r"target_net\..+": "BYOL",
        r"momentum_encoder\..+": "MoCo v3",
        r"head\.predictor\..+": "SimSiam",
        r".+\.prototypes\..+": "SwAV",
        r"head\.bn\..+": "Barlow Twins",
        r"head\.fc\..+": "a classifier: supervised, or trained on features",
    }
    if reading is None:
        return None
    reading = replace(reading, method=_method(content, reading, method))
    return _checked_aliases(content, reading, {"neck.norm.": "neck.projection_neck.1."})


def vissl(content: Content) -> Reading | None:
    """VISSL: `_feature_blocks.` in the trunk of a Classy Vision state, the heads beside it; or the trunk alone (§3.1).

    VI:vissl/models/trunks/resnext.py, base_ssl_model.py (get_classy_state), trunks/feature_extractor.py (linear
    evaluation: one prefix more), extra_scripts/convert_vissl_to_torchvision.py (the three places).
    """
    for prefix in ("_feature_blocks.", "base_model._feature_blocks."):
        reading = content.sort(
            layout="vissl",
            method="not said by the file",
            at=(_VISSL_TRUNK, ("model_state_dict",), FLAT),
            anchors=(re.escape(prefix) + NAME,),
            backbone=prefix,
            others={},
        )
        if reading is not None:
            heads = content.state_dicts.get((*_VISSL_TRUNK[:-1], "heads"))
            found = {"head": dict(heads.tensors)} if heads is not None and reading.where == _VISSL_TRUNK else {}
            return replace(reading, groups=found)
    return None


def lightly(content: Content) -> Reading | None:
    """lightly's examples and benchmarks, plain or by Lightning: `backbone`, by name or by index, and `projection_head`.

    lightly-ai/lightly:examples/pytorch_lightning/ (nn.Sequential of a ResNet's children: indices),
    benchmarks/imagenet/resnet50/ (names; for DINO and MoCo v2 `backbone` is the averaged one, which they evaluate).
    """
    return content.sort(
        layout="lightly",
        method="not said by the file",
        at=ANYWHERE,
        anchors=(rf"backbone\.{_LIGHTLY_BACKBONE}", rf"projection_head\.{_LIGHTLY_HEAD}"),
        backbone=_lightly_name,
        others={
            rf"projection_head\.{_LIGHTLY_HEAD}": "projector",
            rf"prediction_head\.{_LIGHTLY_HEAD}": "predictor",
            r"prototypes\.heads\.\d+\.weight": "prototypes",
            rf"(backbone_momentum|teacher_backbone)\.{_LIGHTLY_BACKBONE}": "momentum encoder",
            rf"(projection_head_momentum|teacher_projection_head)\.{_LIGHTLY_HEAD}": "momentum encoder",
            rf"(query|student)_backbone\.{_LIGHTLY_BACKBONE}": "online encoder",
            rf"(query|student)_projection_head\.{_LIGHTLY_HEAD}": "online encoder",
            r"online_classifier\.classification_head\.(weight|bias)": "classifier",
            r"criterion\.((memory_bank\.)?bank(_ptr)?|center(\.center)?)": "loss",
        },
    )


def solo_learn(content: Content) -> Reading | None:
    """solo-learn: a Lightning checkpoint of `backbone` (old: `encoder`), an online classifier and the method's parts.

    vturrisi/solo-learn:solo/methods/base.py (backbone, classifier, momentum_*), mocov2plus.py, nnclr.py, swav.py,
    deepclusterv2.py, dino.py (head, dino_loss_func).
    """
    for prefix in ("backbone", "encoder"):
        reading = content.sort(
            layout="solo_learn",
            method="not said by the file",
            at=ANYWHERE,
            anchors=(rf"{prefix}\.{NAME}", r"classifier\.weight"),
            backbone=f"{prefix}.",
            others={
                r"classifier\.(weight|bias)": "classifier",
                rf"projector\.\d+\.{_TENSOR}": "projector",
                rf"predictor\.\d+\.{_TENSOR}": "predictor",
                rf"momentum_{prefix}\.{NAME}": "momentum encoder",
                rf"momentum_(projector|predictor)\.\d+\.{_TENSOR}": "momentum encoder",
                r"momentum_classifier\.(weight|bias)": "momentum encoder",
                rf"(momentum_)?head\.(mlp(\.\d+)?\.{_TENSOR}|last_layer\.weight(_g|_v)?)": "head",
                r"prototypes\.(weight(_g|_v)?|\d+\.weight)": "prototypes",
                r"queue(_y|_ptr)?|local_memory_(index|embeddings)": "queue",
                r"dino_loss_func\.center": "loss",
            },
        )
        if reading is not None:
            return reading
    return None


def _is_extracted(content: Content) -> bool:
    return isinstance(content.get("author"), str) and STATE_DICT in content.state_dicts


def _place(reading: Reading) -> str:
    return "/".join(reading.where) or "the whole file"


def _lightly_name(name: str) -> str | None:
    """backbone.conv1.weight, or backbone.0.weight: the children of torchvision's network by number."""
    if not name.startswith("backbone."):
        return None
    first, _, rest = name.removeprefix("backbone.").partition(".")
    bare = f"{_LIGHTLY_INDICES.get(first, first)}.{rest}"
    return bare if is_canonical(bare) else None


def _names(content: Content, reading: Reading) -> Mapping[str, Tensor]:
    return content.state_dicts[reading.where].tensors


def _method(content: Content, reading: Reading, methods: Mapping[str, str]) -> str:
    """The method of the first pattern that matches a name; the reading's own where none does."""
    names = _names(content, reading)
    return next((m for p, m in methods.items() if any(re.fullmatch(p, name) for name in names)), reading.method)


def _checked_aliases(content: Content, reading: Reading, stands_for: Mapping[str, str]) -> Reading:
    """`reading`, where every alias is bit for bit the tensor that it stands for. Raises CheckpointError naming others.

    Two copies that differ mean that the file was edited, and nobody can say which of them was trained.
    """
    names = _names(content, reading)
    differ: list[str] = []
    for alias in reading.groups.get("aliases", {}):
        prefix = next(p for p in stands_for if alias.startswith(p))
        original = stands_for[prefix] + alias.removeprefix(prefix)
        if original not in names:
            if alias.endswith(COUNTER):
                continue  # batch counters may be left out, and nothing hangs on them
            differ.append(f"{alias}: there is no {original}")
        elif not _same(names[alias], names[original]):
            differ.append(f"{alias}: differs from {original}")
    if differ:
        title = (
            f"{content.opened.path} ({reading.layout}): {len(differ)} tensors are there twice and differ, where the "
            "library writes one tensor under two names; which is right cannot be known."
        )
        more = [f"… and {len(differ) - _SHOWN} more"] if len(differ) > _SHOWN else []
        raise CheckpointError(several(title, differ[:_SHOWN] + more))
    return reading


def _same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit. A tensor that claims more elements than its storage holds is looked at only by its place."""
    if (one.dtype, one.shape, one.layout) != (other.dtype, other.shape, other.layout) or one.layout != torch.strided:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    held = min(one.untyped_storage().nbytes(), other.untyped_storage().nbytes())
    if one.is_quantized or one.numel() * one.element_size() > held:
        return False
    raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(raw[0], raw[1])
