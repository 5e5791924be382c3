"""Readers of the layouts that methods' own code writes: SimSiam, MoCo, DINO, SwAV, Barlow Twins, VICReg and others.

Every function gets a file's content and returns None where it is not of that layout (protocols §3.1). Of a method that
keeps two encoders the one is read that its authors evaluate; the other one is a group, or a note says where it is.
"""

from dataclasses import replace
from typing import Final

from converters.layouts.table import ANYWHERE, MODEL, NAME, Content, Reading

LINEAR: Final = r"(?:weight|bias)"
NORM: Final = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
TEACHER: Final = ("teacher",)
STUDENT: Final = ("student",)
SWAV_STD: Final = "SwAV's code normalises pixels by std 0.228, 0.224, 0.225, in training and evaluation; usual is 0.229"


def simsiam(content: Content) -> Reading | None:
    """The reference SimSiam: encoder (its fc is the projector) and predictor (§1.5, §3.1).

    facebookresearch/simsiam:simsiam/builder.py, main_simsiam.py. `fc.6.bias` is there and was never trained (§1.1).
    """
    return content.sort(
        layout="simsiam",
        method="SimSiam",
        at=ANYWHERE,
        anchors=(r"encoder\." + NAME, r"encoder\.fc\.[0-7]\..+", r"predictor\..+"),
        backbone="encoder.",
        others={
            r"encoder\.fc\.[036]\.weight": "projector",
            r"encoder\.fc\.6\.bias": "projector",
            r"encoder\.fc\.[147]\." + NORM: "projector",
            r"predictor\.[03]\.weight": "predictor",
            r"predictor\.3\.bias": "predictor",
            r"predictor\.1\." + NORM: "predictor",
        },
    )


def moco(content: Content) -> Reading | None:
    """MoCo v1 and v2, as trained or cleaned of the key encoder and the queue (moco#27); with or without `module.`.

    facebookresearch/moco:moco/builder.py, main_moco.py. v1's head is one linear layer, v2's two. Others have the same
    module tree and save nothing more in it: salesforce/PCL:pcl/builder.py, maple-research-lab/CLSA:model/CLSA.py,
    maple-research-lab/AdCo:model/AdCo.py (no queue). The query encoder is read, as MoCo's main_lincls.py does.
    """
    found = content.sort(
        layout="moco",
        method="",
        at=ANYWHERE,
        anchors=(r"encoder_q\." + NAME,),
        backbone="encoder_q.",
        others={
            r"encoder_q\.fc\.(?:[02]\.)?" + LINEAR: "projector",
            r"encoder_k\." + NAME: "momentum encoder",
            r"encoder_k\.fc\.(?:[02]\.)?" + LINEAR: "momentum encoder",
            r"queue(?:_ptr)?": "queue",
        },
    )
    if found is None:
        return None
    head = found.groups.get("projector", {})
    methods = {
        "encoder_q.fc.weight": "MoCo v1 (or PCL v1: same names)",
        "encoder_q.fc.0.weight": "MoCo v2 (or PCL v2, CLSA, AdCo: same names)",
    }
    said = [method for name, method in methods.items() if name in head]
    return replace(found, method=said[0] if said else "MoCo (which version is not said: no head)")


def moco_v3(content: Content) -> Reading | None:
    """MoCo v3 with a ResNet: base and momentum encoder (fc is the projector), predictor.

    facebookresearch/moco-v3:moco/builder.py, main_moco.py. The base encoder is read, as their main_lincls.py does.
    """
    return content.sort(
        layout="moco_v3",
        method="MoCo v3",
        at=ANYWHERE,
        anchors=(r"base_encoder\." + NAME,),
        backbone="base_encoder.",
        others={
            r"base_encoder\.fc\.[03]\.weight": "projector",
            r"base_encoder\.fc\.[14]\." + NORM: "projector",
            r"momentum_encoder\." + NAME: "momentum encoder",
            r"momentum_encoder\.fc\.[03]\.weight": "momentum encoder",
            r"momentum_encoder\.fc\.[14]\." + NORM: "momentum encoder",
            r"predictor\.[03]\.weight": "predictor",
            r"predictor\.[14]\." + NORM: "predictor",
        },
    )


def dino(content: Content) -> Reading | None:
    """DINO's full checkpoint: the teacher is read, as its eval_knn.py and hubconf.py do; the student is beside it.

    facebookresearch/dino:main_dino.py, utils.py (MultiCropWrapper), vision_transformer.py (DINOHead, whose last layer
    is weight-normalised). The published backbone alone is torchvision's layout.
    """
    found = content.sort(
        layout="dino",
        method="DINO (teacher)",
        at=(TEACHER,),
        anchors=(r"backbone\." + NAME, r"head\.last_layer\..+"),
        backbone="backbone.",
        others={
            r"head\.mlp\.\d+\." + NORM: "projector",
            r"head\.last_layer\.weight_[gv]": "prototypes",
        },
    )
    student = content.state_dicts.get(STUDENT)
    if found is None or student is None:
        return found
    address = f"{'/'.join(STUDENT)}:{student.wrapper}backbone."
    return replace(found, notes=(f"the teacher is read; the student is beside it: --take '{address}'",))


