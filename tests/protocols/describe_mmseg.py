"""python -m tests.protocols.describe_mmseg FOLDER...: what engines.mmseg builds for each FOLDER/job.json.

The last line printed is JSON: folder name → fact → what the built object itself holds. Facts of the trainer are there
for jobs with images only: its runner is built in full, and stopped where its training loop would begin.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engines import mmseg as engine

# isort: split
# the engine's module prepares what these need
import torch
from mmengine.hooks import ParamSchedulerHook
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from engines.contract import Job, read_job
from engines.draws import TRAIN
from tests.protocols.drawn import LR_AT, draw_picture, order
from zoo.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
LOADING = ("LoadPicture", "LoadLabels", "PackSegInputs")
runners: list[Any] = []


def describe(folder: Path, job: Job) -> dict[str, Any]:
    cfg = engine.configured(job, ALONE)
    model = engine.built(cfg, ALONE)
    facts = model_facts(model) | preprocessor_facts(model, folder)
    if job.train:
        engine.train(model, cfg, folder, job, ALONE)
        runner = runners.pop()
        facts |= optimiser_facts(runner) | loader_facts(runner, cfg) | schedule_facts(runner)
    return facts


def model_facts(model: Any) -> dict[str, Any]:
    model.train()
    backbone = model.backbone
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    stages = [getattr(backbone, f"layer{number}") for number in (1, 2, 3, 4)]
    outside = [module for module in backbone.children() if module not in stages]
    return {
        "frozen_parameters": [name for name, value in model.named_parameters() if not value.requires_grad],
        "norms": sorted({type(module).__name__ for module in norms.values()}),
        "norms_not_trainable": [name for name, module in norms.items() if not _trainable(module)],
        "norms_in_eval_mode": [name for name, module in norms.items() if not module.training],
        "backbone": type(backbone).__name__,
        "stem_kernels": [c.kernel_size[0] for part in outside for c in part.modules() if isinstance(c, nn.Conv2d)],
        "stage_strides": [_spatial(stage[0]).stride[0] for stage in stages],
        "first_dilations": [_spatial(stage[0]).dilation[0] for stage in stages],
        "stage_dilations": [_only({_spatial(block).dilation[0] for block in list(stage)[1:]}) for stage in stages],
        **head_facts("head", model.decode_head),
        **head_facts("auxiliary", model.auxiliary_head),
        "test_mode": model.test_cfg.mode,
        "test_window": _list_or_none(model.test_cfg.get("crop_size")),
        "test_stride": _list_or_none(model.test_cfg.get("stride")),
        "pixel_mean": model.data_preprocessor.mean.flatten().tolist(),
        "pixel_std": model.data_preprocessor.std.flatten().tolist(),
    }


def head_facts(name: str, head: Any) -> dict[str, Any]:
    """The head's convolutions before the one that joins its input, if any, and the one that classifies."""
    convolutions = [module for module in head.convs.modules() if isinstance(module, nn.Conv2d)]
    facts = {
        "": type(head).__name__,
        "_stage": head.in_index + 1,
        "_convs": len(convolutions),
        "_channels": [convolutions[0].in_channels, _only({module.out_channels for module in convolutions})],
        "_concatenates_input": head.concat_input and hasattr(head, "conv_cat"),
        "_dropout": head.dropout.p,
        "_classes": head.conv_seg.out_channels,
        "_align_corners": head.align_corners,
        "_ignores": head.ignore_index,
        "_loss": head.loss_decode.loss_weight,
    }
    return {name + fact: value for fact, value in facts.items()}


def _list_or_none(value: Any) -> list[Any] | None:
    return None if value is None else list(value)


def _spatial(block: Any) -> nn.Conv2d:
    """The 3x3 convolution of a Bottleneck or the first of a BasicBlock: what strides and dilates."""
    return next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))


def _only(found: set[Any]) -> Any:
    """The one value there should be, else all."""
    return found.pop() if len(found) == 1 else sorted(found)


def _trainable(norm: Any) -> bool:
    """A norm with weight and bias to learn and statistics to keep."""
    learnt = [getattr(norm, "weight", None), getattr(norm, "bias", None)]
    return all(isinstance(v, nn.Parameter) and v.requires_grad for v in learnt) and norm.track_running_stats


