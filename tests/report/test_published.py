"""Every published number comes back exactly as its source prints it, and mistakes in the files are refused."""

import re
import shutil
from pathlib import Path

import pytest

from report.published import FOLDER, Published, load_published
from report.sheet import Sheet
from report.table import tables
from zoo.benchmark import benchmark_layout
from zoo.errors import ConfigError

# copied from the source pages, table by table: label (without its link) and cells as printed there
ROWS = {
    "voc07_svm": [
        "resnet50_8xb32-coslr-100e | feature5 | 84.64 | 39.65 | 49.86 | 62.48 | 69.50 | 74.48 | 78.31 | 81.06 | 82.56",
        "resnet50_8xb32-coslr-200e | feature5 | 85.20 | 39.85 | 50.44 | 63.73 | 70.93 | 75.74 | 79.42 | 82.02 | 83.44",
    ],
    "imagenet_linear": [
        "resnet50_8xb32-coslr-100e | 16.27 | 33.77 | 45.80 | 60.83 | 68.21 | 68.28",
        "resnet50_8xb32-coslr-200e | 15.57 | 37.21 | 47.28 | 62.21 | 69.85 | 69.84",
    ],
    "places205_linear": [
        "resnet50_8xb32-coslr-100e | 21.32 | 35.66 | 43.05 | 50.79 | 53.27",
        "resnet50_8xb32-coslr-200e | 21.17 | 35.85 | 43.49 | 50.99 | 54.10",
    ],
    "imagenet_knn": [
        "resnet50_8xb32-coslr-100e | 57.4 | 57.6 | 55.8 | 54.2",
        "resnet50_8xb32-coslr-200e | 60.2 | 60.4 | 58.8 | 57.4",
    ],
    "voc0712_detection": ["resnet50_8xb32-coslr-100e | 79.80", "resnet50_8xb32-coslr-200e | 79.85"],
    "coco2017": [
        "resnet50_8xb32-coslr-100e | 38.6 | 57.6 | 42.3 | 34.6 | 54.8 | 36.9",
        "resnet50_8xb32-coslr-200e | 38.8 | 58.0 | 42.3 | 34.9 | 55.3 | 37.6",
    ],
    "voc12aug_segmentation": ["resnet50_8xb32-coslr-100e | 48.35", "resnet50_8xb32-coslr-200e | 46.27"],
    "mmpretrain_models": [
        "simsiam_resnet50_8xb32-coslr-100e_in1k | 38.20 | 4.11 | config | model, log",
        "simsiam_resnet50_8xb32-coslr-200e_in1k | 38.20 | 4.11 | config | model, log",
    ],
    "mmpretrain_linear": [
        "resnet50_simsiam-100e-pre_8xb512-linear-coslr-90e_in1k | SIMSIAM 100-Epochs | 25.56 | 4.11 | 68.30 "
        "| config | model, log",
        "resnet50_simsiam-200e-pre_8xb512-linear-coslr-90e_in1k | SIMSIAM 200-Epochs | 25.56 | 4.11 | 69.80 "
        "| config | model, log",
    ],
    "fb_models": [
        "100 | 512 | link | link | link | link | 68.1",
        "100 | 256 | link | link | link | link | 68.3",
    ],
}
HEADS = {
    "voc07_svm": "Self-Supervised Config | Best Layer | SVM | k=1 | k=2 | k=4 | k=8 | k=16 | k=32 | k=64 | k=96",
    "imagenet_linear": "Self-Supervised Config | Feature1 | Feature2 | Feature3 | Feature4 | Feature5 | AvgPool",
    "places205_linear": "Self-Supervised Config | Feature1 | Feature2 | Feature3 | Feature4 | Feature5",
    "imagenet_knn": "Self-Supervised Config | k=10 | k=20 | k=100 | k=200",
    "voc0712_detection": "Self-Supervised Config | AP50",
    "coco2017": "Self-Supervised Config | mAP(Box) | AP50(Box) | AP75(Box) | mAP(Mask) | AP50(Mask) | AP75(Mask)",
    "voc12aug_segmentation": "Self-Supervised Config | mIOU",
    "mmpretrain_models": "Model | Params (M) | Flops (G) | Config | Download",
    "mmpretrain_linear": "Model | Pretrain | Params (M) | Flops (G) | Top-1 (%) | Config | Download",
    "fb_models": "pre-train epochs | batch size | pre-train ckpt | pre-train log | linear cls. ckpt | linear cls. log "
    "| top-1 acc.",
}
TITLES = [  # of the source page, in its order
    "VOC SVM / Low-shot SVM",
    "ImageNet Linear Evaluation",
    "Places205 Linear Evaluation",
    "ImageNet Nearest-Neighbor Classification",
    "Pascal VOC 2007 + 2012",
    "COCO2017",
    "Pascal VOC 2012 + Aug",
]
IN_THE_PAPERS_TEXT = ["67.7", "0.1", "34.6", "67.4", "68.1", "68.2", "unstable", "0.3", "66.9"]
IN_ITS_TABLES_ONLY = re.compile(
    r"\b(1\.5|66\.1|67\.3|70\.0|70\.8|71\.3|64\.0|63\.2|64\.8|82\.0|56\.4|62\.8|63\.7|57\.5)\b"
)


