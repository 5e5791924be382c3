"""python -m tests.protocols.describe_detectron2 FOLDER...: what engines.detectron2 builds for each FOLDER/job.json.

The last line printed is JSON: folder name → fact → what the built object itself holds. Facts of the trainer are there
for jobs with images only.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engines import detectron2 as engine

# isort: split
# the engine's module prepares what these need
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import hooks
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from engines.contract import Job, read_job
from engines.draws import TRAIN
from tests.protocols.drawn import LR_AT, order
from zoo.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
NORMS = (_NormBase, FrozenBatchNorm2d, nn.GroupNorm, nn.LayerNorm)


def describe(folder: Path, job: Job) -> dict[str, Any]:
    cfg = engine.configured(folder, job, ALONE)
    if not job.train:
        model = engine._Trainer.build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return model_facts(model, job)
    for name, path in ((engine.TRAIN, job.train), (engine.TEST, job.test)):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        engine._register(name, path, job)
    trainer = engine._Trainer(cfg, ALONE)
    trainer.resume_or_load(resume=True)
    facts = model_facts(trainer.model, job) | optimiser_facts(trainer) | loader_facts(trainer, cfg, job)
    precise = [hook for hook in trainer._hooks if isinstance(hook, hooks.PreciseBN)]
    facts["precise_bn"] = sum(hook._num_iter for hook in precise if not hook._disabled)
    evaluating = any(isinstance(hook, hooks.EvalHook) for hook in trainer._hooks)
    facts["evaluated_every"] = cfg.TEST.EVAL_PERIOD if evaluating else 0
    return facts | schedule_facts(trainer)  # last: it changes the optimiser


def model_facts(model: Any, job: Job) -> dict[str, Any]:
    model.train()
    rpn, heads, predictor = model.proposal_generator, model.roi_heads, model.roi_heads.box_predictor
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}
    levels = list(rpn.anchor_generator.cell_anchors)
    anchors = torch.cat(levels)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    pooler = getattr(heads, "box_pooler", None) or heads.pooler
    own = extra_norm_facts(model, job) if hasattr(heads, "res5") else pyramid_facts(model)
    blocks = {
        name.removeprefix("backbone.").removeprefix("roi_heads."): module
        for name, module in model.named_modules()
        if hasattr(module, "conv3")
    }
    return {
        "frozen_parameters": [name for name, value in model.named_parameters() if not value.requires_grad],
        "norms": sorted({type(module).__name__ for module in norms.values()}),
        "norms_not_trainable": [name for name, module in norms.items() if not _trainable(module)],
        "norms_in_eval_mode": [name for name, module in norms.items() if not module.training],
        "strided_1x1": [n for n, m in blocks.items() if 2 in m.conv1.stride or 2 in m.conv3.stride],
        "strided_3x3": [n for n, m in blocks.items() if m.conv2.kernel_size == (3, 3) and m.conv2.stride == (2, 2)],
        "anchor_strides": list(rpn.anchor_generator.strides),
        "anchor_sizes": sorted({round(float(size)) for size in (width * height).sqrt()}),
        "anchor_ratios": sorted({round(float(ratio), 4) for ratio in height / width}),
        "anchors_per_place": len(levels[0]),
        "rpn_pre_nms": {"train": rpn.pre_nms_topk[True], "test": rpn.pre_nms_topk[False]},
        "rpn_post_nms": {"train": rpn.post_nms_topk[True], "test": rpn.post_nms_topk[False]},
        "roi_pool": list(pooler.output_size),
        "roi_pool_scales": [level.spatial_scale for level in pooler.level_poolers],
        "roi_per_image": heads.batch_size_per_image,
        "roi_positive_fraction": heads.positive_fraction,
        "test_score": predictor.test_score_thresh,
        "test_nms": predictor.test_nms_thresh,
        "test_boxes": predictor.test_topk_per_image,
        "num_classes": predictor.cls_score.out_features - 1,
        "pixel_mean": model.pixel_mean.flatten().tolist(),
        "pixel_std": model.pixel_std.flatten().tolist(),
        "pixel_order": model.input_format,
        **own,
        **(mask_facts(heads) if heads.mask_on else {}),
    }


def extra_norm_facts(model: Any, job: Job) -> dict[str, Any]:
    res5 = model.roi_heads.res5
    children = list(res5.children())
    extra = children[-1]
    state = {name: value for name, value in res5.norm.state_dict().items() if value.ndim}
    fresh = all(bool((value == (1 if name in ("weight", "running_var") else 0)).all()) for name, value in state.items())
    return {
        "extra_norm": type(extra).__name__,
        "extra_norm_follows_res5": extra is res5.norm and all(hasattr(c, "conv1") for c in children[:-1]),
        "extra_norm_width": getattr(extra, "num_features", None),
        "extra_norm_from_checkpoint": not fresh or any(name.startswith("roi_heads.res5.norm.") for name in job.tensors),
        **readers_of_extra_norm(model),
    }


def pyramid_facts(model: Any) -> dict[str, Any]:
    parts = {
        "backbone": model.backbone.bottom_up,
        "pyramid": nn.ModuleList([child for name, child in model.backbone.named_children() if name.startswith("fpn_")]),
        "proposals": model.proposal_generator,
        "box_head": model.roi_heads.box_head,
        "mask_head": model.roi_heads.mask_head,
    }
    return {
        "norms_of": {
            name: sorted({type(module).__name__ for module in part.modules() if isinstance(module, NORMS)})
            for name, part in parts.items()
        },
        "box_head_convs": [m.out_channels for m in parts["box_head"].modules() if isinstance(m, nn.Conv2d)],
        "box_head_fully_connected": [m.out_features for m in parts["box_head"].modules() if isinstance(m, nn.Linear)],
        "mask_pool": list(model.roi_heads.mask_pooler.output_size),
    }


def mask_facts(heads: Any) -> dict[str, Any]:
    convs = [module for module in heads.mask_head.modules() if isinstance(module, nn.Conv2d)]
    return {"mask_head_convs": [c.out_channels for c in convs[:-1]], "mask_classes": convs[-1].out_channels}


def _trainable(norm: Any) -> bool:
    """A norm with weight and bias to learn and statistics to keep."""
    learnt = [getattr(norm, "weight", None), getattr(norm, "bias", None)]
    return all(isinstance(v, nn.Parameter) and v.requires_grad for v in learnt) and norm.track_running_stats


def readers_of_extra_norm(model: Any) -> dict[str, bool]:
    """Whether the extra norm's output is what finds a mask, and averaged over its map what classifies a region."""
    heads = model.roi_heads
    norms: list[torch.Tensor] = []
    seen: dict[str, torch.Tensor] = {}
    handles = [
        heads.res5.norm.register_forward_hook(lambda module, args, output: norms.append(output)),
        heads.box_predictor.register_forward_pre_hook(lambda module, args: seen.update(predictor=args[0])),
    ]
    if heads.mask_on:
        handles.append(heads.mask_head.register_forward_pre_hook(lambda module, args: seen.update(mask_head=args[0])))
    threshold, heads.box_predictor.test_score_thresh = heads.box_predictor.test_score_thresh, 0.0  # some boxes
    regions = Instances((256, 256), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 99, 99], [9, 50, 200, 150]])))
    channels = model.backbone.output_shape()["res4"].channels
    model.eval()
    with torch.no_grad():
        heads(None, {"res4": torch.randn(1, channels, 16, 16)}, [regions])
    model.train()
    heads.box_predictor.test_score_thresh = threshold
    for handle in handles:
        handle.remove()
    read = {"predictor_reads_extra_norm": torch.equal(seen["predictor"], norms[0].mean(dim=(2, 3)))}
    if heads.mask_on:
        read["mask_head_reads_extra_norm"] = len(norms[-1]) > 0 and torch.equal(seen["mask_head"], norms[-1])
    return read