def preprocessor_facts(model: Any, folder: Path) -> dict[str, Any]:
    """What a picture smaller than the crop becomes on its way into the model."""
    path = folder / "small.png"
    draw_picture(path, 40, 30)
    image = TRANSFORMS.build({"type": "LoadImageFromFile"})({"img_path": str(path)})["img"]
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.ones(1, 30, 40, dtype=torch.long)))
    sample.set_metainfo({"img_shape": (30, 40)})
    made = {"inputs": [torch.from_numpy(image.copy()).permute(2, 0, 1)], "data_samples": [sample]}
    prepared = model.data_preprocessor(made, training=True)
    pixels, labels = prepared["inputs"][0], prepared["data_samples"][0].gt_sem_seg.data[0]
    mean, std = model.data_preprocessor.mean.flatten(), model.data_preprocessor.std.flatten()
    return {
        "channels_reach_the_model_as": order((pixels[:, 0, 0] * std + mean).tolist()),
        "padded_to": list(pixels.shape[1:]),
        "pads_images_with": _only({float(value) for value in pixels[:, 30:, 40:].unique()}),
        "pads_labels_with": _only({int(value) for value in labels[30:, 40:].unique()}),
    }


def optimiser_facts(runner: Any) -> dict[str, Any]:
    optimiser = runner.optim_wrapper.optimizer
    groups = {id(value): group for group in optimiser.param_groups for value in group["params"]}
    kinds: dict[str, list[Any]] = {}
    for module in runner.model.modules():
        for name, value in module.named_parameters(recurse=False):
            kind = f"{'norm_' if isinstance(module, NORMS) else ''}{'biases' if name == 'bias' else 'weights'}"
            kinds.setdefault(kind, []).extend([groups[id(value)]] if id(value) in groups else [])
    named = runner.model.named_parameters()
    return {
        "optimiser": type(optimiser).__name__,
        "parameters_not_optimised": [name for name, value in named if id(value) not in groups],
        "lr": sorted({group["initial_lr"] for group in groups.values()}),
        "momentum": sorted({group["momentum"] for group in groups.values()}),
        **{f"decay_of_{kind}": sorted({group["weight_decay"] for group in found}) for kind, found in kinds.items()},
    }


def schedule_facts(runner: Any) -> dict[str, Any]:
    """The rate at each iteration, moved on by the runner's own hook."""
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, ParamSchedulerHook)]
    rates = []
    for step in range(runner.max_iters):
        rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        hook.after_train_iter(runner, step)
    return {
        "iterations": runner.max_iters,
        "lr_changes_every_iteration": all(rates[step] != rates[step + 1] for step in range(99)),
        "lr_at": {str(step): rates[step] for step in LR_AT["mmseg"] if step < len(rates)},
        "evaluated_every": runner.val_interval if runner.val_loop is not None else 0,
    }


def loader_facts(runner: Any, cfg: Any) -> dict[str, Any]:
    loader = runner.train_loop.dataloader
    built = {type(step).__name__: step for step in loader.dataset.pipeline.transforms}
    resize, crop, flip = (built[name] for name in ("RandomResize", "RandomCrop", "RandomFlip"))
    count, draws = len(loader.dataset), loader.places(TRAIN)
    epochs = [[next(draws)[1] for _ in range(count)] for _ in range(3)]
    test: Any = DATASETS.build(cfg["test_dataloader"]["dataset"])
    listed = [image["img_path"] for image in json.loads(Path(test.ann_file).read_text())]
    return {
        "train_steps": [name for name in built if name not in LOADING],
        "resize_scale": list(resize.scale),
        "resize_ratio": list(resize.ratio_range),
        "crop": list(crop.crop_size),
        "crop_one_class_at_most": crop.cat_max_ratio,
        "flip_probability": flip.prob,
        "flip_direction": flip.direction,
        "batch": loader.batch,
        "images_in_a_step": len(next(iter(loader))["inputs"]),
        "sampler_draws_whole_epochs": all(sorted(epoch) == list(range(count)) for epoch in epochs),
        "sampler_shuffles": all(epoch != sorted(epoch) for epoch in epochs) and epochs[0] != epochs[1],
        "test_steps": [type(step).__name__ for step in test.pipeline.transforms if type(step).__name__ not in LOADING],
        "test_scale": [list(step.scale) for step in test.pipeline.transforms if type(step).__name__ == "Resize"][0],
        "test_images_of_all": [listed.index(test.get_data_info(index)["img_path"]) for index in range(len(test))],
    }


if __name__ == "__main__":
    register_all_modules(init_default_scope=True)
    engine.ExactLoop.run = lambda self: runners.append(self.runner)  # all is built and loaded then
    folders = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps({folder.name: describe(folder, read_job(folder)) for folder in folders}))
