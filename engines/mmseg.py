"""python -m engines.mmseg FOLDER: train and test one mmsegmentation model as FOLDER/job.json says (engines.contract).

mmengine's runner, augmentation, optimiser and schedule do the work; here are only the proofs before iteration 0, draws
that do not depend on what has run before (engines.draws), one checkpoint, from which a training goes on with the bits
of one that was never stopped, the project's log, and a test that counts every image once. Under torchrun every process
runs this, with gloo on CPUs, which mmengine's own launcher does not do.

A configuration states the batch of all processes together (train_dataloader.batch_size); each takes its share.
"""

import copy
import json
import logging
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from engines import compatibility

compatibility.prepare_mmseg()

import mmcv  # noqa: E402  # everything below needs the preparation above
import mmengine  # noqa: E402
import mmengine.device.utils as engine_device  # noqa: E402
import mmseg  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from mmcv.transforms import BaseTransform, LoadImageFromFile  # noqa: E402
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.dataset import Compose, pseudo_collate  # noqa: E402
from mmengine.hooks import CheckpointHook, Hook  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.registry import LOOPS  # noqa: E402
from mmengine.runner import IterBasedTrainLoop, Runner  # noqa: E402
from mmseg.datasets import BaseSegDataset  # noqa: E402
from mmseg.evaluation import IoUMetric  # noqa: E402
from mmseg.registry import DATASETS, MODELS, TRANSFORMS  # noqa: E402
from mmseg.utils import register_all_modules  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402
from torch.utils.tensorboard import SummaryWriter  # noqa: E402

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
from engines.draws import Batches, seed_all, shuffled  # noqa: E402
from zoo import device as devices  # noqa: E402
from zoo import interrupt  # noqa: E402
from zoo.distributed import World, any_process, barrier, gather_by_index, share, world  # noqa: E402
from zoo.errors import DataError  # noqa: E402
from zoo.images import check_whole  # noqa: E402
from zoo.masks import IGNORED, read_mask, size_problem  # noqa: E402

log = logging.getLogger(__name__)
BACKBONE = ("backbone.",)
PICTURES = 12  # label maps that are kept
AREAS = ("intersect", "union", "predicted", "labelled")  # in the order of IoUMetric.intersect_and_union
KEYS = frozenset(  # of a native configuration; the rest (paths, seeds, launcher, evaluators) is decided here
    "default_scope model train_dataloader test_dataloader train_cfg optim_wrapper param_scheduler default_hooks".split()
)


@DATASETS.register_module()
class ListedImages(BaseSegDataset):
    """The images and label maps of a JSON list, in its order, which is that of the sample indices."""

    def load_data_list(self) -> list[dict[str, Any]]:
        fixed = {"label_map": None, "reduce_zero_label": False}
        return [{**image, **fixed, "seg_fields": []} for image in json.loads(Path(self.ann_file).read_text())]


@TRANSFORMS.register_module()
class LoadPicture(LoadImageFromFile):
    """mmcv's, with a refusal that names the file; a file that is cut off would be grey where it ends (zoo.images)."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        path = Path(results["img_path"])
        try:
            check_whole(path)
            return super().transform(results)
        except DataError as error:
            raise Refused(str(error)) from error
        except Exception as error:  # which one, the reader's library decides; mmcv's own says the path only
            raise Refused(f"{path}: the image cannot be decoded; replace the file.") from error


@TRANSFORMS.register_module()
class LoadLabels(BaseTransform):
    """In the place of mmseg's LoadAnnotations: the same labels, or a refusal that names the file (zoo.masks).

    mmseg's own would train on a label that is no class, on a mask's colours, and on a mask of another picture's size.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = Path(results["seg_map_path"])
        try:
            labels = read_mask(path, self.num_classes)
        except DataError as error:
            raise Refused(str(error)) from error
        (height, width), of_image = labels.shape, results["ori_shape"]
        if problem := size_problem(path, (width, height), of_image[::-1]):
            raise Refused(problem)
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
        return results


