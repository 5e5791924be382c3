"""index.html in a real browser, on a phone and on a desk: no complaint on the console, nothing wider than the window,
and what a reader does works, by mouse and by keyboard."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from report.published import load_published
from report.suite import build_suite
from tests.browser.chromium import NAMES, Tab, chromium, find_chromium
from tests.report.rich import NASTY, make

PROGRAM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        PROGRAM is None, reason=f"no Chromium: none of {', '.join(NAMES)} is on PATH (scripts/browser.sh)"
    ),
]
WIDTHS = (375, 1280)
KNN = "section[aria-labelledby=table-imagenet_knn-cifar10_sample]"
LINEAR = "section[aria-labelledby=table-imagenet_linear-cifar10_sample]"
LABELS = f"[...document.querySelector('{KNN} tbody').rows].map((row) => row.cells[0].textContent)"
SORTS = f"[...document.querySelector('{KNN} thead tr').cells].map((head) => head.ariaSort)"
IN_ORDER = ["random", "SimSiam", NASTY, "collapsed1"]  # 1: its footnote


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    make(folder)
    build_suite(folder, load_published())
    return folder / "index.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert PROGRAM
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(params=WIDTHS)
def tab(browser: Tab, page: Path, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """The page, freshly loaded at one width; no test may leave an error on its console or have loaded anything else."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page, width=request.param)
    yield browser
    assert browser.errors == []
    assert {address for address in browser.requests if not address.startswith("data:")} == {page.as_uri()}


def test_nothing_but_tables_and_pictures_in_their_boxes_is_wider_than_the_window(tab: Tab) -> None:
    assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
    wide = "[...document.querySelectorAll('main p, main li, h1, h2, .scroll, figure, nav')]"
    assert (
        tab.run(f"{wide}.filter((e) => e.getBoundingClientRect().right > window.innerWidth).map((e) => e.outerHTML)")
        == []
    )
    assert tab.run("getComputedStyle(document.querySelector('.scroll')).overflowX") == "auto"
    assert tab.run("parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 14


def test_the_browser_reads_the_document_as_it_was_written(tab: Tab) -> None:
    assert tab.run("document.compatMode") == "CSS1Compat"
    assert tab.run("document.querySelectorAll('img, p p, a a, table p, body > tr').length") == 0
    assert tab.run(LABELS) == IN_ORDER
    assert tab.run("document.querySelectorAll('svg.chart').length") >= 6


def test_a_click_on_a_head_sorts_the_second_turns_round_the_third_restores(tab: Tab) -> None:
    head = f"{KNN} thead th:nth-child(3) button"  # k=20: 31, 41, 51, none
    up, down = ["random", "SimSiam", NASTY, "collapsed1"], [NASTY, "SimSiam", "random", "collapsed1"]
    for labels, sort in ((down, "descending"), (up, "ascending"), (IN_ORDER, "none")):
        tab.click(head)
        assert tab.run(LABELS) == labels  # what has no value stays below
        assert tab.run(SORTS) == ["none", "none", sort, "none", "none"]
    tab.click(f"{KNN} thead th:nth-child(1) button")
    assert tab.run(LABELS) == sorted(IN_ORDER, key=str.casefold)


def test_sorting_by_value_is_not_sorting_by_text(tab: Tab) -> None:
    tab.click(f"{KNN} thead th:nth-child(5) button")  # 9.5, 10.5, 11.5
    assert tab.run(LABELS) == [NASTY, "SimSiam", "random", "collapsed1"]


def test_a_head_is_reached_and_pressed_by_keyboard(tab: Tab) -> None:
    tab.run(f"document.querySelector('{KNN} thead th:nth-child(2) button').focus()")
    tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "k=20"
    tab.press("Enter")
    assert tab.run(LABELS)[0] == NASTY


def test_a_number_opens_its_record_and_escape_goes_back_to_it(tab: Tab) -> None:
    tab.click(f"{KNN} tbody tr:nth-child(2) td:nth-child(3) a")
    assert tab.run("document.getElementById('record').open")
    said = tab.run("document.getElementById('record').innerText")
    for words in ("SimSiam", "runs/mini/checkpoints/a/card.yaml", "top1_k20", "41.00", "40.50 to 41.50", "sha256"):
        assert words in said
    assert tab.run("document.getElementById('record').scrollWidth <= window.innerWidth")
    tab.press("Escape")
    assert not tab.run("document.getElementById('record').open")
    assert tab.run("document.activeElement.textContent") == "41.0 ± 0.5"
    tab.press("Enter")
    assert tab.run("document.getElementById('record').open")


def test_a_number_of_two_seeds_shows_both_records(tab: Tab) -> None:
    tab.click(f"{LINEAR} td a")
    assert tab.run("document.getElementById('record-title').textContent") == "2 records, a seed each"
    assert tab.run("document.querySelectorAll('#record article').length") == 2


def test_dark_is_dark_and_paper_is_without_buttons(tab: Tab) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    for scheme, colour in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 30)")):
        tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert tab.run(back) == colour
    tab.ask("Emulation.setEmulatedMedia", media="print", features=[])
    assert tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.ask("Emulation.setEmulatedMedia", media="", features=[])
