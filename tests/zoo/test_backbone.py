"""The canonical backbone is torchvision's ResNet; a state that is not wholly one is refused with what is wrong."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn
from torchvision.transforms import Normalize, ToTensor

from converters.canonical import write_checkpoint
from zoo.backbone import (
    COUNTER,
    LAYERS,
    Backbone,
    RawPixels,
    build,
    canonical_shapes,
    check_state,
    fingerprint,
    load,
    normalise,
    read_weights,
)
from zoo.checkpoint import WEIGHTS_NAME, CheckpointCard
from zoo.errors import CheckpointError
from zoo.transforms import IMAGENET_PIXELS

CPU = torch.device("cpu")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def random_state() -> State:
    """A ResNet-18's state with batch-norm statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build("resnet18").train()
        with torch.no_grad():
            model(torch.randn(4, 3, 32, 32))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def state(random_state: State) -> State:
    return {name: tensor.clone() for name, tensor in random_state.items()}


def refused(state: State, arch: str = "resnet18") -> str:
    with pytest.raises(CheckpointError) as caught:
        check_state(state, arch, source="file.pth")
    return str(caught.value)


def written(folder: Path, state: State, arch: str = "resnet18") -> CheckpointCard:
    return write_checkpoint(
        folder,
        state,
        name="a",
        family="a",
        arch=arch,
        pixels=IMAGENET_PIXELS,
        source_format="canonical",
        lineage=(),
    )


def test_resnet50_has_318_tensors_and_265_without_counters() -> None:
    names = list(canonical_shapes("resnet50"))
    assert len(names) == 318 and sum(not name.endswith(COUNTER) for name in names) == 265


@pytest.mark.parametrize(
    ("arch", "convolutions"), [("resnet18", 20), ("resnet34", 36), ("resnet50", 53), ("resnet101", 104)]
)
def test_every_convolution_brings_six_tensors_and_five_without_counters(arch: str, convolutions: int) -> None:
    with torch.device("meta"):
        model = build(arch)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    names = list(canonical_shapes(arch))
    assert len(names) == 6 * convolutions
    assert sum(not name.endswith(COUNTER) for name in names) == 5 * convolutions


@pytest.mark.parametrize("arch", list(LAYERS))
def test_names_and_shapes_are_torchvisions_without_the_classifier(arch: str) -> None:
    with torch.device("meta"):
        theirs = torchvision.models.get_model(arch).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert canonical_shapes(arch) == expected


@pytest.mark.parametrize("zero_init", [False, True])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_same_seed_gives_torchvisions_weights(arch: str, zero_init: bool) -> None:
    states: list[dict[str, Tensor]] = []
    for make in (torchvision.models.get_model_builder(arch), lambda **options: Backbone(arch, **options)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            states.append(make(zero_init_residual=zero_init).state_dict())
    theirs, ours = states
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_every_stage_is_torchvisions(arch: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchvision.models.get_model(arch).eval()
    ours = Backbone(arch).eval()
    ours.load_state_dict({name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("fc.")})
    modules = {
        "feature1": "relu",
        "feature2": "layer1",
        "feature3": "layer2",
        "feature4": "layer3",
        "feature5": "layer4",
    }
    outputs: dict[str, Tensor] = {}
    for stage, module in {**modules, "avgpool": "avgpool"}.items():
        hook = lambda _module, _inputs, output, stage=stage: outputs.__setitem__(stage, output)  # noqa: E731
        theirs.get_submodule(module).register_forward_hook(hook)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs(images)
        found = ours.stages(images)
        assert torch.equal(ours(images), found["avgpool"])
    assert found.keys() == outputs.keys()
    for stage, output in outputs.items():
        assert torch.equal(found[stage], output.flatten(1) if stage == "avgpool" else output), stage
    assert found["avgpool"].shape == (2, ours.num_features)
    assert [found[f"feature{stage}"].shape[-1] for stage in range(1, 6)] == [32, 16, 8, 4, 2]


def test_raw_pixels_are_the_pixels() -> None:
    images = torch.randn(2, 3, 4, 5)
    network = build("raw_pixels")
    assert isinstance(network, RawPixels) and canonical_shapes("raw_pixels") == {}
    assert torch.equal(network(images), images.reshape(2, 60))
    assert torch.equal(network.stages(images)["avgpool"], network(images))


@pytest.mark.parametrize("counters", [True, False])
def test_a_whole_state_passes_with_and_without_counters(state: State, counters: bool) -> None:
    check_state({n: t for n, t in state.items() if counters or not n.endswith(COUNTER)}, "resnet18", source="x")


def test_all_that_is_wrong_with_a_state_is_listed(state: State) -> None:
    del state["layer1.0.conv1.weight"], state["bn1.num_batches_tracked"]
    state["fc.weight"] = torch.zeros(2, 512)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    state["bn1.weight"][3] = float("nan")
    state["bn1.running_var"][0] = float("inf")
    assert refused(state).splitlines() == [
        "file.pth is not a whole resnet18: 118 of 120 expected tensors found.",
        "  - missing: 2 tensors (bn1.num_batches_tracked, layer1.0.conv1.weight)",
        "  - unexpected: 1 tensors (fc.weight)",
        "  - bn1.running_var: holds NaN or infinite values",
        "  - bn1.weight: holds NaN or infinite values",
        "  - conv1.weight: expected shape (64, 3, 7, 7), found (64, 3, 3, 3)",
    ]


def test_a_state_of_other_names_matches_nothing(state: State) -> None:
    lines = refused({f"module.{name}": tensor for name, tensor in state.items()}).splitlines()
    assert lines[0] == "file.pth is not a whole resnet18: 0 of 100 expected tensors found."
    assert lines[1].startswith("  - missing: 100 tensors (bn1.bias, bn1.running_mean, ")
    assert lines[2].startswith("  - unexpected: 120 tensors (module.bn1.bias, ")
    assert all(line.endswith(", …)") for line in lines[1:])


def test_an_empty_state_is_refused() -> None:
    assert "0 of 265 expected tensors found" in refused({}, "resnet50")


def test_a_wider_network_is_refused_by_shape() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.wide_resnet50_2().state_dict()
    wide = {name: torch.zeros(()).expand(t.shape) for name, t in theirs.items() if not name.startswith("fc.")}
    message = refused(wide, "resnet50")
    assert "318 of 318 expected tensors found" in message
    assert "layer1.0.bn1.bias: expected shape (64,), found (128,)" in message


def test_a_fingerprint_is_the_documented_hash() -> None:
    state = {"b": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3.0), "c.num_batches_tracked": torch.tensor(7)}
    expected = hashlib.sha256()
    expected.update(b"a|()|" + torch.tensor(3.0).numpy().tobytes())
    expected.update(b"b|(1, 2)|" + torch.tensor([1.0, 2.0]).numpy().tobytes())
    assert fingerprint(state) == expected.hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        lambda state: dict(reversed(state.items())),
        lambda state: {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)},
        lambda state: {name: tensor + 5 if name.endswith(COUNTER) else tensor for name, tensor in state.items()},
        lambda state: {
            name: tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
            for name, tensor in state.items()
        },
        lambda state: {name: tensor.double() for name, tensor in state.items()},
        lambda state: {
            name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        },
    ],
    ids=["order", "no counters", "other counters", "memory format", "double", "parameters"],
)
def test_a_fingerprint_stays_the_same_for_the_same_values(state: State, same: Callable[[State], State]) -> None:
    assert fingerprint(same(state)) == fingerprint(state)