def run(folder: Path, job: Job) -> None:
    check_weights_file(job)
    register_all_modules(init_default_scope=True)
    MMLogger.get_instance("zoo", log_level="WARNING")  # else some lines a tensor about how it was initialised
    setattr(engine_device, "DEVICE", torch.device(job.device).type)  # noqa: B010  # else the first GPU there is
    with world() as me:
        cfg = configured(job, me)
        seed_all(job.seed)  # the tensors that no checkpoint has
        model = built(cfg, me)
        if job.task == "check":
            model.init_weights()
            write_answer(folder, {"proofs": prove(model.to(job.device), cfg, job), **versions()}, {})
            return
        with loaders_refusal():
            trained = train(model, cfg, folder, job, me)
            areas, maps = tested(model, cfg, job, me)
        if me.is_main:
            measurement = {
                **trained,
                "steps": cfg["train_cfg"]["max_iters"],
                "num_scored": len(areas),
                **versions(),
            }
            write_answer(folder, measurement, {name: areas[:, row] for row, name in enumerate(AREAS)} | maps)


def versions() -> dict[str, Any]:
    packages = {"mmseg": mmseg, "mmcv": mmcv, "mmengine": mmengine, "torch": torch}
    return {"engine": {name: package.__version__ for name, package in packages.items()}}


def configured(job: Job, me: World) -> dict[str, Any]:
    """The native configuration, the checkpoint's overlay, and where things are. Raises Refused."""
    unknown = sorted(set(job.config) - KEYS)
    if unknown:
        raise Refused(f"mmseg configuration: unknown {', '.join(unknown)}; expected only {', '.join(sorted(KEYS))}.")
    cfg = _tuples(_laid_over(job.config, job.overlay, ""))
    cfg["model"]["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": job.weights}
    if job.task == "check":
        return cfg
    problems = [f"{name}: missing" for name in sorted(KEYS - set(cfg))]
    if not problems:
        problems = list(_problems(cfg, job, me))
    if problems:
        raise Refused("mmseg configuration: " + "; ".join(problems) + ".")
    for role, path in (("train", job.train), ("test", job.test)):
        loader = cfg[f"{role}_dataloader"]
        loader["dataset"] |= {"type": "ListedImages", "ann_file": path, "metainfo": {"classes": tuple(job.classes)}}
        loader["dataset"] |= {"ignore_index": IGNORED, "reduce_zero_label": False, "test_mode": role == "test"}
        loader["num_workers"] = job.workers
        pipeline = loader["dataset"]["pipeline"]
        own = {
            "LoadImageFromFile": {"type": "LoadPicture"},
            "LoadAnnotations": {"type": "LoadLabels", "num_classes": len(job.classes)},
        }
        loader["dataset"]["pipeline"] = [step | own.get(step.get("type"), {}) for step in pipeline]
        with _as_refusal():
            Compose(loader["dataset"]["pipeline"])
    cfg["train_dataloader"]["batch_size"] //= me.size
    return cfg


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any], at: str) -> dict[str, Any]:
    """`above`'s values over `below`'s, mapping by mapping. Raises Refused where it would turn a part into another."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if key == "type" and old not in (None, value):
            raise Refused(
                f"{at}type: expected {value}, found {old}. The checkpoint's weights fill a {value}, which begins with "
                "one 7x7 convolution; in a deep stem (ResNetV1c, ResNetV1d) three 3x3 ones would stay random."
            )
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _laid_over(old, value, f"{at}{key}.")
        else:
            result[key] = value
    return result


def _tuples(value: Any) -> Any:
    """Plain data of one's own, with lists of scalars as tuples: what mmseg insists on for sizes."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    if not isinstance(value, list | tuple):
        return value
    items = [_tuples(item) for item in value]
    return items if any(isinstance(item, Mapping) for item in items) else tuple(items)


