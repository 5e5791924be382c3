"""A whole SimSiam from one library to another: every tensor arrives, and the heads compute what they computed.

The reference is built module by module as its source says (FB:simsiam/builder.py), mmpretrain's SimSiam by mmpretrain.
Of mmselfsup 0.x, which does not install here, the second names are known (MM0:mmselfsup/models/algorithms/simsiam.py).
"""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from converters.full_models import (
    HEADS,
    MMSELFSUP0_NAME,
    MMSELFSUP1_NAME,
    SIMSIAM_NAME,
    mmselfsup0_state,
    mmselfsup1_state,
    reference_state,
    simsiam,
    to_mmselfsup0,
    to_mmselfsup1,
    to_simsiam,
)
from converters.read import Checkpoint, read
from tests.converters.made import shaken
from zoo.backbone import COUNTER
from zoo.errors import CheckpointError
from zoo.files import sha256_file

State = dict[str, Tensor]
Writer = Callable[[Path, Checkpoint], Path]
MEAN, BIAS = "module.encoder.fc.7.running_mean", "module.encoder.fc.6.bias"
DIM, BOTTLENECK = 96, 24  # not the published 2048 and 512: the widths are free

BOUNDS = ((torch.float32, 1e-5), (torch.float64, 1e-10))


class Reference(nn.Module):
    """The reference's modules under its names (protocols §1.1)."""

    def __init__(self, arch: str, dim: int, bottleneck: int) -> None:
        import torchvision

        super().__init__()
        self.encoder: Any = torchvision.models.get_model(arch, num_classes=dim)
        last = self.encoder.fc
        features = last.in_features
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True)]
        last.bias.requires_grad = False
        self.encoder.fc = nn.Sequential(*layers, last, nn.BatchNorm1d(dim, affine=False))
        hidden = nn.Linear(dim, bottleneck, bias=False)
        self.predictor = nn.Sequential(
            hidden, nn.BatchNorm1d(bottleneck), nn.ReLU(inplace=True), nn.Linear(bottleneck, dim)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(features, z, p)."""
        outputs: list[Tensor] = []
        handle = self.encoder.avgpool.register_forward_hook(lambda _, __, out: outputs.append(out.flatten(1)))
        z = self.encoder(images)
        handle.remove()
        return outputs[0], z, self.predictor(z)


def mmpretrain_simsiam(depth: int, features: int, dim: int, bottleneck: int, hidden: int | None = None) -> Any:
    """mmpretrain's own, by configs/simsiam/simsiam_resnet50_8xb32-coslr-100e_in1k.py but for the widths."""
    import mmpretrain.models  # noqa: F401  registers the classes
    from mmpretrain.registry import MODELS

    neck = {"type": "NonLinearNeck", "in_channels": features, "hid_channels": hidden or features, "out_channels": dim}
    predictor = {"type": "NonLinearNeck", "in_channels": dim, "hid_channels": bottleneck, "out_channels": dim}
    predictor |= {"with_avg_pool": False, "with_last_bn": False, "with_last_bias": True}
    loss = {"type": "CosineSimilarityLoss"}
    return MODELS.build(
        {
            "type": "SimSiam",
            "backbone": {"type": "ResNet", "depth": depth, "zero_init_residual": True},
            "neck": {**neck, "num_layers": 3, "with_last_bn_affine": False},
            "head": {"type": "LatentPredictHead", "loss": loss, "predictor": predictor},
        }
    )


def mm_outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    maps = model.backbone(images)
    (z,) = model.neck(maps)
    return maps[-1].mean((2, 3)), z, model.head.predictor([z])[0]


def empty_reference() -> Reference:
    with torch.device("meta"):  # values are drawn or loaded
        return Reference("resnet18", DIM, BOTTLENECK)


@cache
def reference() -> Reference:
    return shaken(empty_reference().to_empty(device="cpu"))


@cache
def theirs() -> Any:
    return shaken(mmpretrain_simsiam(18, 512, DIM, BOTTLENECK), seed=5)


def reference_file(folder: Path, state: State | None = None, **more: Any) -> Checkpoint:
    """Written as FB:main_simsiam.py does."""
    state = reference().state_dict() if state is None else state
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    return saved(folder / "in.pth.tar", {"epoch": 100, "arch": "resnet18", "state_dict": named, **more})


def mm_file(folder: Path, state: State | None = None, **more: Any) -> Checkpoint:
    state = theirs().state_dict() if state is None else state
    return saved(folder / "in.pth", {"meta": {"epoch": 200, "iter": 9}, "state_dict": state, **more})


def mm0_content(state: State) -> dict[str, Any]:
    """mmselfsup 0.x registers `encoder` first, then backbone and neck as its parts."""
    parts = {"backbone.": "encoder.0.", "neck.": "encoder.1."}
    twice = {second + n.removeprefix(p): t for p, second in parts.items() for n, t in state.items() if n.startswith(p)}
    return {"meta": {"epoch": 200}, "state_dict": {**twice, **state}}


def saved(path: Path, content: Any) -> Checkpoint:
    torch.save(content, path)
    return read(path)


def light(state: State) -> State:
    """The same heads on a backbone of zeros that take no room: where its values do not matter."""
    return {
        name: tensor
        if name.startswith(("encoder.fc.", "predictor.", "neck.", "head."))
        else torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The reference's file."""
    more = {"optimizer": {"state": {}, "param_groups": []}}
    return reference_file(tmp_path_factory.mktemp("reference"), **more)


@pytest.fixture(scope="module")
def mm_source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """mmpretrain's file."""
    return mm_file(tmp_path_factory.mktemp("mm"))


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    assert [
        name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])
    ] == []


