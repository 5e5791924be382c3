"""Batch, rate and schedule scale together: by the rule's own numbers, as detectron2 does it, and nothing else moves."""

from typing import Any

import pytest

from engines.launch import Name
from evaluate.benchmarks import load_benchmark
from evaluate.scaling import BATCH, changes, remark, reshaped, scaled
from zoo.errors import ConfigError
from zoo.files import CONFIGS
from zoo.native import resolved

ENGINES: dict[str, Name] = {
    "voc0712_detection_zoo": "detectron2",
    "voc0712_detection_moco": "detectron2",
    "voc12aug_segmentation_zoo": "mmseg",
}


def native(name: str) -> dict[str, Any]:
    return load_benchmark(name).settings.engine_config


def test_a_quarter_of_the_batch_takes_a_quarter_of_the_rate_and_four_times_the_iterations() -> None:
    config = native("voc0712_detection_zoo")
    result, found = scaled("detectron2", config, 4)
    assert changes(config, result) == {
        "SOLVER.IMS_PER_BATCH": [16, 4],
        "SOLVER.BASE_LR": [0.02, 0.005],
        "SOLVER.MAX_ITER": [24000, 96000],
        "SOLVER.STEPS": [[18000, 22000], [72000, 88000]],
        "SOLVER.WARMUP_ITERS": [100, 400],
        "SOLVER.CHECKPOINT_PERIOD": [1000, 4000],
    }
    assert found["changed"] == changes(config, result) and not found["rounded_up"]
    assert (found["from"], found["to"], found["factor"], found["rule"]) == (16, 4, 4.0, "linear")
    assert found["lr"] == [0.02, 0.005] and found["iterations"] == [24000, 96000]
    assert native("voc0712_detection_zoo") == config  # not changed in place
    assert remark(config, found, swept=False) == (
        "a global batch of 4 images in place of 16, scaled linearly: rate 0.02 → 0.005, 24,000 → 96,000 iterations; "
        "the synchronised batch norms' statistics span 4 images, the protocol's 16."
    )
    assert "rate 0.02 → 0.005 before the sweep, 24,000 →" in remark(config, found, swept=True)


def test_a_poly_schedule_grows_with_its_end_and_its_lowest_rate_shrinks() -> None:
    config = native("voc12aug_segmentation_zoo")
    result, _ = scaled("mmseg", config, 4)
    assert changes(config, result) == {
        "train_dataloader.batch_size": [16, 4],
        "optim_wrapper.optimizer.lr": [0.01, 0.0025],
        "param_scheduler.0.eta_min": [0.0001, 0.000025],
        "param_scheduler.0.end": [20001, 80001],
        "train_cfg.max_iters": [20000, 80000],
        "default_hooks.checkpoint.interval": [1000, 4000],
    }


def test_warm_up_and_milestones_of_mmengine_grow_too() -> None:
    config = native("voc12aug_segmentation_zoo") | {
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.001, "begin": 0, "end": 500, "by_epoch": False},
            {"type": "MultiStepLR", "milestones": [100, 150], "gamma": 0.1, "by_epoch": False},
        ]
    }
    assert scaled("mmseg", config, 8)[0]["param_scheduler"] == [
        {"type": "LinearLR", "start_factor": 0.001, "begin": 0, "end": 1000, "by_epoch": False},
        {"type": "MultiStepLR", "milestones": [200, 300], "gamma": 0.1, "by_epoch": False},
    ]


def test_what_is_no_whole_number_is_rounded_up_and_said() -> None:
    config = native("voc0712_detection_moco")
    result, found = scaled("detectron2", config, 6)
    solver = result["SOLVER"]
    assert (solver["MAX_ITER"], solver["STEPS"], solver["WARMUP_ITERS"]) == (64000, [48000, 58667], 267)
    assert solver["BASE_LR"] == pytest.approx(0.0075)
    assert found["rounded_up"] == ["SOLVER.CHECKPOINT_PERIOD", "SOLVER.STEPS", "SOLVER.WARMUP_ITERS"]
    assert "rounded up: SOLVER.CHECKPOINT_PERIOD, SOLVER.STEPS, SOLVER.WARMUP_ITERS;" in remark(
        config, found, swept=False
    )


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("batch", [1, 2, 8, 32])
def test_there_and_back_again_is_the_protocol(name: str, batch: int) -> None:
    config = native(name)
    own = 16
    result, _ = scaled(ENGINES[name], config, batch)
    assert changes(config, scaled(ENGINES[name], result, own)[0]) == {}


@pytest.mark.parametrize(
    "path", sorted(p.stem for p in (CONFIGS / "engines").glob("*/*.yaml") if "base_" not in p.stem)
)
def test_every_configuration_can_be_scaled(path: str) -> None:
    (file,) = (CONFIGS / "engines").glob(f"*/{path}.yaml")
    engine: Name = "mmseg" if file.parent.name == "mmseg" else "detectron2"
    result, found = scaled(engine, resolved(file), 1)
    assert found["to"] == 1 and found["factor"] == found["from"] > 1
    assert changes(resolved(file), result).keys() == found["changed"].keys() and len(found["changed"]) >= 6


def test_plain_batch_norms_are_not_called_synchronised() -> None:
    config = native("voc0712_detection_zoo")
    config["MODEL"]["RESNETS"]["NORM"] = "BN"
    assert "synchronised" not in remark(config, scaled("detectron2", config, 4)[1], swept=False)


def test_the_protocols_own_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="global_batch: expected another number than 16, which is the protocol's own"):
        scaled("detectron2", native("voc0712_detection_zoo"), 16)


def test_what_is_not_stated_or_not_known_cannot_be_scaled() -> None:
    config = native("voc0712_detection_zoo")
    del config["SOLVER"]["STEPS"], config["SOLVER"]["WARMUP_ITERS"]
    with pytest.raises(ConfigError) as caught:
        scaled("detectron2", config, 4)
    assert str(caught.value).splitlines()[1:] == ["  - SOLVER.STEPS: not stated", "  - SOLVER.WARMUP_ITERS: not stated"]
    other = native("voc12aug_segmentation_zoo") | {"param_scheduler": [{"type": "OneCycleLR", "by_epoch": False}]}
    with pytest.raises(
        ConfigError, match=r"param_scheduler.0: expected one of .*PolyLR with by_epoch false, found .*One"
    ):
        scaled("mmseg", other, 4)


def test_a_rate_alone_moves_the_rates_alone() -> None:
    config = native("voc12aug_segmentation_zoo")
    assert changes(config, reshaped("mmseg", config, rate=3, length=1)) == {
        "optim_wrapper.optimizer.lr": [0.01, 0.03],
        "param_scheduler.0.eta_min": [0.0001, 0.0003],
    }
    assert BATCH["mmseg"] not in changes(config, reshaped("mmseg", config, rate=1, length=0.5))
