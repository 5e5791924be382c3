"""Every value of the classification protocols against docs/protocols.md, row by row."""

from typing import Any

import pytest

from evaluate.benchmarks import load_benchmark
from evaluate.heads import learning_rate
from evaluate.recipes import Recipe, Settings

FEATURES = ("feature1", "feature2", "feature3", "feature4", "feature5")
TRIPLETS = {  # §2.2
    "feature1": (10, 10, 4),
    "feature2": (16, 8, 0),
    "feature3": (13, 5, 0),
    "feature4": (8, 3, 0),
    "feature5": (6, 1, 0),
}
RRC, CENTRE = ("random_resized", 224, (0.08, 1.0)), ("random", 256, 224)
JITTER = (0.4, 0.4, 0.4)
# benchmark, recipe: layers; crop, interpolation, jitter, lighting; batch norm, optimiser, nesterov; lr at batch, batch,
# weight decay, epochs, milestones (None: cosine)
PROTOCOLS: dict[tuple[str, str], tuple[Any, ...]] = {
    # §2.1, MM0 column; D4, D6
    ("imagenet_linear", "lars_mmselfsup"): (
        (("avgpool",), RRC, "bilinear", (0, 0, 0), 0.0),
        ("none", "lars_mmselfsup", None, 1.6, 4096, 0.0, 90, None),
    ),
    # §2.1, FB column; D4
    ("imagenet_linear", "lars_apex"): (
        (("avgpool",), RRC, "bilinear", (0, 0, 0), 0.0),
        ("none", "lars_apex", None, 1.6, 4096, 0.0, 90, None),
    ),
    # §2.1, "Alternative protocol (MoCo)"
    ("imagenet_linear", "sgd_lr30"): (
        (("avgpool",), RRC, "bilinear", (0, 0, 0), 0.0),
        ("none", "sgd", False, 30.0, 256, 0.0, 100, (60, 80)),
    ),
    ("imagenet_linear", "sgd_lr100"): (
        (("avgpool",), RRC, "bilinear", (0, 0, 0), 0.0),
        ("none", "sgd", False, 100.0, 256, 0.0, 100, (60, 80)),
    ),
    # §2.2, MM0 column; D7 to D11
    ("imagenet_linear_stages", "zoo"): (
        (FEATURES, RRC, "bilinear", JITTER, 0.1),
        ("plain", "sgd", True, 0.01, 256, 1e-4, 90, (30, 60)),
    ),
    # §2.2, VI column; D7, D8, D9, D10
    ("imagenet_linear_stages_vissl", "vissl"): (
        (FEATURES, RRC, "bilinear", (0, 0, 0), 0.0),
        ("affine", "sgd", True, 0.01, 256, 5e-4, 28, (8, 16, 24)),
    ),
    # §2.2, MM1; D11
    ("imagenet_linear_stages_mmselfsup1", "mmselfsup1"): (
        (FEATURES[1:], RRC, "bicubic", JITTER, 0.1),
        ("plain", "sgd", True, 0.01, 256, 1e-4, 90, (60, 80)),
    ),
    # §2.3, MM0 column; D12, D13
    ("places205_linear", "zoo"): (
        (FEATURES, CENTRE, "bilinear", (0, 0, 0), 0.0),
        ("plain", "sgd", True, 0.01, 256, 1e-4, 28, (7, 14, 21)),
    ),
    # §2.3, VI column
    ("places205_linear_vissl", "vissl"): (
        (FEATURES, RRC, "bilinear", (0, 0, 0), 0.0),
        ("affine", "sgd", True, 0.01, 256, 5e-4, 14, (4, 8, 12)),
    ),
    # §2.4
    ("inaturalist2018_linear", "zoo"): (
        (FEATURES, RRC, "bilinear", (0, 0, 0), 0.0),
        ("plain", "sgd", True, 0.01, 256, 1e-4, 84, (24, 48, 72)),
    ),
    ("inaturalist2018_linear_vissl", "vissl"): (
        (FEATURES, RRC, "bilinear", (0, 0, 0), 0.0),
        ("affine", "sgd", True, 0.01, 256, 5e-4, 84, (24, 48, 72)),
    ),
}


def found(settings: Settings, recipe: Recipe) -> tuple[Any, ...]:
    train, (plan, *_) = settings.train_transform, [p for p in settings.heads() if p.recipe is recipe]
    crop = train.crop
    window = (
        ("random_resized", crop.size, crop.area)
        if crop.name == "random_resized"
        else ("random", crop.resize, crop.size)
    )
    schedule, optimiser = recipe.schedule, recipe.optimiser
    return (
        (recipe.layers, window, train.interpolation, train.jitter, train.lighting),
        (
            recipe.batch_norm,
            optimiser.name,
            optimiser.nesterov if optimiser.name == "sgd" else None,
            pytest.approx(plan.lr),
            recipe.batch_size,
            plan.weight_decay,
            recipe.epochs,
            schedule.milestones if schedule.name == "steps" else None,
        ),
    )


