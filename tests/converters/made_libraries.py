"""Checkpoint files as libraries write them: torchvision, timm, mmselfsup and mmpretrain, VISSL, lightly and others.

By the library itself where it is installed; else modules under the names that its source gives them, in own words.
Heads are narrow, for widths are arguments there.
"""

import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.converters.made import Made, State, shaken

HIDDEN: Final = 24
OUT: Final = 16
KEYS: Final = 32
LIGHTNING: Final = {  # what Lightning's Trainer writes beside state_dict
    "epoch": 100,
    "global_step": 500,
    "pytorch-lightning_version": "1.9.5",
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 100, "completed": 100}}}},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": None, "dirpath": "checkpoints"}},
    "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.06}]}],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"batch_size_per_device": 32, "num_classes": 10},
}


class Network(nn.Module):
    """Named parts, in order; the forward of a test's case is its backbone's."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def resnet(arch: str) -> Any:
    """torchvision's network without its classifier: (N, 3, H, W) → (N, D). Values are undefined until `shaken`."""
    with torch.device("meta"):
        network: Any = torchvision.models.get_model(arch)
    network.fc = nn.Identity()
    return network.to_empty(device="cpu")


def width(arch: str) -> int:
    return 512 if arch in ("resnet18", "resnet34") else 2048


def depth(arch: str) -> int:
    return int(arch.removeprefix("resnet"))


def mlp(*widths: int, norm: bool = True) -> nn.Sequential:
    """Linear, BN, ReLU, …, Linear."""
    layers: list[nn.Module] = []
    for num_in, num_out in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(num_in, num_out), *([nn.BatchNorm1d(num_out)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def queue(ways: tuple[int, ...] = (OUT, KEYS)) -> Tensor:
    return torch.zeros(ways)


def pointer() -> Tensor:
    return torch.zeros(1, dtype=torch.long)


def made(
    layout: str,
    content: Any,
    network: nn.Module,
    arch: str,
    groups: set[str],
    source: str,
    *,
    save: Literal["torch", "pickle", "safetensors"] = "torch",
    forward: Callable[[Tensor], Tensor] | None = None,
    backbone: State | None = None,
) -> Made:
    """`network`: torchvision's, whose names are canonical, unless `backbone` and `forward` are given."""
    return Made(
        layout=layout,
        content=content,
        save=save,
        arch=arch,
        backbone={k: v for k, v in network.state_dict().items() if k[:3] != "fc."} if backbone is None else backbone,
        forward=network.forward if forward is None else forward,
        groups=frozenset(groups),
        source=source,
    )


# torchvision, timm


def pooled(network: Any, images: Tensor) -> Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x)))).mean((2, 3))


def torchvision_classifier(arch: str) -> Made:
    network = resnet(arch)
    network.fc = nn.Linear(width(arch), 7)
    shaken(network)
    source = "torchvision.models.resnet"
    return made(
        "torchvision", network.state_dict(), network, arch, {"classifier"}, source, forward=partial(pooled, network)
    )


def timm_network(arch: str, **options: Any) -> Any:
    import timm

    with torch.device("meta"):
        network = timm.create_model(arch, **options)
    return shaken(network.to_empty(device="cpu"))


def timm_safetensors(arch: str) -> Made:
    network = timm_network(arch, num_classes=7)
    source = "timm.models.resnet (the hub's model.safetensors)"
    state, forward = network.state_dict(), partial(_timm_pooled, network)
    return made("torchvision", state, network, arch, {"classifier"}, source, save="safetensors", forward=forward)


def timm_training(arch: str) -> Made:
    network = timm_network(arch, num_classes=7)
    content = {
        "epoch": 99,
        "arch": arch,
        "state_dict": network.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
        "version": 2,
        "args": Namespace(model=arch, lr=0.05, mean=None),
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "metric": 77.5,
    }
    source = "huggingface/pytorch-image-models:timm/utils/checkpoint_saver.py"
    return made("torchvision", content, network, arch, {"classifier"}, source, forward=partial(_timm_pooled, network))


def _timm_pooled(network: Any, images: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(images), pre_logits=True)


def bare_backbone(arch: str) -> Made:
    network = shaken(resnet(arch))
    return made("backbone", Network(backbone=network).state_dict(), network, arch, set(), "a part kept by hand")


# OpenMMLab


