"""python -m engines.detectron2 FOLDER: train and test one detectron2 model as FOLDER/job.json says (engines.contract).

detectron2's own trainer, augmentation, optimiser and schedule do the work; here are only the batch norm after res5 that
the VOC protocols add (protocols §2.8), the proofs before iteration 0, draws that do not depend on what has run before
(engines.draws), and one checkpoint, from which a training goes on with the bits of one that was never stopped.
Under torchrun every process runs this, with gloo on CPUs, which detectron2's own launcher does not do. Two processes do
not equal one of the same global batch: each groups its own share of the images, and draws its own regions.
"""

import copy
import json
import logging
import os
import pickle
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from engines import compatibility

compatibility.prepare_detectron2()

import detectron2  # noqa: E402  # everything below needs the preparation above
import detectron2.engine.defaults as defaults  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import (  # noqa: E402
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.data import detection_utils as reading  # noqa: E402
from detectron2.data.common import DatasetFromList  # noqa: E402
from detectron2.engine import DefaultTrainer, HookBase, hooks  # noqa: E402
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset  # noqa: E402
from detectron2.layers import get_norm  # noqa: E402
from detectron2.modeling import ROI_HEADS_REGISTRY, ResNet, build_model  # noqa: E402
from detectron2.modeling.backbone.resnet import BasicBlock  # noqa: E402
from detectron2.modeling.roi_heads import Res5ROIHeads  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter  # noqa: E402
from pycocotools import mask as run_lengths  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from engines.contract import (  # noqa: E402
    Job,
    NonFinite,
    Refused,
    check_stages,
    check_tensors,
    check_weights_file,
    child,
    cut_back,
    loaders_refusal,
    log_period,
    write_answer,
)
from engines.draws import PRECISE_BN, Batches, grouped, seed_all, shuffled  # noqa: E402
from zoo import device as devices  # noqa: E402
from zoo import interrupt  # noqa: E402
from zoo.distributed import World, any_process, barrier, world  # noqa: E402

log = logging.getLogger(__name__)
TRAIN, TEST = "zoo_train", "zoo_test"
BACKBONE = ("backbone.", "roi_heads.res5.")


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """C4 heads whose res5 ends in one more batch norm, not pre-trained (protocols §2.8: model).

    ResNet-18 and -34 get their own BasicBlocks, where detectron2 would build Bottlenecks.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        resnet = cfg.MODEL.RESNETS
        if resnet.DEPTH < 50:
            width = resnet.RES2_OUT_CHANNELS
            blocks = ResNet.make_stage(
                BasicBlock,
                {18: 2, 34: 3}[resnet.DEPTH],
                stride_per_block=[2] + [1] * ({18: 2, 34: 3}[resnet.DEPTH] - 1),
                in_channels=4 * width,
                out_channels=8 * width,
                norm=resnet.NORM,
            )
            res5, channels = nn.Sequential(*blocks), 8 * width
        else:
            res5, channels = super()._build_res5_block(cfg)
        res5.add_module("norm", get_norm(resnet.NORM, channels))
        return res5, channels


QUIET = (  # pages of what the proofs say in a line
    "fvcore.common.checkpoint",
    "detectron2.checkpoint.c2_model_loading",
    "detectron2.data.build",
    "detectron2.data.common",
    "detectron2.engine.defaults",
)


def run(folder: Path, job: Job) -> None:
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    # a traceback of whatever ends a training: `child` writes one where it is a bug, and else a line
    logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)
    check_weights_file(job)
    loader: Any = build_detection_test_loader  # what these are decorated with hides their arguments from type checkers
    mapper: Any = DatasetMapper
    with world() as me, _joined(me):
        cfg = configured(folder, job, me)
        seed_all(job.seed)  # the tensors that no checkpoint has
        if job.task == "check":
            model = build_model(cfg)
            _load(DetectionCheckpointer(model), cfg.MODEL.WEIGHTS)
            write_answer(folder, {"proofs": prove(model, cfg, job), **versions()}, {})
            return
        _register(TRAIN, job.train, job)
        _register(TEST, job.test, job)
        trainer = _Trainer.resumed(cfg, job, me)
        proofs = trainer.proofs
        with loaders_refusal():
            trainer.complete()
            read = partial(_mapped, mapper(cfg, is_train=False))
            images = loader(cfg, TEST, mapper=read, num_workers=job.workers)
            found: Any = inference_on_dataset(_plain(trainer.model), images, _Collector(masks=cfg.MODEL.MASK_ON))
        if me.is_main:
            scored = found.pop("num_images")
            measurement = {
                "proofs": proofs,
                "steps": trainer.max_iter,
                "batch": trainer.batches.batch * me.size,
                "lr": trainer.optimizer.param_groups[0]["initial_lr"],
                "resumed_at": trainer.start_iter,
                "num_scored": int(scored),
                **versions(),
            }
            write_answer(folder, measurement, found)


def _load(checkpointer: DetectionCheckpointer, path: str) -> None:
    try:
        checkpointer.load(path)
    except pickle.UnpicklingError as error:
        raise Refused(f"{path}: {error}.") from error


def versions() -> dict[str, Any]:
    return {"engine": {"detectron2": detectron2.__version__, "torch": torch.__version__}}


def configured(folder: Path, job: Job, me: World) -> CfgNode:
    """The native configuration, the checkpoint's overlay, and where things are. Raises Refused on unknown keys."""
    cfg = get_cfg()
    try:
        cfg.merge_from_other_cfg(CfgNode(copy.deepcopy(job.config)))
        cfg.merge_from_other_cfg(CfgNode(copy.deepcopy(job.overlay)))
    except (KeyError, ValueError, AssertionError) as error:
        raise Refused(f"detectron2 does not know this configuration: {error}.") from error
    cfg.MODEL.WEIGHTS = job.weights
    cfg.MODEL.DEVICE = job.device
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (TEST,)
    cfg.DATALOADER.NUM_WORKERS = job.workers
    cfg.SEED = job.seed
    cfg.TEST.EVAL_PERIOD = 0  # reported: the last iteration
    assert cfg.SOLVER.IMS_PER_BATCH % me.size == 0, "the parent has seen to it"
    problems = []
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        problems.append(f"DATALOADER.SAMPLER_TRAIN: expected TrainingSampler, found {cfg.DATALOADER.SAMPLER_TRAIN}")
    if job.task == "measure" and cfg.MODEL.ROI_HEADS.NUM_CLASSES != len(job.classes):
        problems.append(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, the data has {len(job.classes)}"
        )
    if problems:
        raise Refused("; ".join(problems) + ".")
    cfg.freeze()
    return cfg


def prove(model: nn.Module, cfg: CfgNode, job: Job) -> dict[str, Any]:
    """The proofs of engines.contract on a model whose weights have just been loaded. Raises Refused."""
    count = check_tensors(model.state_dict(), job, BACKBONE)
    problems = [f"{name}: stride in the 1x1" for name, module in model.named_modules() if _strided_1x1(module)]
    if problems:
        raise Refused("STRIDE_IN_1X1: expected False, as torchvision's weights need. " + "; ".join(problems[:3]))
    stages = check_stages(job, lambda path: _pixels(model, cfg, path), lambda pixels: _stages(model, pixels))
    return {"tensors": count, "largest_difference": stages}


def _strided_1x1(module: nn.Module) -> bool:
    """A Bottleneck that halves its map in conv1 rather than in conv2."""
    first = getattr(module, "conv1", None)
    return hasattr(module, "conv3") and isinstance(first, nn.Conv2d) and first.stride != (1, 1)


def _pixels(model: Any, cfg: CfgNode, path: str) -> Tensor:
    image = reading.read_image(path, format=cfg.INPUT.FORMAT)
    tensor = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return model.preprocess_image([{"image": tensor}]).tensor.cpu()


def _stages(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    heads = getattr(model.roi_heads, "res5", None)
    parts = {
        name: getattr(backbone, name) for name in ("stem", "res2", "res3", "res4", "res5") if hasattr(backbone, name)
    }
    if heads is not None:
        parts["res5"] = nn.Sequential(*(block for name, block in heads.named_children() if name != "norm"))
    found: dict[str, Tensor] = {}
    for name, part in parts.items():
        pixels = copy.deepcopy(part).cpu().to(pixels.dtype).eval()(pixels)
        if name != "stem":
            found[f"feature{name[-1]}"] = pixels
    return found


def _register(name: str, path: str, job: Job) -> None:
    def images() -> list[dict[str, Any]]:
        listed = json.loads(Path(path).read_text())
        for image in listed:
            for box in image["annotations"]:
                box["bbox_mode"] = BoxMode.XYXY_ABS
        return listed

    DatasetCatalog.register(name, images)
    MetadataCatalog.get(name).set(thing_classes=list(job.classes))


@contextmanager
def _joined(me: World) -> Iterator[None]:
    """detectron2's view of the process group, and its DDP on CPUs."""
    if me.size > 1:
        groups = [list(range(start, start + _local_size(me))) for start in range(0, me.size, _local_size(me))]
        for ranks in groups:  # every process takes part in making every group
            group = dist.new_group(ranks)
            if me.rank in ranks:
                comm._LOCAL_PROCESS_GROUP = group
        if me.device.type == "cpu":
            setattr(defaults, "create_ddp_model", _cpu_data_parallel)  # noqa: B010
    yield


def _local_size(me: World) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", me.size))


def _cpu_data_parallel(model: nn.Module, **options: Any) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if comm.get_world_size() > 1 else model


class _OneCheckpoint(DetectionCheckpointer):
    """Keeps the last checkpoint only; a kill while it is written leaves the one before."""

    def sweep(self) -> None:
        """Remove what a kill left over; without a whole checkpoint, start anew."""
        folder = Path(self.save_dir)
        tag = folder / "last_checkpoint"
        last = tag.read_text().strip() if tag.exists() else ""
        for path in folder.glob("*.pth"):
            if path.name != last:
                path.unlink()
        if not (last and (folder / last).is_file()):
            tag.unlink(missing_ok=True)

    def save(self, name: str, **state: Any) -> None:
        super().save(name, **state)
        if self.save_to_disk:
            self.sweep()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """All or nothing: an empty tag would cost the whole training."""
        tag = Path(self.save_dir) / "last_checkpoint"
        new = tag.with_name(".last_checkpoint.tmp")
        new.write_text(last_filename_basename)
        new.replace(tag)


class _Trainer(DefaultTrainer):
    """DefaultTrainer that proves what it loaded, logs as the project does, and leaves evaluation to its caller."""

    model: nn.Module  # of the trainer that DefaultTrainer wraps
    optimizer: torch.optim.Optimizer
    proofs: dict[str, Any]

    def __init__(self, cfg: CfgNode, me: World) -> None:
        self.me = me
        self.asked: Callable[[], bool] = lambda: False
        super().__init__(cfg)

    @property
    def batches(self) -> Batches:
        loader: Any = self._trainer.data_loader
        return loader

    @classmethod
    def resumed(cls, cfg: CfgNode, job: Job, me: World) -> "_Trainer":
        """A trainer standing at its last checkpoint, or at iteration 0 with proven weights."""
        trainer = cls(cfg, me)
        trainer.resume_or_load(resume=True)
        if trainer.start_iter:
            trainer.batches.start = trainer.start_iter
            log.info("resuming at iteration %d", trainer.start_iter)
            if me.is_main:
                cut_back(Path(cfg.OUTPUT_DIR) / "log.jsonl", trainer.start_iter)
            trainer.proofs = json.loads((Path(cfg.OUTPUT_DIR) / "proofs.json").read_text())
            return trainer
        trainer.proofs = prove(_plain(trainer.model), cfg, job)
        log.info(
            "detectron2: %d backbone tensors are the checkpoint's bit for bit; largest difference %s",
            trainer.proofs["tensors"],
            trainer.proofs["largest_difference"],
        )
        if me.is_main:
            (Path(cfg.OUTPUT_DIR) / "proofs.json").write_text(json.dumps(trainer.proofs))
            cut_back(Path(cfg.OUTPUT_DIR) / "log.jsonl", 0)
        return trainer

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        device = torch.device(cfg.MODEL.DEVICE)
        return devices.synchronised_batch_norm(model, device) if _sync_on_cpu(cfg) else model

    def state_dict(self) -> dict[str, Any]:
        """With the optimiser's: detectron2 v0.6 leaves it out, and would go on without momentum, at another lr."""
        return super().state_dict() | {"_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "_trainer" not in state_dict:
            raise Refused(
                f"{self.cfg.OUTPUT_DIR}: its checkpoint has no optimiser's state, as an earlier version wrote it, and "
                "cannot be gone on from exactly; remove the folder to start anew."
            )
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self) -> list[HookBase | None]:
        checkpointer = _OneCheckpoint(self.checkpointer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        if self.me.is_main:
            checkpointer.sweep()
        barrier(self.me)
        self.checkpointer = checkpointer
        built: list[HookBase | None] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if self.cfg.TEST.PRECISE_BN.ENABLED:
            batches = replace(self.batches, purpose=PRECISE_BN)
            built.append(_PreciseBN(self.model, batches, self.cfg.TEST.PRECISE_BN.NUM_ITER))
        built.append(_Stop())
        if self.me.is_main:
            built.append(hooks.PeriodicCheckpointer(checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD))
            built.append(hooks.PeriodicWriter(self.build_writers(), period=log_period(self.max_iter)))
        return built

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Batches:
        """detectron2's images, mapper and grouping, with draws that the iteration decides (engines.draws)."""
        loader: Any = build_detection_train_loader
        parts = loader.from_config(cfg, sampler=())
        listed, alike = parts["dataset"], parts["aspect_ratio_grouping"]
        batch = parts["total_batch_size"] // comm.get_world_size()
        places = partial(shuffled, len(listed), cfg.SEED, comm.get_rank(), comm.get_world_size())
        wide = [image["width"] > image["height"] for image in listed]
        return Batches(
            dataset=listed,
            read=_Mapped(DatasetFromList(listed, copy=False), parts["mapper"]),
            places=(lambda purpose: grouped(places(purpose), wide, batch)) if alike else places,
            batch=batch,
            seed=cfg.SEED,
            rank=comm.get_rank(),
            workers=parts["num_workers"],
            collate=list,
        )

    def complete(self) -> None:
        """Train what is left to train. Raises NonFinite, and KeyboardInterrupt after a signal, the state saved."""
        if self.start_iter >= self.max_iter:
            return
        with interrupt.deferred() as self.asked:
            try:
                self.train()
            except FloatingPointError as error:
                raise NonFinite(f"{error}\nLower SOLVER.BASE_LR, or look at the checkpoint's values.") from error
            finally:
                self.batches.close()
        if any_process(self.asked(), self.me):  # in the last iteration
            raise KeyboardInterrupt

    def build_writers(self) -> list[Any]:
        folder = Path(self.cfg.OUTPUT_DIR)
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(str(folder / "log.jsonl")),
            TensorboardXWriter(str(folder)),
        ]


class _PreciseBN(hooks.PreciseBN):
    """After the last iteration, on draws of its own; the first process's statistics are those of all.

    detectron2 weighs a batch by the process's own padded pixels, so that each process would test another model.
    """

    def __init__(self, model: nn.Module, batches: Batches, iterations: int) -> None:
        super().__init__(0, model, batches, iterations)
        self._batches = batches

    def update_stats(self) -> None:
        try:
            super().update_stats()
        finally:
            self._batches.close()
        if comm.get_world_size() > 1:
            for buffer in self._model.buffers():
                dist.broadcast(buffer, 0)


class _Stop(HookBase):
    """Save and leave after the iteration in which a signal came, on all processes at once. Before the checkpointer."""

    def after_step(self) -> None:
        trainer: Any = self.trainer
        done = trainer.iter + 1
        if done < trainer.max_iter and any_process(trainer.asked(), trainer.me):
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
            barrier(trainer.me)
            log.info("stopped after %d of %d iterations; the same command goes on from there", done, trainer.max_iter)
            raise KeyboardInterrupt


@dataclass(frozen=True)
class _Mapped:
    """What detectron2's mapper makes of a listed image: read, augmented, with its boxes."""

    listed: Any  # DatasetFromList: its elements are serialised, and no loader process copies them
    mapper: Callable[[dict[str, Any]], Any]

    def __call__(self, index: int) -> Any:
        return _mapped(self.mapper, self.listed[index])


def _mapped(mapper: Callable[[dict[str, Any]], Any], image: dict[str, Any]) -> Any:
    """Raises Refused naming the image where PIL cannot read it."""
    try:
        return mapper(image)
    except (OSError, SyntaxError) as error:  # ValueError may be a bug in an augmentation, whose traceback is needed
        raise Refused(f"{image['file_name']}: the image cannot be read ({error}); restore the file.") from error


def _plain(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _sync_on_cpu(cfg: CfgNode) -> bool:
    return comm.get_world_size() > 1 and cfg.MODEL.DEVICE == "cpu" and "Sync" in cfg.MODEL.RESNETS.NORM


class _Collector(DatasetEvaluator):
    """Every detection of every test image, as arrays; masks, where the model has them, as COCO's run lengths."""

    def __init__(self, masks: bool) -> None:
        self._with_masks = masks

    def reset(self) -> None:
        self._seen: list[int] = []
        self._found: list[np.ndarray] = []  # (n, 7): image, class, score, x0, y0, x1, y1
        self._masks: list[bytes] = []  # compressed run lengths at the image's size, one a detection

    def process(self, inputs: list[Mapping[str, Any]], outputs: list[Mapping[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            rows = np.empty((len(instances), 7), np.float64)
            rows[:, 0] = image["image_id"]
            rows[:, 1] = instances.pred_classes.numpy()
            rows[:, 2] = instances.scores.numpy()
            rows[:, 3:] = instances.pred_boxes.tensor.numpy()
            self._seen.append(int(image["image_id"]))
            self._found.append(rows)
            if self._with_masks and len(instances):
                stacked = np.asfortranarray(instances.pred_masks.numpy().transpose(1, 2, 0).astype(np.uint8))
                packed: Any = run_lengths.encode(stacked)  # of (H, W, n)
                self._masks += [mask["counts"] for mask in packed]

    def evaluate(self) -> Any:  # the base class says None, and its callers use what comes
        parts = comm.gather((self._seen, self._found, self._masks), dst=0)
        if not comm.is_main_process():
            return {}
        seen = sorted(image for part in parts for image in part[0])
        if seen != list(range(len(seen))):
            raise Refused("expected every test image exactly once; this is a bug of the project.")
        rows = np.concatenate([np.empty((0, 7)), *(rows for part in parts for rows in part[1])])
        order = np.argsort(rows[:, 0], kind="stable")
        rows = rows[order]
        masks: dict[str, np.ndarray] = {}
        if self._with_masks:
            packed = [mask for part in parts for mask in part[2]]
            masks["mask_counts"] = np.frombuffer(b"".join(packed[row] for row in order), np.uint8)
            masks["mask_offsets"] = np.cumsum([0, *(len(packed[row]) for row in order)], dtype=np.int64)
        return {
            "num_images": np.int64(len(seen)),
            "image": rows[:, 0].astype(np.int64),
            "label": rows[:, 1].astype(np.int64),
            "score": rows[:, 2].astype(np.float32),
            "box": rows[:, 3:].astype(np.float32),
            **masks,
        }


if __name__ == "__main__":
    child(run)
