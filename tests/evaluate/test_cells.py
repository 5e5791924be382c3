"""What is in a cell's id and what is not; what a plan re-runs after an edit."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from converters.cards import read_published
from evaluate.benchmarks import load_benchmark
from evaluate.cells import cell_id, identified, read_cell, resolve, write_cell
from evaluate.job import FeatureSpec, feature_keys
from evaluate.suite import make_plan
from zoo import datasets
from zoo.checkpoint import read_card, write_card
from zoo.errors import CheckpointError, ConfigError, DataError, ZooError
from zoo.files import sha256_file


@pytest.fixture
def own(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny files copied, so that a test may edit them."""
    folder = tmp_path / "own"
    shutil.copytree(tiny, folder)
    (folder / "data.yaml").write_text(f"tiny: {folder / 'data'}\n")
    monkeypatch.setenv("ZOO_DATA", str(folder / "data.yaml"))
    for module in ("zoo.datasets", "zoo.benchmark"):
        monkeypatch.setattr(f"{module}.CONFIGS", folder / "configs")
    datasets.manifest.cache_clear()
    return folder


def ids(folder: Path) -> dict[str, str]:
    return {name: resolve(name, folder / "checkpoint", 0).id for name in ("tiny_knn", "tiny_linear")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_comment_and_the_layout_and_execution_change_no_id(own: Path) -> None:
    before = ids(own)
    path = own / "configs/benchmarks/tiny_knn.yaml"
    path.write_text("# another comment\n" + path.read_text())
    edit(path, "decimals: 1", "decimals: 3")
    edit(path, "back_end: torch", "back_end: torch")
    edit(path, "block_mb: 1", "block_mb: 64")
    assert ids(own) == before


@pytest.mark.parametrize(("old", "new"), [("temperature: 0.07", "temperature: 0.1"), ("protocol: 1", "protocol: 2")])
def test_one_protocol_value_changes_exactly_its_cells(own: Path, old: str, new: str) -> None:
    before = ids(own)
    edit(own / "configs/benchmarks/tiny_knn.yaml", old, new)
    after = ids(own)
    assert after["tiny_knn"] != before["tiny_knn"] and after["tiny_linear"] == before["tiny_linear"]


def test_a_renamed_checkpoint_keeps_every_id(own: Path) -> None:
    before = ids(own)
    (own / "checkpoint").rename(own / "moved")
    card = read_card(own / "moved").model_copy(update={"name": "other", "family": "other", "url": "https://x"})
    write_card(own / "moved", card)
    (own / "moved").rename(own / "checkpoint")
    assert ids(own) == before


def test_one_flipped_bit_changes_every_id_and_every_feature_key(own: Path) -> None:
    from zoo.backbone import fingerprint

    before, folder = ids(own), own / "checkpoint"
    card = read_card(folder)
    state = safetensors.torch.load_file(folder / card.weights)
    weight = state["layer4.1.bn2.bias"]
    weight.view(dtype=torch.int32)[0] ^= 1
    safetensors.torch.save_file(state, folder / card.weights)
    with pytest.raises(CheckpointError, match="The file has changed since its card was written"):
        ids(own)
    flipped = card.model_copy(
        update={"weights_sha256": sha256_file(folder / card.weights), "tensors_sha256": fingerprint(state)}
    )
    write_card(folder, flipped)
    assert not set(ids(own).values()) & set(before.values())
    spec = FeatureSpec.model_validate(load_benchmark("tiny_knn").settings.features)
    assert feature_keys(card, "0" * 64, spec)["avgpool"] != feature_keys(flipped, "0" * 64, spec)["avgpool"]


def test_pixels_datasets_and_seed_are_in_the_id(own: Path) -> None:
    before = ids(own)
    card = read_card(own / "checkpoint")
    other = card.model_copy(update={"pixels": card.pixels.model_copy(update={"std": (0.228, 0.224, 0.225)})})
    write_card(own / "checkpoint", other)
    assert not set(ids(own).values()) & set(before.values())
    write_card(own / "checkpoint", card)
    assert resolve("tiny_linear", own / "checkpoint", 1).id != before["tiny_linear"]
    assert resolve("tiny_knn", own / "checkpoint", 1).id == before["tiny_knn"]  # deterministic: no seed in it
    next((own / "data/train/class0").iterdir()).unlink()
    datasets.manifest.cache_clear()
    assert not set(ids(own).values()) & set(before.values())


def test_paths_are_not_in_the_id(own: Path, tmp_path: Path) -> None:
    before = ids(own)
    (own / "data").rename(own / "elsewhere")
    (own / "data.yaml").write_text(f"tiny: {own / 'elsewhere'}\n")
    datasets.manifest.cache_clear()
    assert ids(own) == before


def test_a_cell_file_that_no_longer_fits_is_refused(own: Path) -> None:
    cell = resolve("tiny_knn", own / "checkpoint", 0)
    path = write_cell(own / "cells", cell, own / "records")
    assert read_cell(path)[0].id == cell.id
    edit(own / "configs/benchmarks/tiny_knn.yaml", "temperature: 0.07", "temperature: 0.1")
    with pytest.raises(CheckpointError, match="has changed since this cell was planned"):
        read_cell(path)


def test_overrides_enter_the_settings_and_the_id(own: Path) -> None:
    cell = resolve("tiny_knn", own / "checkpoint", 0, ["settings.temperature=0.2"])
    assert cell.config.settings.temperature == 0.2 and cell.overrides == ("settings.temperature=0.2",)
    assert cell.id != ids(own)["tiny_knn"]
    with pytest.raises(ConfigError, match="no key 'settings.temprature'"):
        resolve("tiny_knn", own / "checkpoint", 0, ["settings.temprature=0.2"])


def test_an_optional_setting_at_its_default_is_in_no_id() -> None:
    """So that a setting which came later leaves the ids of what was measured before."""
    settings = load_benchmark("voc12aug_segmentation_zoo").settings
    assert identified(settings).keys() == {"train_split", "test_split", "engine_config"}
    scaled = load_benchmark("voc12aug_segmentation_zoo", ["settings.global_batch=4"]).settings
    assert identified(scaled) == identified(settings) | {"global_batch": 4}


def test_an_unknown_benchmark_names_those_there_are(own: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny_nothing.yaml: no such file; files there: .*cifar10_knn.yaml"):
        resolve("tiny_nothing", own / "checkpoint", 0)
    edit(own / "configs/benchmarks/tiny_knn.yaml", "benchmark: knn", "benchmark: nn")
    there = "detection, instance_segmentation, knn, linear, segmentation, voc_svm"
    with pytest.raises(ConfigError, match=f"expected one of {there}, found 'nn'"):
        resolve("tiny_knn", own / "checkpoint", 0)


def test_wrong_settings_are_listed_together_with_their_lines(own: Path) -> None:
    path = own / "configs/benchmarks/tiny_knn.yaml"
    edit(path, "temperature: 0.07", "temperature: warm\n  surprise: 1")
    edit(path, "- 5", "- 0")
    with pytest.raises(ConfigError) as error:
        load_benchmark("tiny_knn")
    lines = path.read_text().splitlines()
    for text, message in (("temperature: warm", "input should be a valid number"), ("surprise: 1", "unknown key")):
        number = next(n for n, line in enumerate(lines, 1) if line.strip() == text)
        assert any(f"tiny_knn.yaml:{number}: " in line and message in line for line in str(error.value).splitlines())
    assert "settings.k.1: input should be greater than 0, found 0" in str(error.value)


def test_a_missing_dataset_says_what_to_write_and_where(own: Path) -> None:
    (own / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"dataset 'tiny' has no place: expected a line 'tiny: /path/to/it'"):
        resolve("tiny_knn", own / "checkpoint", 0)


def suite_text(folder: Path, **changes: object) -> Path:
    suite = yaml.safe_load((folder / "configs/suites/tiny.yaml").read_text()) | changes
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def test_a_plan_lists_every_cell_and_keys_what_is_not_there_yet(own: Path) -> None:
    entries = [{"random": "resnet18", "seeds": [0, 1]}, {"card": str(own / "checkpoint")}]
    page = make_plan(suite_text(own, checkpoints=entries, seeds=[0, 1])).page()
    states = [(cell.benchmark, cell.seed, cell.state, cell.cell_id is None) for cell in page.cells]
    waiting = [
        ("tiny_knn", 0, "waiting", True),
        ("tiny_linear", 0, "waiting", True),
        ("tiny_linear", 1, "waiting", True),
    ]
    ready = [("tiny_knn", 0, "ready", False), ("tiny_linear", 0, "ready", False), ("tiny_linear", 1, "ready", False)]
    assert states == waiting * 2 + ready
    assert [row.label for row in page.rows] == [
        "resnet18, random weights",
        "resnet18, random weights, seed 1",
        "random",
    ]


def test_a_suite_reports_all_its_problems_at_once(own: Path) -> None:
    (own / "data.yaml").unlink()
    entries = [{"file": "no/such.pth"}, {"card": str(own / "nowhere")}]
    with pytest.raises(ZooError) as error:
        make_plan(suite_text(own, checkpoints=entries, benchmarks=["tiny_knn", "imagenet_knn"]))
    for text in ("dataset 'tiny' has no place", "dataset 'imagenet' has no place", "no/such.pth", "nowhere"):
        assert text in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"random": "resnet18", "card": "x"}, "expected exactly one of .*, found random, card"),
        ({"seeds": [0]}, "found none"),
        ({"card": "x", "seeds": [1]}, "seeds: not for card"),
        ({"random": "resnet18", "expect": "collapse"}, "expect: not for random"),
        ({"random": "resnet19"}, "found 'resnet19'"),
        ({"random": "resnet18", "benchmarks": ["other"]}, "other not among the suite's benchmarks"),
    ],
)
def test_a_wrong_checkpoint_line_says_what_is_wrong(own: Path, entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(suite_text(own, checkpoints=[entry]))


def test_a_benchmark_whose_data_is_not_described_is_skipped_and_said_to_be(own: Path) -> None:
    plan = make_plan(suite_text(own, benchmarks=["tiny_knn", "imagenet_knn"]))
    assert plan.skipped == {"imagenet_knn": "no line 'imagenet: /path' in data.yaml"}
    page = plan.page()
    assert {(cell.benchmark, cell.state) for cell in page.cells} == {
        ("tiny_knn", "waiting"),
        ("imagenet_knn", "skipped"),
    }
    assert page.skipped == plan.skipped


def test_a_suite_none_of_whose_data_is_described_is_an_error(own: Path) -> None:
    with pytest.raises(DataError, match="dataset 'imagenet' has no place"):
        make_plan(suite_text(own, benchmarks=["imagenet_knn"]))


def test_a_place_without_the_data_is_a_mistake_and_not_skipped(own: Path) -> None:
    (own / "data.yaml").write_text((own / "data.yaml").read_text() + "imagenet: /no/such/folder\n")
    with pytest.raises(DataError, match="dataset 'imagenet': expected its folder at /no/such/folder, found none"):
        make_plan(suite_text(own, benchmarks=["tiny_knn", "imagenet_knn"]))


def test_checkpoints_can_be_named_when_a_suite_is_run(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "their_model.pth.tar")
    monkeypatch.chdir(tmp_path)
    suite = suite_text(own, checkpoints=[])
    with pytest.raises(ConfigError, match="names no checkpoints of its own: expected --checkpoint FILE_OR_ADDRESS"):
        make_plan(suite)
    address = "https://example.org/models/other.pth"
    given = ["their_model.pth.tar", str(own / "checkpoint"), address, "supervised_r50_torchvision_v1"]
    plan = make_plan(suite, given)
    assert [source.label for source in plan.sources] == [
        "their_model",
        "random",
        "other",
        read_published("supervised_r50_torchvision_v1").title,
    ]
    assert [source.make and source.make[2] for source in plan.sources] == [
        str(tmp_path / "their_model.pth.tar"),
        None,
        address,
        "supervised_r50_torchvision_v1",
    ]
    assert len({source.key for source in plan.sources}) == 4
    assert [source.key for source in make_plan(suite, given).sources] == [source.key for source in plan.sources]


def test_a_foreign_file_may_state_where_its_backbone_is_and_how_it_wants_its_pixels(own: Path, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "a.pth")
    pixels = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "order": "rgb"}
    entry = {"file": str(tmp_path / "a.pth"), "name": "theirs", "take": "net:x.", "pixels": pixels}
    plain = {"file": str(tmp_path / "a.pth"), "name": "theirs"}
    (stated, bare) = make_plan(suite_text(own, checkpoints=[entry, plain])).sources
    assert stated.make is not None and bare.make is not None
    assert stated.make[4:] == (
        "--name",
        "theirs",
        "--take",
        "net:x.",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
    )
    assert bare.make[4:] == ("--name", "theirs") and bare.card_path != stated.card_path


def test_a_failure_note_shows_in_the_plan(own: Path) -> None:
    plan = make_plan(suite_text(own, checkpoints=[{"card": str(own / "checkpoint")}]))
    cell = next(plan.cells()).cell
    assert cell is not None
    (plan.folder / "failed").mkdir(parents=True)
    (plan.folder / "failed" / f"{cell.id}.json").write_text(json.dumps({"reason": "no luck"}))
    assert [c.state for c in plan.page().cells] == ["failed", "ready"]
    assert plan.failure(cell.id) == "no luck"
    assert cell.id == cell_id(cell.config, cell.card, cell.datasets, 0)