def _problems(cfg: Mapping[str, Any], job: Job, me: World) -> Iterator[str]:
    assert cfg["train_dataloader"]["batch_size"] % me.size == 0, "the parent has seen to it"
    if set(cfg["train_dataloader"]) != {"batch_size", "sampler", "dataset"}:
        yield f"train_dataloader: expected batch_size, sampler and dataset, found {', '.join(cfg['train_dataloader'])}"
    elif cfg["train_dataloader"]["sampler"] != {"type": "InfiniteSampler", "shuffle": True}:
        found = cfg["train_dataloader"]["sampler"]
        yield f"train_dataloader.sampler: expected a shuffled InfiniteSampler, found {found}"
    for head in ("decode_head", "auxiliary_head"):
        found = cfg["model"][head].get("num_classes")
        if found != len(job.classes):
            yield f"model.{head}.num_classes is {found}, the data has {len(job.classes)}"
    if cfg["train_cfg"].get("type") != "IterBasedTrainLoop":
        yield f"train_cfg.type: expected IterBasedTrainLoop, found {cfg['train_cfg'].get('type')}"
    if set(cfg["default_hooks"]) != {"checkpoint"}:
        yield f"default_hooks: expected checkpoint alone, found {', '.join(sorted(cfg['default_hooks']))}"
    train, test = (cfg[f"{role}_dataloader"]["dataset"]["pipeline"] for role in ("train", "test"))
    if train[0] != test[0]:
        yield f"training reads images by {train[0]}, testing by {test[0]}"


@contextmanager
def _as_refusal() -> Iterator[None]:
    """mmseg's complaint about a type or key that it does not know, as ours."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise Refused(f"mmseg does not know this configuration: {error}") from error


def built(cfg: Mapping[str, Any], me: World) -> Any:
    """The model, its weights not loaded yet. In one process mmengine's runner makes plain batch norms of SyncBN."""
    with _as_refusal():
        model = MODELS.build(ConfigDict(copy.deepcopy(cfg["model"])))
    return devices.synchronised_batch_norm(model, me.device) if me.size > 1 and me.device.type == "cpu" else model