def test_a_fingerprint_survives_a_file_under_any_name(state: State, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        safetensors.torch.save_file(state, tmp_path / name)
        assert fingerprint(read_weights(tmp_path / name)) == fingerprint(state)


@pytest.mark.parametrize("change", ["bit", "sign of zero", "name", "shape"])
def test_a_fingerprint_changes_with_one_bit_name_or_shape(state: State, change: str) -> None:
    before = fingerprint(state)
    if change == "bit":
        state["layer4.1.conv2.weight"].view(torch.int32).view(-1)[77] ^= 1
    elif change == "sign of zero":
        state["layer1.0.bn1.bias"][0] *= -1.0
        assert state["layer1.0.bn1.bias"][0] == 0
    elif change == "name":
        state["bn1.weigth"] = state.pop("bn1.weight")
    else:
        state["bn1.weight"] = state["bn1.weight"][None]
    assert fingerprint(state) != before


def test_loading_gives_the_written_network_frozen_in_eval_mode(state: State, tmp_path: Path) -> None:
    network = load(written(tmp_path, state), tmp_path / WEIGHTS_NAME, CPU)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    found = network.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_loading_needs_no_counters(state: State, tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}
    network = load(written(tmp_path, bare), tmp_path / WEIGHTS_NAME, CPU)
    assert torch.equal(network.state_dict()["bn1.running_mean"], state["bn1.running_mean"])


def test_loading_raw_pixels_needs_no_tensors(tmp_path: Path) -> None:
    assert isinstance(load(written(tmp_path, {}, "raw_pixels"), tmp_path / WEIGHTS_NAME, CPU), RawPixels)


def test_loading_refuses_other_tensors_than_the_cards(state: State, tmp_path: Path) -> None:
    card = written(tmp_path, state)
    state["bn1.weight"][0] += 1
    written(tmp_path / "other", state)
    with pytest.raises(CheckpointError, match=f"expected tensors with sha256 {card.tensors_sha256[:16]}…, as its card"):
        load(card, tmp_path / "other" / WEIGHTS_NAME, CPU)


def test_loading_refuses_another_architecture_than_the_cards(state: State, tmp_path: Path) -> None:
    card = written(tmp_path, state).model_copy(update={"arch": "resnet34"})
    with pytest.raises(CheckpointError, match="is not a whole resnet34: 120 of 216 expected tensors found"):
        load(card, tmp_path / WEIGHTS_NAME, CPU)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "folder"])
def test_weights_that_cannot_be_read_are_named(state: State, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"truncated": whole[:-1000], "empty": b"", "text": b"404 Not Found" * 9}[damage])
    with pytest.raises(CheckpointError, match="a.safetensors: not a readable safetensors file"):
        read_weights(path)


def test_normalising_is_torchvisions() -> None:
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = Normalize(IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std)
    expected = torch.stack([theirs(ToTensor()(image.permute(1, 2, 0).numpy())) for image in pixels])
    found = normalise(pixels, IMAGENET_PIXELS)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert pixels.dtype == torch.uint8  # untouched
