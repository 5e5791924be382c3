"""The VOC SVM on features made by hand: truths, difficult images, how costs and layers are chosen, errors."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from evaluate import svm_solver, voc_svm
from evaluate.job import Job, LayerName
from evaluate.ranking import average_precision_every_point
from evaluate.voc_svm import Execution, Settings
from zoo.benchmark import BenchmarkConfig
from zoo.checkpoint import CheckpointCard
from zoo.config import load, validate
from zoo.datasets import Manifest
from zoo.distributed import World
from zoo.errors import ConfigError, DataError, NonFiniteError
from zoo.files import CONFIGS
from zoo.record import Measurement

NAMES = ("cat", "dog", "tree")
ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SETTINGS: dict[str, Any] = {
    "train_split": "trainval",
    "test_split": "test",
    "features": {
        "transform": {"resize": 64, "crop": 64, "interpolation": "bilinear", "fit": "squash"},
        "layers": {
            "feature4": {"kernel": 2, "stride": 2, "padding": 0},
            "feature5": {"kernel": 2, "stride": 2, "padding": 0},
            "avgpool": None,
        },
        "forward": {
            "batch_size": 8,
            "precision": "fp32",
            "memory_format": "contiguous",
            "fuse_batch_norm": False,
            "compile": False,
        },
        "storage": "fp32",
    },
    "norm_eps": 1e-5,
    "costs": (1.0, 0.1, 0.01),
    "folds": 3,
    "positive_weight": 2.0,
    "solver": {"back_end": "newton", "precision": "fp64", "tolerance": 1e-8},
    "low_shot": {
        "k": (1, 2, 4),
        "trials": 5,
        "negatives_per_positive": 3,
        "costs": (10.0, 0.1),
        "layer": "best",
        "seed": 0,
        "sha256": None,
    },
}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voc_svm, "class_names", lambda dataset: NAMES)


def settings(**changes: Any) -> Settings:
    return validate(SETTINGS | changes, Settings, where="test")


def listed(split: str, labels: np.ndarray) -> Manifest:
    paths = tuple(f"images/{number:06d}.jpg" for number in range(len(labels)))
    return Manifest(
        dataset="voc07",
        split=split,
        root=Path(),
        paths=paths,
        labels=labels,
        annotations=(),
        sha256="ab" * 32,
        folders=(),
    )


@dataclass
class World3:
    """Three classes over 12 values; `signal` says how well each layer shows them."""

    signal: dict[LayerName, float] = field(default_factory=lambda: {"feature4": 0.5, "feature5": 4.0, "avgpool": 6.0})
    num_train: int = 80
    num_test: int = 60
    difficult: float = 0.0

    def job(self, chosen: Settings | None = None, me: World = ALONE, **execution: Any) -> Job:
        rng = np.random.default_rng(0)
        labels = {
            role: rng.choice([1, 0, -1], p=[0.25, 0.75 - self.difficult, self.difficult], size=(count, 3))
            for role, count in (("train", self.num_train), ("test", self.num_test))
        }
        rows: dict[str, dict[LayerName, np.ndarray]] = {
            role: {
                layer: (
                    0.3 * rng.normal(size=(len(found), 12))
                    + strength * (found == 1) @ np.eye(3, 12)
                    + 3.0 * np.eye(12)[11]  # in every image, so that normalising does not blow up an empty one's noise
                ).astype(np.float32)
                for layer, strength in self.signal.items()
            }
            for role, found in labels.items()
        }
        splits = {"train": "trainval", "test": "test"}
        return Job(
            settings=chosen or settings(),
            execution=Execution(**{"memory_mb": 512, "low_shot_files": None} | execution),
            seed=0,
            card=CheckpointCard.model_construct(),
            weights=Path(),
            manifests={role: listed(splits[role], found.astype(np.int8)) for role, found in labels.items()},
            features=rows,
            num_workers=1,
            me=me,
            work=Path(),
            procs=1,
        )


def with_labels(job: Job, role: str, change: Callable[[np.ndarray], None]) -> Job:
    labels = job.manifests[role].labels.copy()
    change(labels)
    return replace(job, manifests={**job.manifests, role: replace(job.manifests[role], labels=labels)})


@pytest.fixture(scope="module")
def measured() -> Measurement:
    patch = pytest.MonkeyPatch()
    patch.setattr(voc_svm, "class_names", lambda dataset: NAMES)
    try:
        return voc_svm.run(World3().job())
    finally:
        patch.undo()


def test_separable_features_give_100_with_all_images_and_with_few(measured: Measurement) -> None:
    for name in ("svm", "svm_feature5", "svm_clean", "low_shot_k4", "low_shot_clean_k4"):
        assert measured.metrics[name] == pytest.approx(100.0, abs=0.1), name
    assert measured.metrics["svm_feature4"] < 99


def test_shuffled_labels_give_chance() -> None:
    job = World3(num_train=150, num_test=200).job(settings(low_shot=None))
    job = with_labels(job, "train", np.random.default_rng(1).shuffle)
    found = voc_svm.run(job).metrics
    assert abs(found["svm_clean"] - 25.0) < 12.0  # a quarter of the images shows a class


def test_the_best_layer_is_a_feature_map_chosen_on_test_or_by_cross_validation(measured: Measurement) -> None:
    assert measured.labels == {"best_layer": "feature5", "best_layer_clean": "feature5"}
    assert measured.metrics["svm"] == measured.metrics["svm_feature5"]
    job = World3().job(settings(low_shot=None))
    swapped: dict[LayerName, LayerName] = {"feature4": "feature5", "feature5": "feature4", "avgpool": "avgpool"}
    tests = {layer: job.features["test"][other] for layer, other in swapped.items()}
    trained = {layer: job.features["train"]["feature5"] for layer in swapped}
    trained["feature4"] = job.features["train"]["feature4"] * 0 + 1  # says nothing in training
    found = voc_svm.run(replace(job, features={"train": trained, "test": tests}))
    assert found.labels["best_layer_clean"] == "feature5"
    assert found.metrics["svm_clean"] == found.metrics["svm_feature5"]


def test_names_replicates_trials_and_counts_belong_together(measured: Measurement) -> None:
    shots = {f"low_shot_k{k}" for k in (1, 2, 4)} | {"low_shot_clean_k2", "low_shot_clean_k4"}  # k=1 has no folds
    full = {"svm", "svm_clean", "svm_feature4", "svm_feature5", "svm_avgpool"}
    assert set(measured.metrics) == set(measured.replicates) == shots | full
    assert set(measured.details["trials"]) == shots
    assert measured.num_scored == 60
    assert measured.per_sample["scores"].shape == (60, 3) and measured.per_sample["scores"].dtype == np.float32
    for name, values in measured.replicates.items():
        assert values.shape == (1000,)
        assert abs(values.mean() - measured.metrics[name]) < 3.0
    for name in shots:
        spread = measured.details["trials"][name]
        assert spread["n"] == 5 and spread["min"] <= measured.metrics[name] <= spread["max"]


def test_stored_scores_give_the_metric(measured: Measurement) -> None:
    truth = World3().job().manifests["test"].labels
    ap = average_precision_every_point(measured.per_sample["scores"], truth == 1, truth != -1)
    assert 100 * ap.mean() == pytest.approx(measured.metrics["svm"], abs=1e-4)


def test_the_published_low_shot_cost_is_the_best_mean_on_test_and_the_clean_one_is_not(
    measured: Measurement,
) -> None:
    found = measured.details["low_shot"]["k"]["2"]["feature5"]
    by_cost = np.array(found["test_map_by_trial_and_cost"])
    assert by_cost.shape == (5, 2)
    assert measured.metrics["low_shot_k2"] == pytest.approx(by_cost.mean(0).max())
    assert found["cost"] == (10.0, 0.1)[by_cost.mean(0).argmax()]
    chosen = [(10.0, 0.1).index(cost) for cost in found["costs_clean"]]
    assert chosen == np.array(found["cv_map_by_trial_and_cost"]).argmax(1).tolist()
    assert measured.metrics["low_shot_clean_k2"] == pytest.approx(by_cost[range(5), chosen].mean())
    assert found["folds"] == 2 and measured.details["low_shot"]["k"]["4"]["feature5"]["folds"] == 3
    spread = measured.details["trials"]["low_shot_k2"]
    column = by_cost[:, by_cost.mean(0).argmax()]
    assert spread["std"] == pytest.approx(column.std(ddof=1))
    assert found["std_of_published_tools"] == pytest.approx(column.std())


def test_chosen_costs_equal_those_of_scikit_learns_cross_validation() -> None:
    costs = (3.0, 0.1, 0.003)
    job = World3(signal={"feature5": 0.5}, num_train=120, difficult=0.1).job(
        settings(low_shot=None, costs=costs, features=SETTINGS["features"] | {"layers": {"feature5": FEATURE5}})
    )
    found = voc_svm.run(job).details["full"]["feature5"]["classes"]
    rows = job.features["train"]["feature5"].astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-5
    for column, name in enumerate(NAMES):
        truth = np.where(job.manifests["train"].labels[:, column] == 1, 1, -1)
        ap = [
            cross_val_score(
                LinearSVC(C=cost, class_weight={1: 2, -1: 1}, tol=1e-8, max_iter=100_000, random_state=0),
                rows,
                truth,
                cv=3,
                scoring="average_precision",
            ).mean()
            for cost in costs
        ]
        assert found[name]["cost"] == costs[int(np.argmax(ap))]
        assert found[name]["cv_ap"] == pytest.approx(100 * max(ap), abs=0.05)


FEATURE5 = {"kernel": 2, "stride": 2, "padding": 0}


def test_equal_costs_go_to_the_first_in_list_order() -> None:
    for costs in ((5.0, 0.5, 50.0), (50.0, 5.0, 0.5)):  # all separate perfectly
        job = World3(signal={"feature4": 9.0, "feature5": 9.0, "avgpool": 9.0}).job(settings(costs=costs))
        found = voc_svm.run(job)
        assert {entry["cost"] for entry in found.details["full"]["feature4"]["classes"].values()} == {costs[0]}
        assert found.labels["best_layer"] == "feature4"


class Spy:
    """The solver, remembering what it was asked."""

    def __init__(self) -> None:
        self.targets: list[np.ndarray] = []

    def __call__(self, features: np.ndarray, targets: np.ndarray, *rest: Any, **options: Any) -> Iterator[Any]:
        self.targets.append(targets.copy())
        return _SOLVE(features, targets, *rest, **options)


_SOLVE = svm_solver.solve


def test_difficult_images_are_negatives_in_full_training_and_in_no_low_shot_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spy = Spy()
    monkeypatch.setattr(svm_solver, "solve", spy)
    job = World3(difficult=0.2).job()
    voc_svm.run(job)
    labels = job.manifests["train"].labels
    whole = spy.targets[0][:, -3:]  # behind three folds of three classes
    np.testing.assert_array_equal(whole, np.where(labels == 1, 1, -1))
    folds = spy.targets[0][:, :-3].reshape(len(labels), 3, 3)
    assert ((folds == 0).sum(1) == 1).all()  # each image is held out once
    for targets in spy.targets[3:]:  # after three layers: low-shot
        of_class = targets.reshape(len(labels), -1, 3)
        assert (of_class[np.broadcast_to((labels == -1)[:, None], of_class.shape)] == 0).all()
    assert {(targets[:, -1] == 1).sum() for targets in spy.targets[3:]} == {1, 2, 4}
    assert {(targets[:, -1] == -1).sum() for targets in spy.targets[3:]} == {3, 6, 12}


def test_difficult_test_images_count_neither_way() -> None:
    """An image that looks like a class but does not show it costs precision; marked difficult, it does not."""
    job = World3().job(settings(low_shot=None))
    rows = job.features["test"]
    rows["feature5"][:, :3] = np.where(np.arange(60)[:, None] == 0, 9.0, rows["feature5"][:, :3])
    outcomes = []
    for label in (0, -1):

        def mark(labels: np.ndarray, label: int = label) -> None:
            labels[0] = label

        outcomes.append(voc_svm.run(with_labels(job, "test", mark)).metrics["svm_feature5"])
    assert outcomes[1] == pytest.approx(100.0, abs=0.1)
    assert outcomes[0] < outcomes[1] - 1.0


def test_liblinear_agrees_and_says_how_often_it_did_not_converge() -> None:
    job = World3().job(settings(solver={"back_end": "liblinear", "tolerance": 1e-8, "max_iterations": 100_000}))
    newton, liblinear = voc_svm.run(World3().job()), voc_svm.run(job)
    for name, value in newton.metrics.items():
        assert liblinear.metrics[name] == pytest.approx(value, abs=0.05), name
    assert liblinear.labels == newton.labels
    assert liblinear.details["full"]["feature5"]["solver"]["not_converged"] == 0
    assert newton.details["full"]["feature5"]["solver"]["fits"] == 3 * 3 * 3 + 3 * 3


def test_two_processes_measure_what_one_does(measured: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, slots, results, own = threading.Barrier(2), [None, None], [None, None], threading.local()

    def all_gather(parts: list[Any], mine: Any) -> None:
        slots[own.rank] = mine
        meeting.wait(60)
        parts[:] = slots
        meeting.wait(60)

    def process(rank: int) -> None:
        own.rank = rank
        results[rank] = voc_svm.run(World3().job(me=replace(ALONE, rank=rank, size=2)))  # type: ignore[call-overload]

    monkeypatch.setattr("torch.distributed.all_gather_object", all_gather)
    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert isinstance(result, Measurement)
        assert result.metrics == measured.metrics and list(result.metrics) == list(measured.metrics)
        assert result.details == measured.details and result.labels == measured.labels
        np.testing.assert_array_equal(result.per_sample["scores"], measured.per_sample["scores"])
        for name, values in measured.replicates.items():
            np.testing.assert_array_equal(result.replicates[name], values)


def test_a_named_low_shot_layer_is_used_for_both_ways(measured: Measurement) -> None:
    low_shot = SETTINGS["low_shot"] | {"layer": "avgpool", "k": (2,)}
    found = voc_svm.run(World3().job(settings(low_shot=low_shot)))
    assert list(found.details["low_shot"]["k"]["2"]) == ["avgpool"]
    assert found.details["low_shot"]["sha256"] != measured.details["low_shot"]["sha256"]  # other ks, other sets


def config(chosen: Settings, **execution: Any) -> BenchmarkConfig[Settings, Execution]:
    return BenchmarkConfig[Settings, Execution].model_construct(
        dataset="voc07", settings=chosen, execution=Execution(**{"memory_mb": 1, "low_shot_files": None} | execution)
    )


def test_sets_written_for_others_read_back_give_the_same_numbers(
    measured: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = World3().job()
    monkeypatch.setattr(voc_svm, "manifest", lambda dataset, split: job.manifests["train"])
    paths, sha256 = voc_svm.write_low_shot_sets(config(settings()), tmp_path)
    assert len(paths) == 15 and sha256 == measured.details["low_shot"]["sha256"]
    files = f"{tmp_path}/train_targets_sample{{sample}}_k{{k}}.npy"
    from_files = settings(low_shot=SETTINGS["low_shot"] | {"seed": None, "sha256": sha256})
    found = voc_svm.run(World3().job(from_files, low_shot_files=files))
    assert found.metrics == measured.metrics
    with pytest.raises(ConfigError, match=r"settings\.low_shot: expected low-shot settings, found null"):
        voc_svm.write_low_shot_sets(config(settings(low_shot=None)), tmp_path)


@pytest.mark.parametrize(
    ("low_shot", "files", "message"),
    [
        ({}, "x", "found seed 0 and files x"),
        ({"seed": None, "sha256": "a" * 64}, None, "found seed None and files None"),
        ({"seed": None, "sha256": "a" * 64}, "sets_k{k}.npy", "a path with {sample} and {k}, found sets_k{k}.npy"),
        ({"sha256": "a" * 64}, None, f"expected low-shot sets {'a' * 64}, found "),
        ({"k": (1, 80)}, None, "k=80 needs 80 positive and 240 negative"),
    ],
)
def test_low_shot_sets_that_cannot_be_had_are_errors(low_shot: dict[str, Any], files: str | None, message: str) -> None:
    job = World3().job(settings(low_shot=SETTINGS["low_shot"] | low_shot), low_shot_files=files)
    with pytest.raises(ConfigError) as caught:
        voc_svm.run(job)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"costs": (1.0, 1.0)}, "costs: expected different values, found one twice"),
        ({"low_shot": SETTINGS["low_shot"] | {"costs": (1.0, 1.0)}}, "low_shot.costs: expected different values"),
        ({"low_shot": SETTINGS["low_shot"] | {"k": (2, 1)}}, "k: expected increasing values, found [2, 1]"),
        ({"low_shot": SETTINGS["low_shot"] | {"trials": 4}}, "low_shot.trials: input should be 5, found 4"),
        ({"low_shot": SETTINGS["low_shot"] | {"seed": None}}, "read from files (seed: null) must be pinned"),
        ({"low_shot": SETTINGS["low_shot"] | {"layer": "feature1"}}, "expected best or one of feature4, feature5"),
        ({"features": SETTINGS["features"] | {"layers": {"avgpool": None}}}, "at least one of feature1 to feature5"),
        ({"solver": {"back_end": "magic"}}, "solver.back_end: expected one of 'newton', 'liblinear', found 'magic'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(**changes)
    assert message in str(caught.value)


def test_classes_without_enough_positives_are_all_named() -> None:
    def rare(labels: np.ndarray) -> None:
        labels[:, 0] = np.arange(len(labels)) < 2
        labels[:, 2] = np.where(np.arange(len(labels)) < 3, -1, 0)

    job = World3().job()
    with pytest.raises(DataError) as caught:
        voc_svm.run(with_labels(with_labels(job, "train", rare), "test", rare))
    text = str(caught.value)
    assert "cat: expected at least 3 positive and 3 other images in trainval, one a fold, found 2 and 78" in text
    assert "tree: expected at least 3 positive and 3 other images in trainval, one a fold, found 0 and 80" in text
    assert "tree: expected a positive image in test, found none" in text
    assert "dog" not in text


def test_single_label_data_is_refused() -> None:
    job = World3().job()
    single = replace(job.manifests["train"], labels=np.zeros(80, dtype=np.int64))
    with pytest.raises(DataError, match=r"trainval: expected labels of 3 classes an image, found .* \(80,\)"):
        voc_svm.run(replace(job, manifests={**job.manifests, "train": single}))


@pytest.mark.parametrize(("role", "split"), [("train", "trainval"), ("test", "test")])
def test_a_feature_that_is_not_finite_is_named(role: str, split: str) -> None:
    job = World3().job()
    job.features[role]["feature5"][7, 2] = np.nan
    with pytest.raises(
        NonFiniteError, match=rf"feature5, {split} row 7 \(images/000007\.jpg\): the features are NaN or infinite"
    ):
        voc_svm.run(job)


@pytest.mark.parametrize(
    ("name", "costs", "low_shot"),
    [
        ("voc07_svm", 19, 8),
        ("voc07_svm_fs", 26, 8),
        ("voc07_svm_vissl", 11, 0),
        ("mini_voc07_svm", 19, 3),
        ("voc07_sample_svm", 19, 4),
    ],
)
def test_the_configurations_are_the_protocols(name: str, costs: int, low_shot: int) -> None:
    found = load(CONFIGS / "benchmarks" / f"{name}.yaml", BenchmarkConfig[Settings, Execution])
    assert len(found.settings.costs) == costs
    shots = found.settings.low_shot
    assert len(shots.k if shots else ()) == low_shot
    assert shots is None or shots.costs == found.settings.costs
    if name in ("voc07_svm", "voc07_svm_fs"):
        assert found.settings.costs[-16:] == tuple(0.5**power for power in range(4, 20))
    if name == "voc07_svm":
        assert found.settings.costs[:3] == (1.0, 10.0, 100.0)
        sizes = dict(zip(found.settings.features.layers, (112, 56, 28, 14, 7), strict=False))
        channels = (64, 256, 512, 1024, 2048)
        widths = [
            channel * ((sizes[layer] + 2 * pool.padding - pool.kernel) // pool.stride + 1) ** 2
            for channel, (layer, pool) in zip(channels, found.settings.features.layers.items(), strict=False)
            if pool is not None
        ]
        assert widths == [9216, 9216, 8192, 9216, 8192]
    published = {table.id for table in found.tables} & {"voc07_svm"}
    assert bool(published) == (name in ("voc07_svm", "mini_voc07_svm", "voc07_sample_svm"))
