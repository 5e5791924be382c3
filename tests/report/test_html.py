"""index.html says what RESULTS.md says, holds all it needs and nothing that only one machine knows."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from report import charts, html
from report.facts import SHORT
from report.inline import plain
from report.published import load_published
from report.suite import build_suite, suite_sheet, suite_tables
from tests.report.drawn import cell, heads, knn, measured, record, row, suite
from tests.report.rich import COLLAPSED, HOST, NASTY, make
from zoo.errors import DataError, RecordError
from zoo.record import write_record

VOID = {"meta", "link", "img", "br", "path"}
TEMPLATES = Path(html.__file__).parent / "templates"


class Reader(HTMLParser):
    """What a page is made of; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.script = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.sources += [found["src"] or ""] if "src" in found else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag not in VOID or (tag == "path" and not self.get_starttag_text().endswith("/>")):  # pyright: ignore
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"}.intersection(self.open) and "sup" not in self.open:
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "script":
            self.script += data


def built(folder: Path) -> str:
    build_suite(folder, load_published())
    return (folder / "index.html").read_text()


def facts(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_tables_are_results_md_word_for_word(tmp_path: Path) -> None:
    make(tmp_path)
    page = Reader(built(tmp_path))
    made = suite_tables(suite_sheet(tmp_path, load_published())[1])
    assert len(page.tables) == len(made)
    for shown, table in zip(page.tables, made, strict=True):
        expected = [[plain(text) for text in (line.label, *line.cells)] for line in table.lines]
        assert shown[0] == list(table.columns)
        assert shown[1:] == expected


def test_it_is_well_formed_and_every_link_on_the_page_leads_somewhere(tmp_path: Path) -> None:
    results = make(tmp_path)
    text = built(tmp_path)
    page = Reader(text)
    assert len(page.ids) == len(set(page.ids))
    records = facts(text)["records"]
    opened: set[str] = set()
    for link in page.links:
        if link.startswith("#r="):
            opened |= set(link.removeprefix("#r=").split(","))
        elif link.startswith("#"):
            assert link.removeprefix("#") in page.ids
        else:
            assert link in ("results.csv", "results.json", "data:,")
    assert opened == set(records) == {result.cell_id[:SHORT] for result in results}


def test_a_number_of_several_seeds_opens_all_of_them(tmp_path: Path) -> None:
    results = make(tmp_path)
    probes = [r.cell_id[:SHORT] for r in results if r.checkpoint.name == "SimSiam" and not r.deterministic]
    assert f'<a href="#r={",".join(probes)}">60.50 ± 0.50 (std 0.71, n 2)</a>' in built(tmp_path)


def test_nothing_is_loaded_and_nothing_private_is_said(tmp_path: Path) -> None:
    make(tmp_path)
    text = built(tmp_path)
    assert all(source.startswith("data:") for source in Reader(text).sources)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    assert HOST not in text and "/home" not in text and str(tmp_path) not in text
    assert "--checkpoint runs/mini/checkpoints/a/card.yaml" in text


def test_no_label_becomes_a_tag(tmp_path: Path) -> None:
    make(tmp_path)
    text = built(tmp_path)
    assert "<img" not in text
    assert [line[0] for line in Reader(text).tables[0]].count(NASTY) == 1


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name)
        built(tmp_path / name)
    for name in ("RESULTS.md", "results.csv", "results.json", "index.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_curves_and_intervals_are_drawn_and_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    make(tmp_path)
    text = built(tmp_path)
    for title in ("by k", "Loss of self-supervised pre-training", "Spread of the outputs", "kNN top-1 while training"):
        assert title in text
    assert "SimSiam, step 80: 41.50" in text  # the log's kNN
    assert "SimSiam, epoch 3: 45.00" in text  # of two learning rates the one that ends best
    assert "Loss of supervised training" not in text
    assert COLLAPSED in text and "What was seen" not in text


def test_one_epoch_is_no_curve(tmp_path: Path) -> None:
    make(tmp_path, epochs=1)
    assert "cifar10_linear: no head with more than one epoch, so no curve." in built(tmp_path)


def test_published_rows_stand_in_table_and_picture_and_are_marked(tmp_path: Path) -> None:
    suite(tmp_path, [row("a")], measured(record("a", "imagenet_knn", knn(50, 51, 52, 53))))
    text = built(tmp_path)
    assert text.count('<tr class="published">') == 2 and text.count('<span class="tag">published</span>') == 2
    assert "resnet50_8xb32-coslr-100e (published), k 20: 57.60<" in text
    assert text.count('class="line s1 published"') == 2  # in the picture, and in its legend


def test_more_rows_than_a_picture_holds_are_counted(tmp_path: Path) -> None:
    names = [f"row {n}" for n in range(charts.SERIES + 3)]
    results = [record(name, "cifar10_knn", knn(50, 51, 52, 53)) for name in names]
    suite(tmp_path, [row(name) for name in names], measured(*results))
    text = built(tmp_path)
    assert f"The first {charts.SERIES} of {len(names)} rows." in text
    assert text.count('class="band') == charts.SERIES


def test_a_suite_with_nothing_measured_has_a_page(tmp_path: Path) -> None:
    suite(tmp_path, [row("a")], [(cell("a", "cifar10_knn"), None), (cell("a", "cifar10_linear"), None)])
    page = Reader(built(tmp_path))
    assert [table[1][1:] for table in page.tables] == [["–"] * 6, ["–"] * 4]


def test_a_broken_log_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    make(tmp_path)
    with (tmp_path / "checkpoints" / "SimSiam" / "log.jsonl").open("a") as log:
        log.write("{half")
    with pytest.raises(RecordError, match=r"log.jsonl:10: not JSON"):
        built(tmp_path)


def test_a_run_that_is_not_over_is_named_and_its_half_written_log_is_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    page = (tmp_path / "page.json").read_text()
    (tmp_path / "page.json").write_text(
        page.replace('"label": "SimSiam",\n   "state": "ready"', '"label": "SimSiam",\n   "state": "waiting"')
    )
    with (tmp_path / "checkpoints" / "SimSiam" / "log.jsonl").open("a") as log:
        log.write("{half")
    text = built(tmp_path)
    assert "SimSiam: not drawn, waiting." in text and "Loss of self-supervised" not in text


def test_predictions_are_shown_small_or_it_is_said_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        record(name, "mini_voc0712_detection", heads(50.0) | {"ap50": 20.0, "ap": 9.0, "ap75": 3.0}) for name in "ab"
    ]
    results = [result.model_copy(update={"benchmark": "detection"}) for result in results]
    suite(tmp_path, [row("a"), row("b")], measured(*results))
    assert "a, mini_voc0712_detection: not drawn, the record&#39;s arrays are not beside it." in built(tmp_path)
    for result in results:
        write_record(tmp_path / "records", result, {"sample/detection_box": np.zeros((0, 4))})
    made = iter([b"a picture"])

    def sample(path: Path) -> bytes:
        for picture in made:
            return picture
        raise DataError(f"{path}: no images")

    monkeypatch.setattr(html, "sample", sample)
    text = built(tmp_path)
    assert 'src="data:image/jpeg;base64,YSBwaWN0dXJl" alt="Truth left and prediction right: a, ' in text
    assert "b, mini_voc0712_detection: not drawn, the images of mini_voc0712 that the record names are not at" in text
    assert str(tmp_path) not in text


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_contrast_as_wcag_aa_asks(scheme: int) -> None:
    style = (TEMPLATES / "page.css").read_text()
    found = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", style.split("@media")[scheme]))
    for back in ("back", "raised"):
        for name in found.keys() - {"back", "raised", "line"}:
            light, dark = sorted((luminance(found[name]), luminance(found[back])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= (3.0 if name.startswith("c") else 4.5), (name, back)