class MMNeck(nn.Module):
    """fc0, bn0, fc1, …: NonLinearNeck of MM0:mmselfsup/models/necks/nonlinear_neck.py."""

    def __init__(self, *widths: int, last_norm: bool | None = False, last_bias: bool = False) -> None:
        super().__init__()
        last = len(widths) - 2
        for number, (num_in, num_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
            self.add_module(f"fc{number}", nn.Linear(num_in, num_out, bias=last_bias and number == last))
            if number < last or last_norm is not None:
                norm = nn.BatchNorm1d(num_out, affine=number < last or bool(last_norm))
                self.add_module(f"bn{number}", norm)


def mm_file(state: Mapping[str, Tensor], version: str = "0.9.0") -> dict[str, Any]:
    meta = {"epoch": 100, "iter": 500400, "mmselfsup_version": version, "config": "model = dict(type='SimSiam')"}
    return {"meta": meta, "state_dict": dict(state), "optimizer": {"state": {}, "param_groups": []}}


def mmselfsup_simsiam(arch: str) -> Made:
    network = shaken(resnet(arch))
    neck = MMNeck(width(arch), HIDDEN, HIDDEN, OUT)
    model = Network(encoder=nn.Sequential(network, neck), backbone=network, neck=neck)
    model.head = Network(predictor=MMNeck(OUT, HIDDEN, OUT, last_norm=None, last_bias=True))
    groups = {"projector", "predictor", "aliases"}
    source = "MM0:mmselfsup/models/algorithms/simsiam.py, necks/nonlinear_neck.py, heads/latent_pred_head.py"
    return made("mmselfsup0", mm_file(model.state_dict()), network, arch, groups, source)


def openselfsup_moco(arch: str) -> Made:
    """`neck` has no alias here: open-mmlab/OpenSelfSup."""
    encoders = [nn.Sequential(shaken(resnet(arch), n), Network(mlp=mlp(width(arch), HIDDEN, OUT))) for n in (1, 2)]
    model = Network(encoder_q=encoders[0], encoder_k=encoders[1], backbone=encoders[0][0], head=nn.Identity())
    model.register_buffer("queue", queue())
    model.register_buffer("queue_ptr", pointer())
    groups = {"projector", "momentum encoder", "queue", "aliases"}
    source = "OpenSelfSup:openselfsup/models/moco.py, necks.py (NonLinearNeckV1)"
    return made("openselfsup", mm_file(model.state_dict()), encoders[0][0], arch, groups, source)


def mmselfsup_moco(arch: str) -> Made:
    """With `neck` as an alias, too: MM0."""
    encoders = [nn.Sequential(shaken(resnet(arch), n), Network(fc=nn.Linear(width(arch), OUT))) for n in (1, 2)]
    model = Network(encoder_q=encoders[0], encoder_k=encoders[1], backbone=encoders[0][0], neck=encoders[0][1])
    model.register_buffer("queue", queue())
    model.register_buffer("queue_ptr", pointer())
    groups = {"projector", "momentum encoder", "queue", "aliases"}
    source = "MM0:mmselfsup/models/algorithms/moco.py, necks/linear_neck.py"
    return made("openselfsup", mm_file(model.state_dict()), encoders[0][0], arch, groups, source)


def openselfsup_byol(arch: str) -> Made:
    nets = [nn.Sequential(shaken(resnet(arch), n), MMNeck(width(arch), HIDDEN, OUT)) for n in (1, 2)]
    model = Network(online_net=nets[0], target_net=nets[1], backbone=nets[0][0])
    model.head = Network(predictor=MMNeck(OUT, HIDDEN, OUT))
    groups = {"projector", "predictor", "momentum encoder", "aliases"}
    source = "OpenSelfSup:openselfsup/models/byol.py, heads/latent_pred_head.py"
    return made("openselfsup", mm_file(model.state_dict()), nets[0][0], arch, groups, source)


def densecl(arch: str) -> Made:
    necks = [
        Network(
            mlp=mlp(width(arch), HIDDEN, OUT, norm=False),
            mlp2=nn.Sequential(nn.Conv2d(width(arch), HIDDEN, 1), nn.ReLU(), nn.Conv2d(HIDDEN, OUT, 1)),
        )
        for _ in range(2)
    ]
    encoders = [nn.Sequential(shaken(resnet(arch), n), neck) for n, neck in enumerate(necks)]
    model = Network(encoder_q=encoders[0], encoder_k=encoders[1], backbone=encoders[0][0])
    for name, buffer in {"queue": queue(), "queue_ptr": pointer(), "queue2": queue(), "queue2_ptr": pointer()}.items():
        model.register_buffer(name, buffer)
    groups = {"projector", "momentum encoder", "queue", "aliases"}
    source = "WXinlong/DenseCL:openselfsup/models/densecl.py, necks.py"
    return made("openselfsup", mm_file(model.state_dict()), encoders[0][0], arch, groups, source)


def mm_extracted(arch: str) -> Made:
    network = shaken(resnet(arch))
    source = "MM0:tools/model_converters/extract_backbone_weights.py"
    content = {"state_dict": network.state_dict(), "author": "MMSelfSup"}
    return made("mm_extracted", content, network, arch, set(), source)


def mmpretrain_model(arch: str, **parts: Any) -> Any:
    import mmpretrain.models  # noqa: F401  registers the classes
    from mmpretrain.registry import MODELS

    backbone = {"type": "ResNet", "depth": depth(arch), "style": "pytorch", "norm_cfg": {"type": "BN"}}
    return shaken(MODELS.build({"backbone": backbone, **parts}))


def mmpretrain_file(model: Any, arch: str, groups: set[str], source: str) -> Made:
    content = mm_file(model.state_dict(), "1.0.0") | {
        "message_hub": {"log_scalars": {}, "runtime_info": {"epoch": 100}, "resumed_keys": {}},
        "param_schedulers": [{"last_step": 100}],
    }
    forward: Callable[[Tensor], Tensor] = lambda images: model.backbone(images)[-1].mean((2, 3))  # noqa: E731
    return made("mmselfsup1", content, model.backbone, arch, groups, source, forward=forward)


def mm_neck(arch: str, **options: Any) -> dict[str, Any]:
    settings = {"in_channels": width(arch), "hid_channels": HIDDEN, "out_channels": OUT, "norm_cfg": {"type": "BN1d"}}
    return {"type": "NonLinearNeck", **settings, **options}


def mm_predictor() -> dict[str, Any]:
    widths = {"in_channels": OUT, "hid_channels": HIDDEN, "out_channels": OUT, "norm_cfg": {"type": "BN1d"}}
    last = {"with_avg_pool": False, "with_last_bn": False, "with_last_bias": True}
    return {"type": "NonLinearNeck", **widths, **last}


def mmpretrain_simsiam(arch: str) -> Made:
    head = {"type": "LatentPredictHead", "predictor": mm_predictor(), "loss": {"type": "CosineSimilarityLoss"}}
    neck = mm_neck(arch, num_layers=3, with_last_bn_affine=False)
    model = mmpretrain_model(arch, type="SimSiam", neck=neck, head=head)
    return mmpretrain_file(model, arch, {"projector", "predictor"}, "mmpretrain SimSiam")


def mmpretrain_byol(arch: str) -> Made:
    head = {"type": "LatentPredictHead", "predictor": mm_predictor(), "loss": {"type": "CosineSimilarityLoss"}}
    model = mmpretrain_model(arch, type="BYOL", neck=mm_neck(arch), head=head)
    return mmpretrain_file(model, arch, {"projector", "predictor", "momentum encoder"}, "mmpretrain BYOL")


def mmpretrain_moco(arch: str) -> Made:
    neck = {"type": "MoCoV2Neck", "in_channels": width(arch), "hid_channels": HIDDEN, "out_channels": OUT}
    head = {"type": "ContrastiveHead", "temperature": 0.2, "loss": {"type": "CrossEntropyLoss"}}
    model = mmpretrain_model(arch, type="MoCo", queue_len=KEYS, feat_dim=OUT, neck=neck, head=head)
    return mmpretrain_file(model, arch, {"projector", "queue", "momentum encoder"}, "mmpretrain MoCo")


def mmpretrain_barlow(arch: str) -> Made:
    head = {"type": "LatentCrossCorrelationHead", "in_channels": OUT, "loss": {"type": "CrossCorrelationLoss"}}
    neck = mm_neck(arch, num_layers=3, with_last_bn=False)
    model = mmpretrain_model(arch, type="BarlowTwins", neck=neck, head=head)
    return mmpretrain_file(model, arch, {"projector", "head"}, "mmpretrain BarlowTwins")


def mmpretrain_swav(arch: str) -> Made:
    loss = {"type": "SwAVLoss", "feat_dim": OUT, "num_prototypes": [30], "crops_for_assign": [0, 1], "num_crops": [2]}
    neck = mm_neck(arch, type="SwAVNeck")
    model = mmpretrain_model(arch, type="SwAV", neck=neck, head={"type": "SwAVHead", "loss": loss})
    return mmpretrain_file(model, arch, {"projector", "prototypes", "aliases"}, "mmpretrain SwAV")


def mmpretrain_classifier(arch: str) -> Made:
    head = {"type": "LinearClsHead", "num_classes": 7, "in_channels": width(arch)}
    model = mmpretrain_model(arch, type="ImageClassifier", neck={"type": "GlobalAveragePooling"}, head=head)
    return mmpretrain_file(model, arch, {"classifier"}, "mmpretrain ImageClassifier")


# VISSL


def vissl_trunk(network: nn.Module) -> nn.Module:
    """`_feature_blocks`: VI:vissl/models/trunks/resnext.py."""
    return Network(_feature_blocks=nn.ModuleDict({name: part for name, part in network.named_children()}))


def vissl_file(trunk: nn.Module, heads: nn.Module) -> dict[str, Any]:
    model = {"trunk": trunk.state_dict(), "heads": heads.state_dict()}
    base = {"model": model, "meta": {"trunk": {}, "heads": []}}
    classy = {"base_model": base, "optimizer": {"optim": {"state": {}}}, "phase_idx": 99, "loss": {}}
    return {"phase_idx": 99, "iteration": 5000, "loss": {}, "classy_state_dict": classy, "type": "consolidated"}


def vissl(arch: str) -> Made:
    network = shaken(resnet(arch))
    heads = nn.ModuleList([Network(clf=mlp(width(arch), HIDDEN, OUT, norm=False))])
    source = "VI:vissl/models/base_ssl_model.py (get_classy_state), trunks/resnext.py, heads/mlp.py"
    return made("vissl", vissl_file(vissl_trunk(network), heads), network, arch, {"head"}, source)


def vissl_linear(arch: str) -> Made:
    network = shaken(resnet(arch))
    trunk = Network(base_model=vissl_trunk(network), feature_pool_ops=nn.ModuleList([nn.AdaptiveAvgPool2d(1)]))
    heads = nn.ModuleList([Network(channel_bn=nn.BatchNorm2d(64), clf=Network(clf=mlp(64, 7)))])
    source = "VI:vissl/models/trunks/feature_extractor.py, heads/linear_eval_mlp.py"
    return made("vissl", vissl_file(trunk, heads), network, arch, {"head"}, source)


def vissl_trunk_alone(arch: str) -> Made:
    network = shaken(resnet(arch))
    content = {"model_state_dict": vissl_trunk(network).state_dict()}
    return made("vissl", content, network, arch, set(), "VI:extra_scripts/convert_vissl_to_torchvision.py")


# lightly, solo-learn


def lightly_simsiam(arch: str) -> Made:
    """The example: a ResNet's children in an nn.Sequential, saved without Lightning."""
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    network = shaken(resnet(arch))
    model = Network(
        backbone=nn.Sequential(*list(network.children())[:-1]),
        projection_head=SimSiamProjectionHead(width(arch), HIDDEN, OUT),
        prediction_head=SimSiamPredictionHead(OUT, HIDDEN, OUT),
    )
    groups = {"projector", "predictor"}
    source = "lightly-ai/lightly:examples/pytorch_lightning/simsiam.py"
    return made("lightly", model.state_dict(), network, arch, groups, source)


def lightly_moco(arch: str) -> Made:
    """The example under Lightning, with momentum encoders; an older loss kept its memory bank in the file."""
    from lightly.models.modules import MoCoProjectionHead

    network = shaken(resnet(arch))
    model = Network(
        backbone=nn.Sequential(*list(network.children())[:-1]),
        projection_head=MoCoProjectionHead(width(arch), HIDDEN, OUT),
        backbone_momentum=nn.Sequential(*list(shaken(resnet(arch), 1).children())[:-1]),
        projection_head_momentum=MoCoProjectionHead(width(arch), HIDDEN, OUT),
        criterion=Network(bank=queue(), bank_ptr=pointer()),
    )
    groups = {"projector", "momentum encoder", "loss"}
    source = "lightly-ai/lightly:examples/pytorch_lightning/moco.py, lightly/models/modules/memory_bank.py"
    return made("lightly", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


def lightly_byol(arch: str) -> Made:
    """The ImageNet benchmark: names, a teacher and an online classifier."""
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    network = shaken(resnet(arch))
    model = Network(
        backbone=network,
        projection_head=BYOLProjectionHead(width(arch), HIDDEN, OUT),
        prediction_head=BYOLPredictionHead(OUT, HIDDEN, OUT),
        teacher_backbone=shaken(resnet(arch), 1),
        teacher_projection_head=BYOLProjectionHead(width(arch), HIDDEN, OUT),
        online_classifier=Network(classification_head=nn.Linear(width(arch), 7)),
    )
    groups = {"projector", "predictor", "momentum encoder", "classifier"}
    source = "lightly-ai/lightly:benchmarks/imagenet/resnet50/byol.py"
    return made("lightly", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


def lightly_dino(arch: str) -> Made:
    """The ImageNet benchmark: `backbone` is the teacher, and the student stands beside it."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    network = shaken(resnet(arch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of the weight_norm that lightly uses
        heads = [DINOProjectionHead(width(arch), HIDDEN, OUT, KEYS, batch_norm=True) for _ in range(2)]
    model = Network(
        backbone=network,
        projection_head=heads[0],
        student_backbone=shaken(resnet(arch), 1),
        student_projection_head=heads[1],
        criterion=DINOLoss(KEYS),
        online_classifier=Network(classification_head=nn.Linear(width(arch), 7)),
    )
    groups = {"projector", "online encoder", "classifier", "loss"}
    source = "lightly-ai/lightly:benchmarks/imagenet/resnet50/dino.py"
    return made("lightly", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


def solo_learn(arch: str) -> Made:
    network = shaken(resnet(arch))
    model = Network(
        backbone=network,
        classifier=nn.Linear(width(arch), 7),
        projector=mlp(width(arch), HIDDEN, HIDDEN, OUT),
        predictor=mlp(OUT, HIDDEN, OUT),
    )
    groups = {"classifier", "projector", "predictor"}
    source = "vturrisi/solo-learn:solo/methods/base.py, simsiam.py"
    return made("solo_learn", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


def solo_learn_moco(arch: str) -> Made:
    network = shaken(resnet(arch))
    model = Network(
        backbone=network,
        classifier=nn.Linear(width(arch), 7),
        momentum_backbone=shaken(resnet(arch), 1),
        projector=mlp(width(arch), HIDDEN, OUT, norm=False),
        momentum_projector=mlp(width(arch), HIDDEN, OUT, norm=False),
        queue=queue((2, OUT, KEYS)),
        queue_ptr=pointer(),
    )
    groups = {"classifier", "projector", "momentum encoder", "queue"}
    source = "vturrisi/solo-learn:solo/methods/base.py (BaseMomentumMethod), mocov2plus.py"
    return made("solo_learn", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


def solo_learn_old(arch: str) -> Made:
    """`encoder` was the backbone's name first."""
    network = shaken(resnet(arch))
    head = {"projector": mlp(width(arch), HIDDEN, OUT), "predictor": mlp(OUT, HIDDEN, OUT)}
    model = Network(encoder=network, classifier=nn.Linear(width(arch), 7), **head)
    groups = {"classifier", "projector", "predictor"}
    source = "vturrisi/solo-learn:solo/methods/base.py at 008f64fa"
    return made("solo_learn", {**LIGHTNING, "state_dict": model.state_dict()}, network, arch, groups, source)


# detectron2


class D2Conv(nn.Conv2d):
    """A convolution that holds its batch norm as `norm`: D2:detectron2/layers/wrappers.py."""

    def __init__(self, num_in: int, num_out: int, size: int, stride: int = 1) -> None:
        super().__init__(num_in, num_out, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(num_out)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        return self.norm(super().forward(input))


class D2Block(nn.Module):
    """BasicBlock and BottleneckBlock of D2:detectron2/modeling/backbone/resnet.py, STRIDE_IN_1X1 off."""

    def __init__(self, num_in: int, num_out: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inner = num_out // 4
        self.shortcut = D2Conv(num_in, num_out, 1, stride) if num_in != num_out else None
        if bottleneck:
            self.conv1, self.conv2 = D2Conv(num_in, inner, 1), D2Conv(inner, inner, 3, stride)
            self.conv3 = D2Conv(inner, num_out, 1)
        else:
            self.conv1, self.conv2 = D2Conv(num_in, num_out, 3, stride), D2Conv(num_out, num_out, 3)
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        out = self.conv3(F.relu(out)) if self.bottleneck else out
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


class D2ResNet(nn.Module):
    """stem, res2 … res5."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        bottleneck, blocks = depth(arch) >= 50, {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth(arch)]
        self.stem = Network(conv1=D2Conv(3, 64, 7, 2))
        channels = 64
        for stage, count in enumerate(blocks):
            num_out = (256 if bottleneck else 64) * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            parts = [D2Block(channels if n == 0 else num_out, num_out, s, bottleneck) for n, s in enumerate(strides)]
            self.add_module(f"res{stage + 2}", nn.Sequential(*parts))
            channels = num_out

    def forward(self, images: Tensor) -> Tensor:
        x: Any = F.max_pool2d(F.relu(self.stem.conv1(images)), 3, 2, 1)  # pyright: ignore[reportCallIssue]
        for stage in ("res2", "res3", "res4", "res5"):
            x = getattr(self, stage)(x)
        return x.mean((2, 3))


def canonical_of_d2(network: D2ResNet, arch: str) -> State:
    """Truth by the order in which both libraries build the same layers: torchvision's blocks, the shortcut last."""
    ours = torchvision.models.get_model(arch)
    state: State = {}

    def take(convolution: Any, names: tuple[str, str]) -> None:
        state[f"{names[0]}.weight"] = convolution.weight.detach()
        state.update({f"{names[1]}.{key}": tensor for key, tensor in convolution.norm.state_dict().items()})

    take(network.stem.conv1, ("conv1", "bn1"))
    for stage in range(1, 5):
        for number, block in enumerate(getattr(network, f"res{stage + 1}")):
            at = f"layer{stage}.{number}"
            for conv in ("1", "2", "3") if block.bottleneck else ("1", "2"):
                take(getattr(block, f"conv{conv}"), (f"{at}.conv{conv}", f"{at}.bn{conv}"))
            if block.shortcut is not None:
                take(block.shortcut, (f"{at}.downsample.0", f"{at}.downsample.1"))
    assert state.keys() == {name for name in ours.state_dict() if name[:3] != "fc."}
    return state


def detectron2_pickle(arch: str) -> Made:
    """What the published converters write: arrays, no counters, names to be matched by heuristics."""
    network = shaken(D2ResNet(arch))
    backbone = {k: v for k, v in canonical_of_d2(network, arch).items() if "num_batches" not in k}
    arrays = {k: v.numpy() for k, v in network.state_dict().items() if "num_batches" not in k}
    content = {"model": arrays, "__author__": "MOCO", "matching_heuristics": True}
    source = "MC:detection/convert-pretrain-to-detectron2.py; D2:detectron2/modeling/backbone/resnet.py"
    return made(
        "detectron2", content, network, arch, set(), source, save="pickle", backbone=backbone, forward=network.forward
    )


def detectron2_fpn(arch: str) -> Made:
    """A trained model of fvcore's checkpointer: backbone.bottom_up beside FPN, RPN and heads."""
    network = shaken(D2ResNet(arch))
    fpn = {"fpn_lateral2": nn.Conv2d(64, 8, 1), "fpn_output2": nn.Conv2d(8, 8, 3)}
    model = Network(
        pixel_mean=torch.zeros(3, 1, 1),
        pixel_std=torch.ones(3, 1, 1),
        backbone=Network(**fpn, bottom_up=network),
        proposal_generator=Network(rpn_head=Network(conv=nn.Conv2d(8, 8, 3), anchor_deltas=nn.Conv2d(8, 4, 1))),
        roi_heads=Network(box_predictor=Network(cls_score=nn.Linear(8, 3)), box_head=Network(fc1=nn.Linear(8, 8))),
    )
    content = {"model": model.state_dict(), "optimizer": {"state": {}}, "scheduler": {}, "iteration": 89999}
    backbone = canonical_of_d2(network, arch)
    source = "D2:detectron2/modeling/backbone/fpn.py, meta_arch/rcnn.py"
    groups = {"neck", "detector"}
    return made("detectron2", content, network, arch, groups, source, backbone=backbone, forward=network.forward)


def detectron2_c4(arch: str) -> Made:
    """A trained C4 model: its last stage is in the heads, with MoCo's extra norm behind it."""
    network = shaken(D2ResNet(arch))
    trunk = Network(**{name: part for name, part in network.named_children() if name != "res5"})
    last = network.get_submodule("res5")
    heads: dict[str, Any] = {"res5": last, "box_predictor": Network(cls_score=nn.Linear(8, 3))}
    state = Network(backbone=trunk, roi_heads=Network(**heads)).state_dict()
    state |= {f"roi_heads.res5.norm.{k}": v for k, v in nn.BatchNorm2d(8).state_dict().items()}
    backbone = canonical_of_d2(network, arch)
    source = "D2:detectron2/modeling/roi_heads/roi_heads.py (Res5ROIHeads); MC:detection/train_net.py"
    content = {"model": state, "iteration": 23999}
    return made("detectron2", content, network, arch, {"detector"}, source, backbone=backbone, forward=network.forward)


# DeepMind


def same(x: Tensor, size: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding: what is odd goes below and to the right."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class Haiku:
    """hk.nets.ResNet as DeepMind's BYOL has it: parameters and state by module path, drawn by `generator`.

    deepmind-research:byol/utils/networks.py (ResNetTorso), dm-haiku:haiku/_src/nets/resnet.py, batch_norm.py.
    """

    def __init__(self, arch: str, seed: int, *, projections: tuple[bool, ...]) -> None:
        self.name = f"res_net{depth(arch)}"
        self.bottleneck = depth(arch) >= 50
        self.blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth(arch)]
        self.projections = projections
        self.generator = np.random.default_rng(seed)
        self.parameters: dict[str, dict[str, np.ndarray]] = {}
        self.state: dict[str, dict[str, np.ndarray]] = {}
        self.draw = True
        self(torch.zeros(1, 3, 33, 33))
        self.draw = False

    def convolution(self, x: Tensor, path: str, num_out: int, size: int, stride: int = 1) -> Tensor:
        if self.draw:
            weight = self.generator.random((size, size, x.shape[1], num_out), np.float32) - 0.5
            self.parameters[path] = {"w": weight * np.float32((6 / (size * size * x.shape[1])) ** 0.5)}
        weight = torch.from_numpy(self.parameters[path]["w"]).permute(3, 2, 0, 1)
        return F.conv2d(same(x, size, stride), weight, stride=stride)

    def norm(self, x: Tensor, path: str) -> Tensor:
        if self.draw:
            scale, offset, mean, var = self.generator.random((4, 1, 1, 1, x.shape[1]), np.float32)
            self.parameters[path] = {"scale": scale + np.float32(0.5), "offset": offset - np.float32(0.5)}
            for name, average in (("mean_ema", mean - np.float32(0.5)), ("var_ema", var + np.float32(0.5))):
                count = np.array(1000, np.int32)
                self.state[f"{path}/~/{name}"] = {"average": average, "hidden": average, "counter": count}
        scale, offset = (torch.from_numpy(self.parameters[path][k][0, 0, 0]) for k in ("scale", "offset"))
        mean, var = (torch.from_numpy(self.state[f"{path}/~/{k}"]["average"][0, 0, 0]) for k in ("mean_ema", "var_ema"))
        return F.batch_norm(x, mean, var, scale, offset, eps=1e-5)

    def block(self, x: Tensor, path: str, num_out: int, stride: int, projection: bool) -> Tensor:
        shortcut = x
        if projection:
            shortcut = self.convolution(x, f"{path}/~/shortcut_conv", num_out, 1, stride)
            shortcut = self.norm(shortcut, f"{path}/~/shortcut_batchnorm")
        inner = num_out // 4
        plan = [(num_out, 3, stride), (num_out, 3, 1)]
        if self.bottleneck:
            plan = [(inner, 1, 1), (inner, 3, stride), (num_out, 1, 1)]
        for number, (channels, size, step) in enumerate(plan):
            x = self.convolution(x, f"{path}/~/conv_{number}", channels, size, step)
            x = self.norm(x, f"{path}/~/batchnorm_{number}")
            x = F.relu(x) if number < len(plan) - 1 else x
        return F.relu(x + shortcut)

    def __call__(self, images: Tensor) -> Tensor:
        x = self.convolution(images, f"{self.name}/~/initial_conv", 64, 7, 2)
        x = F.relu(self.norm(x, f"{self.name}/~/initial_batchnorm"))
        x = F.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
        for group, count in enumerate(self.blocks):
            channels = (256 if self.bottleneck else 64) * 2**group
            for number in range(count):
                path = f"{self.name}/~/block_group_{group}/~/block_{number}"
                stride = 2 if group > 0 and number == 0 else 1
                x = self.block(x, path, channels, stride, number == 0 and self.projections[group])
        return x.mean((2, 3))

    def heads(self, arch: str) -> None:
        """projector, predictor and classifier, as the experiment's _forward names them."""
        for head, num_in in (("projector", width(arch)), ("predictor", OUT)):
            self.parameters |= {
                f"{head}/linear": {"w": np.zeros((num_in, HIDDEN), np.float32), "b": np.zeros(HIDDEN, np.float32)},
                f"{head}/batch_norm": {k: np.ones((1, HIDDEN), np.float32) for k in ("scale", "offset")},
                f"{head}/linear_1": {"w": np.zeros((HIDDEN, OUT), np.float32)},
            }
            for name in ("mean_ema", "var_ema"):
                average = np.ones((1, HIDDEN), np.float32)
                held = {"average": average, "hidden": average, "counter": np.array(1000, np.int32)}
                self.state[f"{head}/batch_norm/~/{name}"] = held
        self.parameters["classifier"] = {"w": np.zeros((width(arch), 7), np.float32), "b": np.zeros(7, np.float32)}


def canonical_of_haiku(network: Haiku) -> State:
    """Truth layer by layer: each canonical module with the haiku path it is."""
    root, state = f"{network.name}/~", State()

    def take(conv: str, norm: str, names: tuple[str, str]) -> None:
        state[f"{names[0]}.weight"] = torch.from_numpy(np.transpose(network.parameters[conv]["w"], (3, 2, 0, 1)))
        for key, array in (
            ("weight", network.parameters[norm]["scale"]),
            ("bias", network.parameters[norm]["offset"]),
            ("running_mean", network.state[f"{norm}/~/mean_ema"]["average"]),
            ("running_var", network.state[f"{norm}/~/var_ema"]["average"]),
        ):
            state[f"{names[1]}.{key}"] = torch.from_numpy(array.ravel())

    take(f"{root}/initial_conv", f"{root}/initial_batchnorm", ("conv1", "bn1"))
    for group, count in enumerate(network.blocks):
        for number in range(count):
            path, at = f"{root}/block_group_{group}/~/block_{number}/~", f"layer{group + 1}.{number}"
            for conv in range(3 if network.bottleneck else 2):
                names = (f"{at}.conv{conv + 1}", f"{at}.bn{conv + 1}")
                take(f"{path}/conv_{conv}", f"{path}/batchnorm_{conv}", names)
            if number == 0 and network.projections[group]:
                names = (f"{at}.downsample.0", f"{at}.downsample.1")
                take(f"{path}/shortcut_conv", f"{path}/shortcut_batchnorm", names)
    return state


def byol_of(arch: str, projections: tuple[bool, ...]) -> Made:
    """The target network without its blocks, which are as large as the online one's and read by nobody."""
    online = Haiku(arch, 0, projections=projections)
    online.heads(arch)
    first = {path: arrays for path, arrays in online.parameters.items() if "block_group" not in path}
    experiment = {
        "online_params": online.parameters,
        "target_params": {p: {k: v + np.float32(1) for k, v in a.items()} for p, a in first.items()},
        "online_state": online.state,
        "target_state": {path: arrays for path, arrays in online.state.items() if "block_group" not in path},
        "opt_state": {"momentum": {f"{online.name}/~/initial_conv": {"w": np.zeros((7, 7, 3, 64), np.float32)}}},
    }
    content = {"experiment_state": experiment, "step": 1000, "rng": np.zeros(2, np.uint32)}
    groups = {"projector", "predictor", "classifier", "running sums", "momentum encoder"}
    source = "deepmind-research:byol/byol_experiment.py, utils/networks.py, utils/checkpointing.py"
    return made(
        "byol",
        content,
        nn.Identity(),
        arch,
        groups,
        source,
        save="pickle",
        backbone=canonical_of_haiku(online),
        forward=online,
    )


def byol(arch: str) -> Made:
    """ResNet-18 with use_projection=(False, …), as torchvision has it. Features are ours on odd sides: 65, 225."""
    return byol_of(arch, (depth(arch) >= 50, True, True, True))


MADE: Final[dict[str, Callable[[str], Made]]] = {
    "torchvision": torchvision_classifier,
    "timm_safetensors": timm_safetensors,
    "timm_training": timm_training,
    "backbone": bare_backbone,
    "mmselfsup_simsiam": mmselfsup_simsiam,
    "mmselfsup_moco": mmselfsup_moco,
    "openselfsup_moco": openselfsup_moco,
    "openselfsup_byol": openselfsup_byol,
    "densecl": densecl,
    "mm_extracted": mm_extracted,
    "mmpretrain_simsiam": mmpretrain_simsiam,
    "mmpretrain_byol": mmpretrain_byol,
    "mmpretrain_moco": mmpretrain_moco,
    "mmpretrain_barlow": mmpretrain_barlow,
    "mmpretrain_swav": mmpretrain_swav,
    "mmpretrain_classifier": mmpretrain_classifier,
    "vissl": vissl,
    "vissl_linear": vissl_linear,
    "vissl_trunk": vissl_trunk_alone,
    "lightly_simsiam": lightly_simsiam,
    "lightly_moco": lightly_moco,
    "lightly_byol": lightly_byol,
    "lightly_dino": lightly_dino,
    "solo_learn": solo_learn,
    "solo_learn_moco": solo_learn_moco,
    "solo_learn_old": solo_learn_old,
    "detectron2_pickle": detectron2_pickle,
    "detectron2_fpn": detectron2_fpn,
    "detectron2_c4": detectron2_c4,
    "byol": byol,
}