def optimiser_facts(trainer: Any) -> dict[str, Any]:
    groups = {id(value): group for group in trainer.optimizer.param_groups for value in group["params"]}
    kinds: dict[str, list[Any]] = {}
    for module in trainer.model.modules():
        for name, value in module.named_parameters(recurse=False):
            kind = f"{'norm_' if isinstance(module, NORMS) else ''}{'biases' if name == 'bias' else 'weights'}"
            kinds.setdefault(kind, []).extend([groups[id(value)]] if id(value) in groups else [])
    named = trainer.model.named_parameters()
    return {
        "optimiser": type(trainer.optimizer).__name__,
        "parameters_not_optimised": [name for name, value in named if id(value) not in groups],
        "lr": sorted({group["initial_lr"] for group in groups.values()}),
        "momentum": sorted({group["momentum"] for group in groups.values()}),
        **{f"decay_of_{kind}": sorted({group["weight_decay"] for group in found}) for kind, found in kinds.items()},
    }


def schedule_facts(trainer: Any) -> dict[str, Any]:
    """The first group's rate at iterations of interest, each reached by the last step of the trainer's own hook."""
    (hook,) = [hook for hook in trainer._hooks if isinstance(hook, hooks.LRScheduler)]
    rates = {}
    with EventStorage(0) as trainer.storage:
        hook.before_train()
        for step in sorted({*range(100), *LR_AT["detectron2"], *LR_AT["detectron2_coco"]}):
            if step < trainer.max_iter:
                hook.scheduler.last_epoch = step - 1  # detectron2's rate depends on nothing before
                hook.after_step()
                rates[step] = trainer.optimizer.param_groups[0]["lr"]
    return {
        "iterations": trainer.max_iter,
        "lr_changes_every_iteration": all(rates[step] != rates[step + 1] for step in range(99)),
        "lr_at": {str(step): rate for step, rate in rates.items()},
    }