def images(dtype: torch.dtype) -> Tensor:
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def differences(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> float:
    """The largest difference in features, z or p, which are of the order of 1 and not the same for every image."""
    assert all(tensor.abs().max() > 0.1 and tensor.std(0).max() > 1e-3 for tensor in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def test_the_references_model_computes_the_same_in_mmpretrain(source: Checkpoint) -> None:
    """The bias, which mmpretrain has not, is in the running mean."""
    assert reference().encoder.fc[6].bias.abs().max() > 0.1  # so that its loss would be seen
    other = deepcopy(theirs())
    other.load_state_dict(mmselfsup1_state(simsiam(source)), strict=True)
    for dtype, bound in BOUNDS:  # shaken's values are multiples of 2**-25: the bias is taken off without rounding
        with torch.no_grad():
            ours = deepcopy(reference()).to(dtype)(images(dtype))
            assert differences(ours, mm_outputs(other.to(dtype), images(dtype))) < bound


def test_mmpretrains_model_computes_the_same_in_the_reference(mm_source: Checkpoint) -> None:
    other: Any = nn.ModuleDict({"module": empty_reference()}).eval()
    other.load_state_dict(reference_state(simsiam(mm_source)), strict=True, assign=True)
    for dtype, bound in BOUNDS:
        with torch.no_grad():
            ours = mm_outputs(deepcopy(theirs()).to(dtype), images(dtype))
            assert differences(ours, other.to(dtype)["module"](images(dtype))) < bound


def test_in_training_the_bias_cancels(source: Checkpoint) -> None:
    """Batch statistics in place of the running ones: without the bias nothing changes there either."""
    other = deepcopy(theirs())
    for module in other.modules():  # SyncBN does not train on the CPU
        module.__class__ = {nn.SyncBatchNorm: nn.BatchNorm1d}.get(type(module), type(module))
    other.load_state_dict(mmselfsup1_state(simsiam(source)), strict=True)
    ours, pictures = deepcopy(reference()).double().train(), images(torch.float64)
    with torch.no_grad():
        assert differences(ours(pictures), mm_outputs(other.double().train(), pictures)) < 1e-10


def test_types_stay_as_they_are(tmp_path: Path) -> None:
    wide = {n: t.double() if t.is_floating_point() else t for n, t in light(reference().state_dict()).items()}
    model = simsiam(reference_file(tmp_path, wide))
    same(reference_state(model), {f"module.{name}": tensor for name, tensor in wide.items()})
    assert mmselfsup1_state(model)["neck.bn2.running_mean"].dtype == torch.float64


@pytest.mark.parametrize("to", [to_mmselfsup0, to_mmselfsup1])
def test_from_the_reference_and_back(tmp_path: Path, source: Checkpoint, to: Writer) -> None:
    back = stored(to_simsiam(tmp_path / "back", read(to(tmp_path / "there", source))))
    expected = {f"module.{name}": tensor for name, tensor in reference().state_dict().items()}
    expected[MEAN] = expected[MEAN] - expected[BIAS]
    expected[BIAS] = torch.zeros(DIM)
    same(back["state_dict"], expected)
    assert (back["epoch"], back["arch"]) == (100, "resnet18")


@pytest.mark.parametrize("to", [to_mmselfsup0, to_mmselfsup1, to_simsiam])
def test_from_mmpretrain_and_back(tmp_path: Path, mm_source: Checkpoint, to: Writer) -> None:
    back = stored(to_mmselfsup1(tmp_path / "back", read(to(tmp_path / "there", mm_source))))
    same(back["state_dict"], theirs().state_dict())
    assert back["meta"] == {"epoch": 200}


def test_from_mmselfsup0_and_back(tmp_path: Path) -> None:
    content = mm0_content(theirs().state_dict())
    source = saved(tmp_path / "in.pth", content)
    assert source.reading.layout == "mmselfsup0"
    back = stored(to_mmselfsup0(tmp_path / "back", read(to_simsiam(tmp_path / "there", source))))
    same(back["state_dict"], content["state_dict"])
    assert list(back["state_dict"]) == list(content["state_dict"]) and back["meta"] == content["meta"]


def test_the_references_own_layout_keeps_its_bias(tmp_path: Path, source: Checkpoint) -> None:
    back = stored(to_simsiam(tmp_path / "out", source))
    same(back["state_dict"], {f"module.{name}": tensor for name, tensor in reference().state_dict().items()})
    assert set(back) == {"epoch", "arch", "state_dict"}  # the optimiser's state stays behind
    assert [path.name for path in (tmp_path / "out").iterdir()] == [SIMSIAM_NAME]


def test_second_names_take_no_room(tmp_path: Path, source: Checkpoint) -> None:
    once, twice = to_mmselfsup1(tmp_path, source), to_mmselfsup0(tmp_path, source)
    assert (once.name, twice.name) == (MMSELFSUP1_NAME, MMSELFSUP0_NAME)
    assert {path.name for path in tmp_path.iterdir()} == {once.name, twice.name}  # nothing temporary is left
    assert twice.stat().st_size < 1.01 * once.stat().st_size
    state = stored(twice)["state_dict"]
    for first, second in (("backbone.", "encoder.0."), ("neck.", "encoder.1.")):
        for name in (name for name in state if name.startswith(first)):
            assert state[name].data_ptr() == state[second + name.removeprefix(first)].data_ptr()


def test_views_of_one_storage_are_written_at_their_own_size(tmp_path: Path, source: Checkpoint) -> None:
    """A state whose tensors are parts of one flat vector, as some trainers keep it."""
    state = reference().state_dict()
    flat = torch.cat([tensor.flatten() for tensor in state.values() if tensor.is_floating_point()])
    views, start = dict(state), 0
    for name, tensor in state.items():
        if tensor.is_floating_point():
            views[name] = flat[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
    plain = to_mmselfsup1(tmp_path / "plain", source)
    viewed = to_mmselfsup1(tmp_path / "viewed", reference_file(tmp_path, views))
    assert sha256_file(plain) == sha256_file(viewed)


def test_an_epoch_that_is_not_known_is_not_invented(tmp_path: Path) -> None:
    source = saved(tmp_path / "in.pth", {"state_dict": light(theirs().state_dict()), "meta": {}})
    assert simsiam(source).epoch is None
    assert set(stored(to_simsiam(tmp_path, source))) == {"arch", "state_dict"}


def test_counters_that_the_source_lacks_are_zeros(tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in reference().state_dict().items() if not name.endswith(COUNTER)}
    state = reference_state(simsiam(reference_file(tmp_path, light(bare))))
    assert state.keys() == {f"module.{name}" for name in reference().state_dict()}
    zero = torch.zeros((), dtype=torch.int64)
    assert all(t.dtype == zero.dtype and torch.equal(t, zero) for name, t in state.items() if name.endswith(COUNTER))


def test_the_published_sizes_of_a_resnet50(tmp_path: Path) -> None:
    """343, 676 and 342 tensors; 38,199,360 trained values, 2,048 more that are frozen (protocols §1.1, §1.5)."""
    with torch.device("meta"):
        modules = Reference("resnet50", 2048, 512)
    zeros = {
        name: torch.zeros(
            tensor.shape if name.startswith(("encoder.fc", "predictor")) else (), dtype=tensor.dtype
        ).expand(tensor.shape)
        for name, tensor in modules.state_dict().items()
    }  # the backbone's take no memory
    path = tmp_path / "in.pth.tar"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in zeros.items()}}, path)
    model = simsiam(read(path))
    ours, mm0, mm1 = reference_state(model), mmselfsup0_state(model), mmselfsup1_state(model)
    assert (len(ours), len(mm0), len(mm1)) == (343, 676, 342)
    trained = {name for name, parameter in modules.named_parameters() if parameter.requires_grad}
    assert sum(ours[f"module.{name}"].numel() for name in trained) == 38_199_360
    assert ours[BIAS].numel() == 2048 and "encoder.fc.6.bias" not in trained
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(tensor.numel() for name, tensor in mm1.items() if not name.endswith(buffers)) == 38_199_360
    assert {name: tuple(t.shape) for name, t in ours.items()} == {
        f"module.{name}": tuple(t.shape) for name, t in zeros.items()
    }