def swav(content: Content) -> Reading | None:
    """SwAV and, with several sets of prototypes, DeepCluster v2: published (flat) or from training (state_dict).

    facebookresearch/swav:src/resnet50.py, main_swav.py, main_deepclusterv2.py, swav#6. It pads by 1 before conv1, which
    pads by 2: together torchvision's 3.
    """
    found = content.sort(
        layout="swav",
        method="SwAV",
        at=ANYWHERE,
        anchors=(NAME, r"projection_head\..+", r"prototypes\..+"),
        backbone="",
        others={
            r"projection_head\." + LINEAR: "projector",
            r"projection_head\.[03]\." + LINEAR: "projector",
            r"projection_head\.1\." + NORM: "projector",
            r"prototypes\.(?:prototypes\d+\.)?weight": "prototypes",
        },
    )
    if found is None:
        return None
    several = "prototypes.prototypes0.weight" in found.groups.get("prototypes", {})
    method = "DeepCluster v2 (or SeLa v2: several sets of prototypes)" if several else found.method
    return replace(found, method=method, notes=(SWAV_STD,))


def barlow_twins(content: Content) -> Reading | None:
    """Barlow Twins' training checkpoint: backbone, projector and the last norm `bn`, which nobody else has.

    facebookresearch/barlowtwins:main.py. Its resnet50.pth is the bare backbone: torchvision's layout.
    """
    return content.sort(
        layout="barlow_twins",
        method="Barlow Twins",
        at=ANYWHERE,
        anchors=(r"backbone\." + NAME, r"projector\.0\.weight", r"bn\.running_mean"),
        backbone="backbone.",
        others={
            r"projector\.\d+\." + NORM: "projector",
            r"bn\.(?:running_mean|running_var|num_batches_tracked)": "output norm",
        },
    )


def vicreg(content: Content) -> Reading | None:
    """VICReg's training checkpoint: backbone and expander, here called projector, whose hidden layers have biases.

    facebookresearch/vicreg:main_vicreg.py (Projector), resnet.py (conv1 padded as SwAV's).
    """
    return content.sort(
        layout="vicreg",
        method="VICReg",
        at=(MODEL,),
        anchors=(r"backbone\." + NAME, r"projector\.0\.weight", r"projector\.0\.bias"),
        backbone="backbone.",
        others={r"projector\.\d+\." + NORM: "projector"},
        absent=(r"bn\..+", r"classifier\..+"),  # barlow_twins; solo_learn
    )


def pycontrast(content: Content) -> Reading | None:
    """InsDis, PIRL, MoCo and InfoMin of PyContrast: encoder, head and, with the jigsaw branch, head_jig.

    HobbitLong/PyContrast:pycontrast/networks/build_backbone.py, networks/util.py (JigsawHead),
    learning/contrast_trainer.py; options/base_options.py says which method has which heads. Memory (`contrast`) and
    momentum encoder (`model_ema`) lie outside `model`. CMC has two encoders and is refused.
    """
    found = content.sort(
        layout="pycontrast",
        method="",
        at=(MODEL,),
        anchors=(r"encoder\." + NAME, r"head\.[02]\." + LINEAR),
        backbone="encoder.",
        others={
            r"head\.[02]\." + LINEAR: "projector",
            r"head_jig\.fc1\.(?:[02]\.)?" + LINEAR: "jigsaw projector",
            r"head_jig\.fc2\." + LINEAR: "jigsaw projector",
        },
    )
    if found is None:
        return None
    methods = {  # two linear layers, jigsaw
        (False, False): "MoCo v1 (PyContrast)" if content.get("model_ema") is not None else "InsDis or MoCo v1",
        (False, True): "PIRL",
        (True, False): "MoCo v2 (PyContrast)",
        (True, True): "InfoMin",
    }
    deep, jigsaw = "head.2.weight" in found.groups["projector"], "jigsaw projector" in found.groups
    return replace(found, method=methods[deep, jigsaw])


def pixpro(content: Content) -> Reading | None:
    """PixPro: encoder, projector, their momentum copies, pixel propagation and, with it, the instance branch.

    zdaxie/PixPro:contrast/models/PixPro.py, main_pretrain.py, publish_model.py (which keeps `model` alone). SoCo, built
    on it, has a queue (hologerry/SoCo:contrast/models/SoCo_C4.py) and is not read.
    """
    mlp = r"(?:linear[12]\." + LINEAR + r"|bn1\." + NORM + ")"  # MLP2d
    return content.sort(
        layout="pixpro",
        method="PixPro",
        at=ANYWHERE,
        anchors=(r"encoder\." + NAME, r"encoder_k\." + NAME, r"projector\.linear1\..+"),
        backbone="encoder.",
        others={
            r"encoder_k\." + NAME: "momentum encoder",
            r"projector_k\." + mlp: "momentum encoder",
            r"projector_instance_k\." + mlp: "momentum encoder",
            r"projector(?:_instance)?\." + mlp: "projector",
            r"value_transform\.(?:" + LINEAR + "|" + mlp + ")": "predictor",
            r"predictor\." + mlp: "predictor",
        },
        absent=(r"queue",),  # SoCo
    )