def loader_facts(trainer: Any, cfg: Any, job: Job) -> dict[str, Any]:
    loader = trainer.batches
    read: Any = loader.read
    steps = {type(step).__name__: step for step in read.mapper.augmentations.augs}
    resize, flip = steps["ResizeShortestEdge"], steps["RandomFlip"]
    listed = [read.listed[index] for index in range(len(read.listed))]
    count, draws = len(listed), loader.places(TRAIN)  # all pictures have one shape, so grouping changes no order
    epochs = [[next(draws)[1] for _ in range(count)] for _ in range(3)]
    batch = next(iter(loader))
    channels = torch.stack([image["image"].float().mean((1, 2)) for image in batch]).mean(0)
    build_test: Any = build_detection_test_loader  # decorated so that type checkers see None
    test = build_test(cfg, engine.TEST, num_workers=job.workers)
    test_steps = test.dataset._map_func._obj.augmentations.augs
    return {
        "train_steps": list(steps),
        "train_sizes": list(resize.short_edge_length),
        "train_sampling": resize.sample_style,
        "train_max_size": resize.max_size,
        "flip_probability": flip.prob,
        "flip_direction": "horizontal" if flip.horizontal and not flip.vertical else "other",
        "batch": loader.batch,
        "images_in_a_step": len(batch),
        "channels_reach_the_model_as": order(channels.tolist()),
        "sampler_draws_whole_epochs": all(sorted(epoch) == list(range(count)) for epoch in epochs),
        "sampler_shuffles": all(epoch != sorted(epoch) for epoch in epochs) and epochs[0] != epochs[1],
        "images_without_boxes_are_trained": any(not image["annotations"] for image in listed),
        "test_steps": [type(step).__name__ for step in test_steps],
        "test_size": sorted(set(test_steps[0].short_edge_length)),
        "test_max_size": test_steps[0].max_size,
        "test_images_of_all": [image["image_id"] for batch in test for image in batch],
        **({"mask_format": read.mapper.instance_mask_format} if cfg.MODEL.MASK_ON else {}),
    }


if __name__ == "__main__":
    folders = [Path(argument) for argument in sys.argv[1:]]
    print(json.dumps({folder.name: describe(folder, read_job(folder)) for folder in folders}))
