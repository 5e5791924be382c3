"""How well do linear classifiers on the frozen features do? (protocols §2.1 to §2.4)

The backbone stays in eval mode without gradients and is proven bit-identical afterwards. All heads of a benchmark share
one pass over the training images, whatever their layer, batch, optimiser and schedule; each is computed by itself, so a
head trained in company equals the head trained alone, bit for bit. Test features are extracted once and shared with
other benchmarks; training features change with every epoch's augmentation and are not kept.

An epoch's order is cut into fixed micro-batches for the backbone, which are shared out among processes; their features
are gathered, and every process makes the same updates on whole batches. So there is no gradient to average, batch norm
sees the whole batch, and one, two or four processes compute the same numbers.

Reported: the last epoch (D5). Of a grid of learning rates and weight decays, the head that is best on training images
held out from the grid's heads (never on test images).

A killed run goes on from the last state, at most `save_minutes` old, within an epoch too, with the same bits.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from evaluate.bootstrap import replicate_means
from evaluate.job import FeatureSpec, Job
from evaluate.recipes import HeadPlan, Settings
from zoo.config import Strict
from zoo.datasets import Manifest, decode
from zoo.errors import CheckpointError, ConfigError, NonFiniteError
from zoo.record import Measurement
from zoo.transforms import TrainTransform, apply_train, epoch_order, lighting_shift, sample_rng

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from evaluate.forward import Extractor

log = logging.getLogger(__name__)
ENGINE = None
STATE = "heads.state"
LIGHTING_VIEW = 1  # the stream of a sample's lighting, apart from its crop's, flip's and jitter's


class Execution(Strict):
    evaluate_every_epochs: Annotated[int, Field(gt=0)]  # for the history; the last epoch always
    save_minutes: Annotated[float, Field(ge=0)]


def roles(settings: Settings) -> dict[str, str]:
    return {"train": settings.train_split, "test": settings.test_split}


def features(settings: Settings) -> dict[str, FeatureSpec]:
    spec = FeatureSpec(
        transform=settings.test_transform, layers=settings.layers, forward=settings.forward, storage="fp32"
    )
    return {"test": spec}


def deterministic(settings: Settings) -> bool:
    return False


def run(job: Job) -> Measurement:
    """Top-1 and top-5 in percent after the last epoch, for every head. Raises NonFiniteError when training diverges."""
    from evaluate.forward import Extractor
    from zoo.backbone import fingerprint, load

    settings: Settings = job.settings
    train = job.manifests["train"]
    if train.labels.ndim != 1:
        raise ConfigError(f"dataset '{train.dataset}' has several labels an image: expected one, for a linear probe.")
    backbone = load(job.card, job.weights, job.me.device)
    extractor = Extractor(backbone, job.card.pixels, list(settings.layers.items()), settings.forward)
    frozen = fingerprint(extractor.frozen.state_dict())
    held_out = {n: _held_out(train, n, job.seed) for n in {r.held_out_per_class for r in settings.recipes.values()}}
    trainers = [_Trainer(job, plan, extractor, held_out[plan.recipe.held_out_per_class]) for plan in settings.heads()]
    history = _train(job, extractor, trainers)
    if fingerprint(extractor.frozen.state_dict()) != frozen:
        raise CheckpointError("the backbone changed while the heads were trained; this is a bug of the project.")
    return _measurement(job, extractor, trainers, history)


class _Trainer:
    """One head, its optimiser, and how far they are."""

    def __init__(self, job: Job, plan: HeadPlan, extractor: "Extractor", held_out: np.ndarray) -> None:
        import torch

        from evaluate.heads import Head, make_optimiser
        from zoo.backbone import num_channels

        train, test = job.manifests["train"], job.manifests["test"]
        self.plan = plan
        self.stage = list(job.settings.layers).index(plan.layer)
        self.held_out = held_out
        self.is_held_out = torch.zeros(len(train), dtype=torch.bool)
        self.is_held_out[held_out] = True
        width = job.features["test"][plan.layer].shape[1]
        self.head = Head(
            width,
            num_channels(job.card.arch, plan.layer) or width,
            int(max(train.labels.max(), test.labels.max())) + 1,
            batch_norm=plan.recipe.batch_norm,
            std=plan.recipe.head_std,
            seed=job.seed,
        ).to(job.me.device)
        self.optimiser: Optimizer = make_optimiser(
            self.head, plan.recipe.optimiser, lr=plan.lr, weight_decay=plan.weight_decay
        )
        self.losses: list[float] = []  # of the epoch so far

    def lr(self, epoch: int) -> float:
        from evaluate.heads import learning_rate

        return learning_rate(self.plan.recipe.schedule, self.plan.lr, epoch, self.plan.recipe.epochs)

    def step(self, epoch: int, rows: "Tensor", labels: "Tensor", indices: "Tensor") -> None:
        """The updates of one chunk: rows (n, D), labels and indices (n,), in the epoch's order."""
        from torch.nn.functional import cross_entropy

        for group in self.optimiser.param_groups:
            group["lr"] = self.lr(epoch)
        size = self.plan.recipe.batch_size
        for batch, wanted, samples in zip(rows.split(size), labels.split(size), indices.split(size), strict=True):
            if len(self.held_out):
                kept = ~self.is_held_out[samples].to(batch.device)
                batch, wanted = batch[kept], wanted[kept]
            if len(batch) == 0:
                continue
            loss = cross_entropy(self.head(batch), wanted)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            self.losses.append(loss.item())
            if not np.isfinite(self.losses[-1]):
                raise NonFiniteError(
                    f"head {self.plan.key}: its loss is NaN or infinite in epoch {epoch}; the features or the learning "
                    "rate are too large."
                )

    def rank(self, rows: np.ndarray) -> np.ndarray:
        """(N, min(5, classes)) most likely classes of each row of features, best first."""
        import torch

        device = next(self.head.parameters()).device
        self.head.eval()
        with torch.inference_mode():
            blocks = (np.array(rows[i : i + 4096]) for i in range(0, len(rows), 4096))  # memory-mapped: block by block
            logits = [self.head(torch.from_numpy(block).to(device)).cpu() for block in blocks]
        self.head.train()
        return torch.cat(logits).topk(min(5, logits[0].shape[1]), dim=1).indices.numpy()

    def state(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "optimiser": self.optimiser.state_dict(), "losses": self.losses}

    def load(self, state: Mapping[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses = list(state["losses"])


def _train(job: Job, extractor: "Extractor", trainers: Sequence[_Trainer]) -> list[dict[str, Any]]:
    """Train all heads to their last epochs; what happened, an entry a head and epoch.

    Raises KeyboardInterrupt when asked to stop, the state saved.
    """
    from zoo.distributed import any_process
    from zoo.interrupt import deferred

    settings: Settings = job.settings
    labels = _tensor(job.manifests["train"].labels)
    plan = _plan(len(labels), settings.epochs, settings.chunk, job.seed)
    history: list[dict[str, Any]] = []
    begun = _resume(job, trainers, history)
    saved = time.monotonic()
    with deferred() as interrupted:
        for number, rows in enumerate(_feature_chunks(job, extractor, plan[begun:]), start=begun):
            chunk = plan[number]
            indices = _tensor(chunk.indices)
            for trainer in trainers:
                if chunk.epoch < trainer.plan.recipe.epochs:
                    stage = rows[trainer.stage]
                    trainer.step(chunk.epoch, stage, labels[indices].to(stage.device), indices)
            if chunk.is_last:
                history += _epoch_ends(job, trainers, chunk.epoch)
            stop = any_process(interrupted(), job.me)
            if stop or time.monotonic() - saved >= 60 * job.execution.save_minutes and number + 1 < len(plan):
                _save(job, trainers, history, number + 1)
                saved = time.monotonic()
            if stop:
                log.info("linear: stopped after %d of %d chunks", number + 1, len(plan))
                raise KeyboardInterrupt
    return history


def _epoch_ends(job: Job, trainers: Sequence[_Trainer], epoch: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    test = job.manifests["test"]
    for trainer in trainers:
        last = trainer.plan.recipe.epochs - 1
        if epoch > last:
            continue
        entry: dict[str, Any] = {"head": trainer.plan.key, "epoch": epoch, "lr": trainer.lr(epoch)}
        entry["loss"] = float(np.mean(trainer.losses)) if trainer.losses else None
        trainer.losses = []
        if epoch == last or (epoch + 1) % job.execution.evaluate_every_epochs == 0:
            ranked = trainer.rank(job.features["test"][trainer.plan.layer])
            entry["top1"] = 100.0 * float((ranked[:, 0] == test.labels).mean())
        log.info(
            "linear: %s", ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in entry.items())
        )
        entries.append(entry)
    return entries


def _measurement(
    job: Job, extractor: "Extractor", trainers: Sequence[_Trainer], history: list[dict[str, Any]]
) -> Measurement:
    test = job.manifests["test"]
    metrics: dict[str, float] = {}
    replicates: dict[str, np.ndarray] = {}
    per_sample: dict[str, np.ndarray] = {}
    chosen, choices = _choose(job, extractor, trainers)
    for group, trainer in chosen.items():
        ranked = trainer.rank(job.features["test"][trainer.plan.layer])
        hits = ranked == test.labels[:, None]
        for name, right in ((f"top1_{group}", hits[:, 0]), (f"top5_{group}", hits.any(1))):
            metrics[name] = 100.0 * float(right.mean())
            replicates[name] = 100.0 * replicate_means(right.astype(float), manifest_sha256=test.sha256)
        per_sample[f"predicted_{group}"] = ranked[:, 0].astype(np.int32)
    details = {"history": history, "backbone_unchanged": True}
    selection = "last epoch"
    if choices:
        details["grid"] = choices
        selection += ", learning rate and weight decay best on held-out training images"
    return Measurement(
        metrics=metrics,
        num_scored=len(test),
        selection=selection,
        per_sample=per_sample,
        replicates=replicates,
        details=details,
        files={"heads.safetensors": _packed(chosen)},
    )


def _choose(
    job: Job, extractor: "Extractor", trainers: Sequence[_Trainer]
) -> tuple[dict[str, _Trainer], dict[str, list[dict[str, float]]]]:
    """(group → its head: the only one, or a grid's best on the held-out images; what each of a grid scored there)."""
    from evaluate.features import extract

    chosen: dict[str, _Trainer] = {}
    best: dict[str, float] = {}
    choices: dict[str, list[dict[str, float]]] = {}
    train, settings = job.manifests["train"], job.settings
    rows: dict[int, list[np.ndarray]] = {}  # the held-out images' features, once for all grids of one size
    for trainer in trainers:
        group, indices = trainer.plan.group, trainer.held_out
        if len(indices) == 0:
            chosen[group] = trainer
            continue
        if len(indices) not in rows:
            rows[len(indices)] = extract(
                extractor,
                train,
                transform=settings.test_transform,
                batch_size=settings.forward.batch_size,
                num_workers=job.num_workers,
                me=job.me,
                indices=indices,
            )
        ranked = trainer.rank(rows[len(indices)][trainer.stage])
        top1 = 100.0 * float((ranked[:, 0] == train.labels[indices]).mean())
        found = {"base_lr": trainer.plan.base_lr, "weight_decay": trainer.plan.weight_decay, "held_out_top1": top1}
        choices.setdefault(group, []).append(found)
        if top1 > best.get(group, -1.0):
            chosen[group], best[group] = trainer, top1
    return chosen, choices


def _held_out(train: Manifest, per_class: int, seed: int) -> np.ndarray:
    """(n,) sorted indices: the first `per_class` of each class in an order drawn from the seed. Raises ConfigError."""
    if per_class == 0:
        return np.empty(0, np.int64)
    counts = np.bincount(train.labels)
    if counts.min() <= per_class:
        raise ConfigError(
            f"held_out_per_class: expected fewer than the smallest class has, {counts.min()} (class "
            f"{int(counts.argmin())}), found {per_class}."
        )
    order = epoch_order(seed, -1 % 2**32, len(train))  # an epoch that no training reaches
    by_class = order[np.argsort(train.labels[order], kind="stable")]  # (N,) class after class, each in drawn order
    starts = np.cumsum(counts) - counts
    return np.sort(np.concatenate([by_class[start : start + per_class] for start in starts]))


def _packed(chosen: Mapping[str, _Trainer]) -> bytes:
    """The trained heads as a safetensors file: `<group>.linear.weight` and so on."""
    import safetensors.torch

    tensors = {
        f"{group}.{name}": tensor.detach().cpu().contiguous()
        for group, trainer in chosen.items()
        for name, tensor in trainer.head.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def _save(job: Job, trainers: Sequence[_Trainer], history: list[dict[str, Any]], done: int) -> None:
    from zoo.distributed import barrier
    from zoo.state import write_state

    if job.me.is_main:
        job.work.mkdir(parents=True, exist_ok=True)
        heads = {trainer.plan.key: trainer.state() for trainer in trainers}
        write_state(job.work / STATE, {"done": done, "history": history, "heads": heads})
    barrier(job.me)


def _resume(job: Job, trainers: Sequence[_Trainer], history: list[dict[str, Any]]) -> int:
    """Put heads, optimisers and history where a killed run left them; the number of chunks done (0: a new run)."""
    from zoo.state import read_state

    path = job.work / STATE  # the folder is the cell's own: settings, data, weights and seed are those of the state
    if not path.exists():
        return 0
    try:
        state = read_state(path)
    except CheckpointError as error:
        log.warning("%s Starting anew.", error)
        return 0
    for trainer in trainers:
        trainer.load(state["heads"][trainer.plan.key])
    history += state["history"]
    log.info("linear: going on after %d chunks", state["done"])
    return int(state["done"])


@dataclass(frozen=True)
class TrainImages:
    """(epoch, index) → the augmented view of that sample in that epoch."""

    manifest: Manifest
    transform: TrainTransform
    seed: int

    def __call__(self, key: tuple[int, int]) -> tuple[np.ndarray]:
        epoch, index = key
        return (apply_train(decode(self.manifest.path(index)), self.transform, sample_rng(self.seed, epoch, index)),)


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """Consecutive samples of an epoch's order, as many as the largest batch has."""

    epoch: int
    indices: np.ndarray
    is_last: bool  # of its epoch


def _plan(num_samples: int, epochs: int, size: int, seed: int) -> list[_Chunk]:
    plan: list[_Chunk] = []
    for epoch in range(epochs):
        order = epoch_order(seed, epoch, num_samples)
        starts = range(0, num_samples, size)
        plan += [_Chunk(epoch=epoch, indices=order[i : i + size], is_last=i == starts[-1]) for i in starts]
    return plan


def _feature_chunks(job: Job, extractor: "Extractor", plan: Sequence[_Chunk]) -> Iterator[list["Tensor"]]:
    """For each chunk, (n, D) float32 features of every stage, in the chunk's order, the same on every process."""
    import torch

    from zoo.distributed import gather_rows
    from zoo.loading import load_batches

    settings: Settings = job.settings
    micro = [_micro_batches(len(chunk.indices), settings.forward.batch_size) for chunk in plan]
    mine = [
        [(chunk.epoch, int(index)) for index in chunk.indices[rows]]
        for chunk, parts in zip(plan, micro, strict=True)
        for rows in parts[job.me.rank :: job.me.size]
    ]
    read = TrainImages(job.manifests["train"], settings.train_transform, job.seed)
    loaded = load_batches(read, mine, num_workers=job.num_workers, pin=job.me.device.type != "cpu")
    keys = iter(mine)
    for parts in micro:
        local: list[list[Tensor]] = [[] for _ in settings.layers]
        for _ in parts[job.me.rank :: job.me.size]:
            (images,) = next(loaded)
            shift = _shift(settings.train_transform.lighting, next(keys), job.seed)
            images = images.to(job.me.device, non_blocking=True)
            found = extractor(images, None if shift is None else shift.to(job.me.device))
            for stage, rows in zip(local, found, strict=True):
                stage.append(rows)
        with torch.inference_mode():
            gathered = [gather_rows(stage, parts, me=job.me) for stage in local]
        # plain tensors again: inference tensors cannot enter autograd
        yield [rows.clone() for rows in gathered]


def _shift(std: float, keys: Sequence[tuple[int, int]], seed: int) -> "Tensor | None":
    """(n, 3): each sample's PCA lighting; None where it is off."""
    if std == 0:
        return None
    draws = [lighting_shift(std, sample_rng(seed, epoch, index, LIGHTING_VIEW)) for epoch, index in keys]
    return _tensor(np.stack(draws))


def _tensor(values: np.ndarray) -> "Tensor":
    import torch

    return torch.from_numpy(values)


def _micro_batches(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