@pytest.mark.parametrize(("name", "recipe"), list(PROTOCOLS), ids=" ".join)
def test_a_linear_protocol_is_the_sheets(name: str, recipe: str) -> None:
    settings = load_benchmark(name).settings
    chosen = settings.recipes[recipe]
    assert found(settings, chosen) == PROTOCOLS[name, recipe]
    assert chosen.optimiser.momentum == 0.9 and chosen.head_std == 0.01 and chosen.held_out_per_class == 0
    if chosen.optimiser.name != "sgd":
        assert (chosen.optimiser.trust_coefficient, chosen.optimiser.eps) == (0.001, 1e-8)
    test = settings.test_transform
    assert (test.resize, test.crop, test.fit) == (256, 224, "centre_crop")
    assert test.interpolation == settings.train_transform.interpolation
    assert settings.train_transform.flip_probability == 0.5
    for layer, pool in settings.layers.items():
        assert (pool is None) == (layer == "avgpool")
        if pool is not None:
            assert (pool.kernel, pool.stride, pool.padding) == TRIPLETS[layer]


def test_every_linear_protocol_of_the_real_data_is_listed() -> None:
    from zoo.files import CONFIGS

    names = {name for name, _ in PROTOCOLS} | {"imagenet_linear_grid", "places365_linear"}  # our own, no sheet row
    real = {path.stem for path in (CONFIGS / "benchmarks").glob("*linear*.yaml")}
    assert {name for name in real if not name.startswith(("mini_", "cifar10_"))} == names


def test_the_rates_of_the_published_page_epoch_by_epoch() -> None:
    """§2.2: ÷10 at 30 and 60 of 90 epochs; §2.3: at 7, 14 and 21 of 28; §2.4: at 24, 48 and 72 of 84."""
    for name, starts in (
        ("imagenet_linear_stages", (0, 30, 60)),
        ("places205_linear", (0, 7, 14, 21)),
        ("inaturalist2018_linear", (0, 24, 48, 72)),
    ):
        recipe = load_benchmark(name).settings.recipes["zoo"]
        for epoch in range(recipe.epochs):
            expected = 0.01 * 0.1 ** (sum(epoch >= start for start in starts) - 1)
            assert learning_rate(recipe.schedule, 0.01, epoch, recipe.epochs) == pytest.approx(expected)


POWERS = tuple(0.5**n for n in range(4, 20))
COSTS = {  # §2.6, D16
    "voc07_svm": (1, 10, 100, *POWERS),
    "voc07_svm_fs": (*(10.0**n for n in range(-7, 3)), *POWERS),
    "voc07_svm_vissl": (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000),
}


@pytest.mark.parametrize("name", list(COSTS))
def test_the_svm_protocol_is_the_sheets(name: str) -> None:
    settings = load_benchmark(name).settings
    assert settings.costs == pytest.approx(COSTS[name]) and len(COSTS[name]) in (19, 26, 11)
    assert (settings.train_split, settings.test_split, settings.folds) == ("trainval", "test", 3)
    assert (settings.positive_weight, settings.norm_eps) == (2.0, 1e-5)
    transform = settings.features.transform
    assert (transform.crop, transform.fit, transform.interpolation) == (224, "squash", "bilinear")
    pools = {k: (p.kernel, p.stride, p.padding) for k, p in settings.features.layers.items() if p is not None}
    assert pools == TRIPLETS
    if name == "voc07_svm":
        assert transform.resize == 256
        assert settings.low_shot.k == (1, 2, 4, 8, 16, 32, 64, 96) and settings.low_shot.trials == 5  # §2.7
        assert settings.low_shot.negatives_per_positive == 19 and settings.low_shot.costs == settings.costs


def test_knn_is_the_sheets() -> None:
    """§2.5, MM0 column; D14."""
    settings = load_benchmark("imagenet_knn").settings
    transform = settings.features.transform
    assert (transform.resize, transform.crop, transform.interpolation, transform.fit) == (
        256,
        224,
        "bilinear",
        "centre_crop",
    )
    assert settings.k == (10, 20, 100, 200) and settings.temperature == 0.07
    assert list(settings.features.layers) == ["avgpool"] and settings.features.storage == "fp32"