def page(published: Published) -> dict[str, list[str]]:
    """Table name → its lines, head first, links replaced by their texts and padding removed."""
    names = ("imagenet_knn", "imagenet_linear")
    sheet = Sheet(
        rows=(),
        cells=(),
        benchmarks={name: benchmark_layout(name) for name in names},
        datasets={},
        published=published,
        is_suite=False,
    )
    return {
        table.name: [
            " | ".join(table.columns),
            *(" | ".join(map(plain, (one.label, *one.cells))) for one in table.lines),
        ]
        for table in tables(sheet)
    }


def plain(markdown: str) -> str:
    """`[text](url)` as `text`."""
    parts = markdown.split("](")
    return parts[0].replace("[", "") + "".join(part.split(")", 1)[1].replace("[", "") for part in parts[1:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of configs/published to spoil."""
    return Path(shutil.copytree(FOLDER, tmp_path / "published"))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("table", ROWS)
def test_every_published_value_stands_in_its_cell_as_the_source_prints_it(table: str) -> None:
    assert page(load_published())[table] == [HEADS[table], *ROWS[table]]


def test_the_tables_have_the_source_pages_titles_and_order() -> None:
    tables_ = load_published().tables
    assert [table.title for table in tables_.values()][: len(TITLES)] == TITLES
    assert list(ROWS) == [name for name, table in tables_.items() if table.standalone and name != "paper_text"]


def test_values_known_from_memory_only_are_nowhere() -> None:
    assert [line.split(" | ")[1] for line in page(load_published())["paper_text"][1:]] == IN_THE_PAPERS_TEXT
    for name in ("paper.yaml", "facebook.yaml", "mmpretrain.yaml", "tables.yaml"):
        assert IN_ITS_TABLES_ONLY.findall((FOLDER / name).read_text()) == []


def test_the_reference_repositorys_values_are_equal_in_both_their_tables() -> None:
    published = load_published()
    values = {
        table: [row.results[table]["top-1 acc."] for _, row in published.rows(table)]
        for table in ("fb_models", "imagenet_linear_reference")
    }
    assert values["fb_models"] == values["imagenet_linear_reference"] == [68.1, 68.3]


def test_a_changed_value_changes_its_cell_and_no_other(folder: Path) -> None:
    replace(folder / "mmselfsup.yaml", "k=20: 57.6", "k=20: 12.0")
    before, after = page(load_published()), page(load_published(folder))
    assert after["imagenet_knn"][1] == "resnet50_8xb32-coslr-100e | 57.4 | 12.0 | 55.8 | 54.2"
    assert {name for name in before if before[name] != after[name]} == {"imagenet_knn"}


def test_an_absent_published_value_is_a_dash(folder: Path) -> None:
    replace(folder / "mmselfsup.yaml", "k=20: 57.6, ", "")
    assert page(load_published(folder))["imagenet_knn"][1] == "resnet50_8xb32-coslr-100e | 57.4 | – | 55.8 | 54.2"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("k=20: 57.6", "k=30: 57.6", "expected a column of k=10, k=20, k=100, k=200; found 'k=30'"),
        ("k=20: 57.6", "k=20: 57.61", "k=20: expected at most 1 decimals, found 57.61"),
        ("k=20: 57.6", "k=20: null", "found nothing"),
        ("imagenet_knn:", "imagenet_nn:", "found 'imagenet_nn'"),
        ("licence:", "license:", "license: unknown key"),
    ],
)
def test_a_mistake_is_refused_and_named(folder: Path, old: str, new: str, message: str) -> None:
    replace(folder / "mmselfsup.yaml", old, new)
    with pytest.raises(ConfigError, match="mmselfsup.yaml") as caught:
        load_published(folder)
    assert message in str(caught.value)


def test_all_mistakes_are_in_one_message(folder: Path) -> None:
    replace(folder / "mmselfsup.yaml", "k=20: 57.6", "k=30: 57.6")
    replace(folder / "facebook.yaml", "top-1 acc.: 68.1", "top-1 acc.: 68.11")
    with pytest.raises(ConfigError) as caught:
        load_published(folder)
    assert len(str(caught.value).splitlines()) == 2


def test_a_table_listed_twice_is_refused(folder: Path) -> None:
    replace(folder / "tables.yaml", "id: coco2017", "id: imagenet_knn")
    with pytest.raises(ConfigError, match="expected one entry an id"):
        load_published(folder)
