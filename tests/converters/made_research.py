"""Checkpoint files as methods' own code would write them: SimSiam, MoCo, DINO, SwAV, Barlow Twins, VICReg and others.

Module trees under the names that the sources give them, in own words; heads are narrow, for widths are arguments there.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Final

import torch
import torchvision
from torch import Tensor, nn

from tests.converters.made import Made, State, shaken

HIDDEN: Final = 96
OUT: Final = 32
KEYS: Final = 64
HEADS: Final = ("fc.", "projection_head.", "prototypes.")  # within the encoder, in some sources


@cache
def drawn(arch: str, seed: int) -> State:
    """torchvision's network without its classifier; drawn once, for that takes longer than all else here."""
    with torch.device("meta"):
        network = torchvision.models.get_model(arch)
    network.fc = nn.Identity()
    return shaken(network.to_empty(device="cpu"), seed).state_dict()


def encoder(arch: str, fc: nn.Module | None = None, *, seed: int = 0) -> Any:
    """torchvision's network with another head, in eval mode."""
    with torch.device("meta"):
        network: Any = torchvision.models.get_model(arch)
    network.fc = nn.Identity()
    network.load_state_dict(drawn(arch, seed), assign=True)
    if fc is not None:
        network.fc = shaken(fc, seed)
    return network.eval()


def width(arch: str) -> int:
    return 512 if arch in ("resnet18", "resnet34") else 2048


def pooled(network: Any, images: Tensor) -> Tensor:
    """(N, 3, H, W) → (N, D): all but the head."""
    x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        x = stage(x)
    return x.mean((2, 3))


def mlp(widths: Sequence[int], *, bias: bool, last_bias: bool, last_norm: bool | None = None) -> nn.Sequential:
    """Linear, BN, ReLU, …, Linear. last_norm: a BN at the end, affine or not."""
    layers: list[nn.Module] = []
    for num_in, num_out in zip(widths[:-2], widths[1:-1], strict=True):
        layers += [nn.Linear(num_in, num_out, bias=bias), nn.BatchNorm1d(num_out), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm is not None:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm))
    return shaken(nn.Sequential(*layers))


def ddp(model: nn.Module) -> State:
    """The state dict of a wrapped model: `module.` before every name."""
    return nn.DataParallel(model).state_dict()