def prove(model: nn.Module, cfg: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """The proofs of engines.contract on a model whose weights have just been loaded. Raises Refused."""
    count = check_tensors(model.state_dict(), job, BACKBONE)
    stages = check_stages(job, lambda path: _pixels(model, cfg, path), lambda pixels: _stages(model, pixels))
    return {"tensors": count, "largest_difference": stages}


def _pixels(model: Any, cfg: Mapping[str, Any], path: str) -> Tensor:
    """An image file by the pipeline's first step and the model's own normalisation."""
    loader = cfg["train_dataloader"]["dataset"]["pipeline"][0] if "train_dataloader" in cfg else None
    image = TRANSFORMS.build(dict(loader or {"type": "LoadImageFromFile"}))({"img_path": path})["img"]
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return model.data_preprocessor({"inputs": [tensor]}, training=False)["inputs"].cpu()


def _stages(model: Any, pixels: Tensor) -> dict[str, Tensor]:
    backbone = copy.deepcopy(model.backbone).cpu().to(pixels.dtype)
    backbone.eval()  # mmseg's returns nothing
    outputs = backbone(pixels)
    return {f"feature{number}": output for number, output in enumerate(outputs, start=2)}


def train(model: nn.Module, cfg: Mapping[str, Any], folder: Path, job: Job, me: World) -> dict[str, Any]:
    """Train `model` in place from the last checkpoint, or from its proven weights; what the record says of it.

    Raises KeyboardInterrupt after a signal, the state saved.
    """
    if me.is_main:
        _OneCheckpoint.sweep(folder)
    barrier(me)
    last = _OneCheckpoint.newest(folder)
    on_cpu = me.device.type == "cpu"
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
    wrapper["device_ids"] = None if on_cpu else [me.local_rank]
    hooks: dict[str, Any] = {
        "checkpoint": _OneCheckpoint(by_epoch=False, interval=cfg["default_hooks"]["checkpoint"]["interval"]),
        "timer": None,
        "logger": None,  # _Log
    }
    batches: Any = batches_of(cfg["train_dataloader"], job, me)
    runner = _Runner(
        model=model,
        work_dir=str(folder),
        train_dataloader=batches,
        train_cfg=cfg["train_cfg"] | {"type": "ExactLoop"},
        optim_wrapper=cfg["optim_wrapper"],
        param_scheduler=cfg["param_scheduler"],
        default_hooks=hooks,
        load_from=str(last) if last else None,
        resume=last is not None,
        launcher="pytorch" if me.size > 1 else "none",
        log_level="WARNING",
        visualizer={"type": "Visualizer"},
        default_scope="mmseg",
        randomness={"seed": job.seed},
        experiment_name="zoo",
        cfg=Config({"model_wrapper_cfg": wrapper}),
    )
    begin = _Begin(folder, cfg, job, me)
    runner.register_hook(begin)
    runner.register_hook(_Log(folder, me))
    with interrupt.deferred() as asked:
        runner.register_hook(_Stop(asked, me), priority="LOWEST")  # after the schedule's and the checkpoint's
        runner.train()
    if any_process(asked(), me):  # in the last iteration
        raise KeyboardInterrupt
    # the runner puts plain batch norms in place of SyncBN inside this very model, and wraps it without copying
    assert _plain(runner.model) is model
    optimiser: Any = runner.optim_wrapper
    return {
        "proofs": begin.proofs,
        "batch": batches.batch * me.size,
        "lr": optimiser.param_groups[0]["initial_lr"],
        "resumed_at": begin.start,
    }


def batches_of(loader: Mapping[str, Any], job: Job, me: World) -> Batches:
    """What mmengine's loader with its InfiniteSampler would hand over, with draws that the iteration decides."""
    dataset: Any = DATASETS.build(loader["dataset"])
    return Batches(
        dataset=dataset,
        read=dataset.__getitem__,
        places=partial(shuffled, len(dataset), job.seed, me.rank, me.size),
        batch=loader["batch_size"],
        seed=job.seed,
        rank=me.rank,
        workers=loader["num_workers"],
        collate=pseudo_collate,
    )


@LOOPS.register_module()
class ExactLoop(IterBasedTrainLoop):
    """Goes on with the batch that is due, where mmengine's first reads all earlier ones."""

    dataloader: Any

    def run(self) -> Any:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader.start = self.iter
        try:
            for batch in islice(self.dataloader, self.max_iters - self.iter):
                self.runner.model.train()
                self.run_iter(batch)
        finally:
            self.dataloader.close()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


def _plain(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


class _Runner(Runner):
    """mmengine's runner without a folder, a log file and dumps of configuration and environment at each start."""

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        super().setup_env(env_cfg)
        self._timestamp = ""  # its log folder is the work folder then

    def build_logger(self, log_level: int | str = "WARNING", log_file: str | None = None, **options: Any) -> MMLogger:
        return MMLogger.get_instance("zoo", log_level=log_level)

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        pass

    def dump_config(self) -> None:
        pass


class _OneCheckpoint(CheckpointHook):
    """Keeps the last checkpoint only; a kill while it is written leaves the one before.

    mmengine's own `max_keep_ckpts=1` removes the old file before it writes the new one.
    """

    @staticmethod
    def newest(folder: Path) -> Path | None:
        """The last whole checkpoint: a zip archive has its directory at its end, which a torn file lacks."""
        whole = [path for path in folder.glob("iter_*.pth") if zipfile.is_zipfile(path)]
        return max(whole, key=lambda path: int(path.stem.removeprefix("iter_")), default=None)

    @classmethod
    def sweep(cls, folder: Path) -> None:
        """Remove all but the newest checkpoint."""
        last = cls.newest(folder)
        for path in folder.glob("iter_*.pth"):
            if path != last:
                path.unlink()

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        if runner.rank == 0:
            self.sweep(Path(runner.work_dir))

    def save(self, runner: Any) -> None:
        self._save_checkpoint(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Tensors, numbers and strings only: the log's histories are pickled objects, and log.jsonl has them."""
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}


class _Begin(Hook):
    """The proofs, once weights or a checkpoint have been loaded."""

    def __init__(self, folder: Path, cfg: Mapping[str, Any], job: Job, me: World) -> None:
        self.folder, self.cfg, self.job, self.me = folder, cfg, job, me
        self.start = 0
        self.proofs: dict[str, Any] = {}

    def before_train(self, runner: Any) -> None:
        self.start = runner.iter
        stored = self.folder / "proofs.json"
        if self.start:
            log.info("resuming at iteration %d", self.start)
            self.proofs = json.loads(stored.read_text())
            return
        self.proofs = prove(_plain(runner.model), self.cfg, self.job)
        log.info(
            "mmseg: %d backbone tensors are the checkpoint's bit for bit; largest difference %s",
            self.proofs["tensors"],
            self.proofs["largest_difference"],
        )
        if self.me.is_main:
            stored.write_text(json.dumps(self.proofs))


class _Stop(Hook):
    """Save and leave after the iteration in which a signal came, on all processes at once."""

    def __init__(self, asked: Callable[[], bool], me: World) -> None:
        self.asked, self.me = asked, me

    def after_train_iter(self, runner: Any, *batch: Any, **outputs: Any) -> None:
        done = runner.iter + 1
        if done < runner.max_iters and any_process(self.asked(), self.me):
            checkpoint = next(hook for hook in runner.hooks if isinstance(hook, _OneCheckpoint))
            if not checkpoint.every_n_train_iters(runner, checkpoint.interval):  # else there is one of this iteration
                checkpoint.save(runner)
            barrier(self.me)
            log.info("stopped after %d of %d iterations; the same command goes on from there", done, runner.max_iters)
            raise KeyboardInterrupt


class _Log(Hook):
    """log.jsonl, TensorBoard's events and a line on stderr, each the mean since the last; stops at a loss that is NaN.

    In a run of many processes: the first one's losses, as mmengine logs them.
    """

    def __init__(self, folder: Path, me: World) -> None:
        self.folder, self.me = folder, me
        self.seen: list[dict[str, float]] = []

    def before_train(self, runner: Any) -> None:
        if self.me.is_main:
            cut_back(self.folder / "log.jsonl", runner.iter)
            self.events = SummaryWriter(str(self.folder), purge_step=runner.iter)
        self.since = time.perf_counter()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        values = {name: float(value) for name, value in (outputs or {}).items()}
        wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
        if wrong:
            raise NonFinite(
                f"iteration {runner.iter}: {wrong}. Lower optim_wrapper.optimizer.lr, or look at the checkpoint's "
                "values."
            )
        self.seen.append(values)
        done = runner.iter + 1
        if done % log_period(runner.max_iters) == 0 or done == runner.max_iters:
            if self.me.is_main:
                self._write(runner)
            self.seen, self.since = [], time.perf_counter()

    def _write(self, runner: Any) -> None:
        means = {name: sum(values[name] for values in self.seen) / len(self.seen) for name in self.seen[0]}
        entry: dict[str, float] = {"iteration": runner.iter, "loss": means.pop("loss")}
        entry |= {"lr": runner.optim_wrapper.get_lr()["lr"][0], **means}
        entry["time"] = (time.perf_counter() - self.since) / len(self.seen)
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            if name != "iteration":
                self.events.add_scalar(name, value, runner.iter)
        self.events.flush()
        log.info(
            "iteration %d of %d: loss %.4f, lr %.5f, %.2f s each",
            runner.iter + 1,
            runner.max_iters,
            entry["loss"],
            entry["lr"],
            entry["time"],
        )

    def after_train(self, runner: Any) -> None:
        if self.me.is_main:
            self.events.close()


def tested(model: Any, cfg: Mapping[str, Any], job: Job, me: World) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N, 4, C) pixels of every test image in sample order, AREAS by class; every process tests its share.

    Also the first few label maps of this process, to be looked at: "map_<sample>" → (H, W) uint8.
    """
    dataset: Any = DATASETS.build(cfg["test_dataloader"]["dataset"])
    mine: Sequence[int] = share(range(len(dataset)), me)
    images = DataLoader(Subset(dataset, mine), batch_size=1, num_workers=job.workers, collate_fn=pseudo_collate)
    areas = np.zeros((len(mine), len(AREAS), len(job.classes)), np.int64)
    maps: dict[str, np.ndarray] = {}
    model.eval()
    for row, batch in enumerate(images):
        with torch.no_grad():
            (sample,) = model.test_step(batch)
        predicted = sample.pred_sem_seg.data.squeeze(0)
        labels = sample.gt_sem_seg.data.squeeze(0).to(predicted.device)
        found = IoUMetric.intersect_and_union(predicted, labels, len(job.classes), IGNORED)
        areas[row] = torch.stack(found).round().long().numpy()
        if row < PICTURES:
            maps[f"map_{mine[row]}"] = predicted.cpu().numpy().astype(np.uint8)
    return gather_by_index(np.array(mine, np.int64), areas, total=len(dataset), me=me), maps


if __name__ == "__main__":
    child(run)