def test_the_table_is_the_names_of_both_libraries() -> None:
    heads = {name for name in reference().state_dict() if name.startswith(("encoder.fc.", "predictor."))}
    assert [ours for ours, _, _ in HEADS] == [name for name in reference().state_dict() if name in heads]
    mm = [name for name in theirs().state_dict() if not name.startswith("backbone.")]
    assert [name for _, name, _ in HEADS if name is not None] == mm


def refused(to: Writer, checkpoint: Checkpoint, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        to(folder / "out", checkpoint)
    assert not (folder / "out").exists()
    return str(caught.value)


def test_a_backbone_alone_is_refused(tmp_path: Path) -> None:
    state = {n.removeprefix("backbone."): t for n, t in theirs().state_dict().items() if n.startswith("backbone.")}
    message = refused(to_mmselfsup1, saved(tmp_path / "in.pth", state), tmp_path)
    assert message.startswith(str(tmp_path / "in.pth"))
    assert (
        "expected a SimSiam with its heads (layout simsiam, mmselfsup0, mmselfsup1), found layout torchvision"
        in message
    )
    assert "write its backbone alone (canonical, torchvision, timm, mmpretrain)" in message


def test_another_methods_heads_are_refused_with_all_that_differs(tmp_path: Path) -> None:
    """BYOL's neck has two layers with biases, and its target network stands beside it."""
    state = {n: t for n, t in theirs().state_dict().items() if not n.startswith(("neck.fc2", "neck.bn2", "neck.bn1"))}
    state |= {"neck.fc0.bias": torch.zeros(512), "target_net.steps": torch.tensor(3)}
    message = refused(to_simsiam, mm_file(tmp_path, light(state)), tmp_path)
    assert "(mmselfsup1): not a whole SimSiam: 15 of its heads' 24 tensors found. Write its backbone alone" in message
    lines = [line.removeprefix("  - ") for line in message.splitlines()[1:]]
    assert lines[0] == "missing: neck.bn1.weight" and "missing: neck.fc2.weight" in lines
    assert lines[-2:] == ["unexpected: neck.fc0.bias", "unexpected: target_net.steps"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("encoder.fc.7.running_var", torch.ones(7), "expected shape (96,), found (7,)"),
        ("encoder.fc.0.weight", torch.ones(512, 256), "expected shape (512, 512), found (512, 256)"),
        ("predictor.3.bias", torch.ones(24), "expected shape (96,), found (24,)"),
        ("predictor.0.weight", torch.ones(24), "expected 2 dimensions, found shape (24,)"),
        ("encoder.fc.6.bias", torch.full((96,), float("nan")), "holds NaN or infinite values"),
        (
            "encoder.fc.3.weight",
            torch.ones(512, 512, dtype=torch.int32),
            "expected floating-point values, found torch.i",
        ),
        ("encoder.fc.6.weight", torch.ones(()).expand(10**9, 512), "claims more values than the file holds"),
    ],
)
def test_heads_that_do_not_fit_are_named(tmp_path: Path, name: str, value: Tensor, problem: str) -> None:
    source = reference_file(tmp_path, {**light(reference().state_dict()), name: value})
    message = refused(to_mmselfsup1, source, tmp_path)
    assert "(simsiam): not a whole SimSiam: 25 of its heads' 25 tensors found" in message
    assert f"  - {name}: " in message and problem in message


def test_counters_of_the_heads_are_there_or_not(tmp_path: Path) -> None:
    state = {n: t for n, t in reference().state_dict().items() if n != "encoder.fc.4.num_batches_tracked"}
    message = refused(to_simsiam, reference_file(tmp_path, light(state)), tmp_path)
    assert message.splitlines()[1:] == ["  - missing: encoder.fc.4.num_batches_tracked"]


def test_a_projector_that_the_reference_cannot_build_is_refused(tmp_path: Path) -> None:
    state = light(mmpretrain_simsiam(18, 512, 64, 16, hidden=128).state_dict())
    source = mm_file(tmp_path, state)
    message = refused(to_simsiam, source, tmp_path)
    assert "encoder.fc.0: expected 512 outputs, as many as the resnet18 has features, found 128" in message
    same(mmselfsup1_state(simsiam(source)), state)


def test_pixel_statistics_beside_the_network_are_passed_over(tmp_path: Path) -> None:
    """They are settings of mmpretrain's preprocessor, and no head."""
    state = light(theirs().state_dict())
    source = mm_file(tmp_path, {"data_preprocessor.mean": torch.zeros(3, 1, 1), **state})
    same(mmselfsup1_state(simsiam(source)), state)