def stepped(parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """SGD's state after a step in which only vectors had gradients, so that the file stays small."""
    held = list(parameters)
    for parameter in held:
        if parameter.dim() == 1 and parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(held, lr=0.0, momentum=0.9, weight_decay=1e-4)
    optimizer.step()
    return optimizer.state_dict()


def made(
    layout: str,
    content: Any,
    network: Any,
    arch: str,
    groups: set[str],
    source: str,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Made:
    """`network`: the encoder whose features count."""
    return Made(
        layout=layout,
        content=content,
        save="torch",
        arch=arch,
        backbone={name: tensor for name, tensor in network.state_dict().items() if not name.startswith(HEADS)},
        forward=forward or partial(pooled, network),
        groups=frozenset(groups),
        source=source,
    )


def simsiam(arch: str, *, wrapped: bool = True) -> Made:
    model: Any = nn.Module()
    dim = width(arch)
    model.encoder = encoder(arch, mlp([dim, dim, dim, OUT], bias=False, last_bias=True, last_norm=False))
    model.encoder.fc[6].bias.requires_grad = False
    model.predictor = mlp([OUT, HIDDEN, OUT], bias=False, last_bias=True)
    content = {
        "epoch": 100,
        "arch": arch,
        "state_dict": ddp(model) if wrapped else model.state_dict(),
        "optimizer": stepped(model.parameters()),
    }
    source = "facebookresearch/simsiam:simsiam/builder.py, main_simsiam.py"
    return made("simsiam", content, model.encoder, arch, {"projector", "predictor"}, source)


class MoCo(nn.Module):
    def __init__(self, arch: str, *, deep: bool, keys: int) -> None:
        super().__init__()
        dim = width(arch)
        for seed, name in enumerate(("encoder_q", "encoder_k")):
            head: nn.Module = nn.Linear(dim, OUT)
            if deep:
                head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), head)
            setattr(self, name, encoder(arch, head, seed=seed))
        self.register_buffer("queue", torch.ones(OUT, keys))
        self.register_buffer("queue_ptr", torch.tensor([keys // 2]))


def moco(arch: str, *, deep: bool, keys: int = KEYS, form: str = "raw") -> Made:
    """form: "raw" as trained; "cleaned" as published, of all but the query encoder; "bare", that without wrappings."""
    model: Any = MoCo(arch, deep=deep, keys=keys)
    source = "facebookresearch/moco:moco/builder.py, main_moco.py; salesforce/PCL:pcl/builder.py, main_pcl.py"
    groups = {"projector", "momentum encoder", "queue"}
    content: Any = {"epoch": 200, "arch": arch, "state_dict": ddp(model)}
    if form == "raw":
        content["optimizer"] = stepped(model.encoder_q.parameters())
    else:
        kept = {name: t for name, t in content["state_dict"].items() if name.startswith("module.encoder_q.")}
        content["state_dict"], groups = kept, {"projector"}
        source += "; moco#27"
    if form == "bare":
        content = {name.removeprefix("module."): tensor for name, tensor in content["state_dict"].items()}
    return made("moco", content, model.encoder_q, arch, groups, source)


def moco_v3(arch: str) -> Made:
    model: Any = nn.Module()
    for seed, name in enumerate(("base_encoder", "momentum_encoder")):
        head = mlp([width(arch), HIDDEN, OUT], bias=False, last_bias=False, last_norm=False)
        setattr(model, name, encoder(arch, head, seed=seed))
    model.predictor = mlp([OUT, HIDDEN, OUT], bias=False, last_bias=False, last_norm=False)
    content = {
        "epoch": 300,
        "arch": arch,
        "state_dict": ddp(model),
        "optimizer": stepped(model.base_encoder.parameters()),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 7},
    }
    groups = {"projector", "predictor", "momentum encoder"}
    source = "facebookresearch/moco-v3:moco/builder.py, main_moco.py"
    return made("moco_v3", content, model.base_encoder, arch, groups, source)


class DinoHead(nn.Module):
    def __init__(self, dim: int, *, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for num_in in (dim, HIDDEN):
            layers += [nn.Linear(num_in, HIDDEN), *([nn.BatchNorm1d(HIDDEN)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN, OUT))
        self.last_layer = nn.Module()  # what weight_norm leaves of a Linear without bias
        self.last_layer.weight_g = nn.Parameter(torch.ones(KEYS, 1), requires_grad=False)
        self.last_layer.weight_v = nn.Parameter(torch.ones(KEYS, OUT))


def dino(arch: str, *, norm: bool = False) -> Made:
    student: Any = nn.Module()
    teacher: Any = nn.Module()
    for seed, model in enumerate((student, teacher)):
        model.backbone, model.head = encoder(arch, seed=seed), shaken(DinoHead(width(arch), norm=norm), seed)
        model.backbone.head = nn.Identity()
    content = {
        "student": ddp(student),
        "teacher": ddp(teacher),
        "optimizer": stepped(student.parameters()),
        "epoch": 800,
        "args": Namespace(arch=arch, out_dim=KEYS, lr=0.3, use_bn_in_head=norm, global_crops_scale=(0.14, 1.0)),
        "dino_loss": {"center": torch.zeros(1, KEYS)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    }
    source = "facebookresearch/dino:main_dino.py, utils.py, vision_transformer.py"
    return made("dino", content, teacher.backbone, arch, {"projector", "prototypes"}, source)


def padded(network: Any, images: Tensor) -> Tensor:
    """SwAV's and VICReg's way into conv1, whose own padding is one less."""
    return pooled(network, nn.functional.pad(images, (1, 1, 1, 1)))


def unpadded(network: Any) -> Any:
    network.conv1.padding = (2, 2)
    return network


def swav(arch: str, *, sets: int = 1, training: bool = False) -> Made:
    model = unpadded(encoder(arch))
    dim = width(arch)
    model.projection_head = mlp([dim, HIDDEN, OUT], bias=True, last_bias=True)
    if sets == 1:
        model.prototypes = shaken(nn.Linear(OUT, KEYS, bias=False))
    else:
        model.prototypes = nn.Module()
        for number in range(sets):
            model.prototypes.add_module(f"prototypes{number}", shaken(nn.Linear(OUT, KEYS, bias=False), number))
    content: Any = ddp(model)
    if training:
        content = {
            "epoch": 400,
            "state_dict": content,
            "optimizer": stepped(model.parameters()),
            "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 7}},
        }
    source = "facebookresearch/swav:src/resnet50.py, main_swav.py, main_deepclusterv2.py; swav#6"
    return made("swav", content, model, arch, {"projector", "prototypes"}, source, partial(padded, model))


def barlow_twins(arch: str) -> Made:
    model: Any = nn.Module()
    model.backbone = encoder(arch)
    model.projector = mlp([width(arch), HIDDEN, HIDDEN, OUT], bias=False, last_bias=False)
    model.bn = shaken(nn.BatchNorm1d(OUT, affine=False))
    content = {"epoch": 1000, "model": ddp(model), "optimizer": stepped(model.parameters())}
    groups = {"projector", "output norm"}
    return made("barlow_twins", content, model.backbone, arch, groups, "facebookresearch/barlowtwins:main.py")


def vicreg(arch: str) -> Made:
    model: Any = nn.Module()
    model.backbone = unpadded(encoder(arch))
    model.projector = mlp([width(arch), HIDDEN, HIDDEN, OUT], bias=True, last_bias=False)
    content = {"epoch": 1000, "model": ddp(model), "optimizer": stepped(model.parameters())}
    source = "facebookresearch/vicreg:main_vicreg.py, resnet.py"
    return made("vicreg", content, model.backbone, arch, {"projector"}, source, partial(padded, model.backbone))


def pycontrast(arch: str, *, deep: bool, jigsaw: bool, momentum: bool) -> Made:
    dim = width(arch)

    def head() -> nn.Sequential:
        layers = [nn.Linear(dim, dim), nn.ReLU()] if deep else []
        return nn.Sequential(*layers, nn.Linear(dim, OUT))

    def network(seed: int) -> Any:
        model: Any = nn.Module()
        model.encoder, model.head = encoder(arch, seed=seed), shaken(head(), seed)
        if jigsaw:
            model.head_jig = nn.Module()
            model.head_jig.fc1 = head() if deep else nn.Linear(dim, OUT)
            model.head_jig.fc2 = nn.Linear(9 * OUT, OUT)
            shaken(model.head_jig, seed)
        return model

    model = network(0)
    content = {
        "model": ddp(model),
        "contrast": {"memory": torch.zeros(KEYS, OUT)},
        "optimizer": stepped(model.parameters()),
        "epoch": 200,
    }
    if momentum:
        content["model_ema"] = network(1).state_dict()
    groups = {"projector"} | ({"jigsaw projector"} if jigsaw else set())
    source = (
        "HobbitLong/PyContrast:pycontrast/networks/build_backbone.py, networks/util.py, memory/mem_bank.py, "
        "learning/contrast_trainer.py, options/base_options.py"
    )
    return made("pycontrast", content, model.encoder, arch, groups, source)


class PixProHead(nn.Module):
    def __init__(self, num_in: int, inner: int) -> None:
        super().__init__()
        self.linear1, self.bn1 = nn.Conv2d(num_in, inner, 1), nn.BatchNorm2d(inner)
        self.linear2 = nn.Conv2d(inner, OUT, 1)


def pixpro(arch: str, *, depth: int = 1, instance: bool = False, training: bool = False) -> Made:
    """depth: layers of the value transform (pixpro_transform_layer); instance: with pixpro_ins_loss_weight."""
    model: Any = nn.Module()
    dim = width(arch)
    for seed, suffix in enumerate(("", "_k")):
        setattr(model, f"encoder{suffix}", encoder(arch, seed=seed))
        setattr(model, f"projector{suffix}", shaken(PixProHead(dim, HIDDEN), seed))
        if instance:
            setattr(model, f"projector_instance{suffix}", shaken(PixProHead(dim, HIDDEN), seed + 2))
    model.value_transform = shaken([nn.Identity(), nn.Conv2d(OUT, OUT, 1), PixProHead(OUT, OUT)][depth])
    if instance:
        model.predictor = shaken(PixProHead(OUT, HIDDEN))
    content: Any = {"model": ddp(model)}  # what publish_model.py leaves
    if training:
        content |= {
            "opt": Namespace(arch=arch, model="PixPro", pixpro_p=2.0, crop=0.08, amp_opt_level="O1"),
            "optimizer": stepped(model.encoder.parameters()),
            "scheduler": {"multiplier": 100.0, "last_epoch": 7, "_last_lr": [0.1]},
            "epoch": 100,
            "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 7}},
        }
    groups = {"projector", "momentum encoder"} | ({"predictor"} if depth or instance else set())
    source = "zdaxie/PixPro:contrast/models/PixPro.py, contrast/resnet.py, main_pretrain.py, publish_model.py"
    return made("pixpro", content, model.encoder, arch, groups, source)


MADE: Final[dict[str, Callable[[str], Made]]] = {
    "simsiam": simsiam,
    "simsiam_unwrapped": partial(simsiam, wrapped=False),
    "moco_v1_raw": partial(moco, deep=False),
    "moco_v1_cleaned": partial(moco, deep=False, form="cleaned"),
    "moco_v2_raw": partial(moco, deep=True),
    "moco_v2_cleaned": partial(moco, deep=True, form="cleaned"),
    "moco_v3": moco_v3,
    "dino": dino,
    "swav_published": swav,
    "swav_training": partial(swav, training=True),
    "deepcluster_v2": partial(swav, sets=3),
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "insdis": partial(pycontrast, deep=False, jigsaw=False, momentum=False),
    "pirl": partial(pycontrast, deep=False, jigsaw=True, momentum=False),
    "pycontrast_moco": partial(pycontrast, deep=False, jigsaw=False, momentum=True),
    "pycontrast_moco_v2": partial(pycontrast, deep=True, jigsaw=False, momentum=True),
    "infomin": partial(pycontrast, deep=True, jigsaw=True, momentum=True),
    "pixpro_published": pixpro,
    "pixpro_training": partial(pixpro, depth=2, instance=True, training=True),
}
