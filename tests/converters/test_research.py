"""Files as methods' own code writes them are read whole: the right encoder, every tensor, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from converters.layouts import LAYOUTS, research
from converters.read import identify, read
from tests.converters.held import content, fits, names, tensors
from tests.converters.made import State, write
from tests.converters.made_research import MADE
from zoo.errors import CheckpointError

ARCH = "resnet18"


def test_the_student_of_dino_can_be_had_by_its_address() -> None:
    made = MADE["dino"](ARCH)
    found = content(made.content)
    (note,) = identify(found).notes
    assert note == "the teacher is read; the student is beside it: --take 'student:module.backbone.'"
    student = identify(found, note.split("'")[1])
    assert not torch.equal(student.state["conv1.weight"], made.backbone["conv1.weight"])
    assert torch.equal(student.state["conv1.weight"], made.content["student"]["module.backbone.conv1.weight"])


def test_swavs_pixel_statistics_are_told() -> None:
    found = research.swav(
        content(names("module.") | tensors("module.projection_head.0.weight", "module.prototypes.weight"))
    )
    assert found is not None and found.notes == (research.SWAV_STD,) and "0.228, 0.224, 0.225" in research.SWAV_STD


def test_simsiams_frozen_bias_is_part_of_the_projector() -> None:
    found = research.simsiam(content(MADE["simsiam"](ARCH).content))
    assert found is not None and "encoder.fc.6.bias" in found.groups["projector"]
    assert len(found.groups["projector"]) == 17 and len(found.groups["predictor"]) == 8  # §1.5


def test_a_tensor_of_the_query_encoder_is_not_replaced_by_the_key_encoders(tmp_path: Path) -> None:
    made = MADE["moco_v2_raw"](ARCH)
    keys: Tensor = made.content["state_dict"]["module.encoder_k.conv1.weight"]
    assert not torch.equal(keys, made.backbone["conv1.weight"])  # else no test would tell which one was read
    del made.content["state_dict"]["module.encoder_q.bn1.weight"]
    with pytest.raises(CheckpointError) as caught:
        read(write(made, tmp_path / "a.pth"))
    assert "(moco): not a whole resnet18: 119 of 120 expected tensors found" in str(caught.value)
    assert "missing: 1 tensors (bn1.weight)" in str(caught.value)


@pytest.mark.parametrize("name", ["encoder_q.fc.1.weight", "queue2", "xqueue", "encoder_q.0.conv1.weight"])
def test_a_name_that_no_row_knows_is_unexpected(name: str) -> None:
    found = research.moco(content({"state_dict": names("encoder_q.") | tensors(name)}))
    assert found is not None and found.unexpected == (name,)


@pytest.mark.parametrize(
    "state",
    [
        names("encoder_k."),
        names("encoder_q.0.", "encoder_k.0.") | tensors("queue", "queue_ptr"),  # mmselfsup 0.x, OpenSelfSup
        tensors("base_encoder.cls_token", "momentum_encoder.cls_token", "predictor.0.weight"),  # MoCo v3, ViT
        names("encoder.") | tensors("predictor.0.weight"),  # no projector of SimSiam's
        names("encoder.") | tensors("encoder.fc.0.weight"),
        names("encoder1.", "encoder2.") | tensors("head1.0.weight", "head2.0.weight"),  # CMC
        names("encoder.") | tensors("projector.linear1.weight"),
        names("encoder.", "encoder_k.") | tensors("projector.linear1.weight", "queue"),  # SoCo
        names("backbone.") | tensors("projector.0.weight", "projector.0.bias", "classifier.weight"),  # solo-learn
        names("backbone.") | tensors("projector.0.weight"),
        names("") | tensors("projection_head.0.weight"),
    ],
)
def test_what_only_looks_alike_is_not_taken(state: State) -> None:
    readers = (getattr(research, name) for name in LAYOUTS if hasattr(research, name))
    assert not [found for reader in readers if (found := reader(content({"model": state}))) is not None]


def test_a_teacher_alone_is_read_and_a_student_alone_is_not() -> None:
    state = names("backbone.") | tensors("head.mlp.0.weight", "head.last_layer.weight_v")
    found = research.dino(content({"teacher": state}))
    assert found is not None and found.notes == () and not found.unexpected
    assert research.dino(content({"student": state})) is None


def test_barlow_twins_and_vicreg_are_told_apart() -> None:
    shared = names("backbone.") | tensors("projector.0.weight", "projector.1.bias", "projector.6.weight")
    assert fits({"model": shared | tensors("bn.running_mean")}) == ["barlow_twins"]
    assert fits({"model": shared | tensors("projector.0.bias")}) == ["vicreg"]
    assert fits({"model": shared | tensors("projector.0.bias", "bn.running_mean")}) == ["barlow_twins"]


def test_a_head_more_or_less_names_the_method() -> None:
    headless = research.moco(content(names("encoder_q.")))
    assert headless is not None and headless.method == "MoCo (which version is not said: no head)"
