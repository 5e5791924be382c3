"""results.csv and results.json hold the tables to all digits, and are what docs/results.schema.json describes."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from report.export import CSV_HEAD, read_results, schema_text
from report.published import load_published
from report.suite import build_suite
from tests.report.drawn import knn, measured, record, row, suite
from tests.report.rich import HOST, NASTY, make
from zoo.files import ROOT

SCHEMA = ROOT / "docs" / "results.schema.json"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def problems(value: Any, schema: dict[str, Any], whole: dict[str, Any], at: str = "$") -> list[str]:
    """What of `value` a JSON Schema forbids: the words that pydantic writes, read anew. Unknown words fail."""
    if "$ref" in schema:
        return problems(value, whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole, at)
    known = {
        *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "anyOf", "const", "$defs"),
        *("minimum", "minItems", "maxItems", "title", "description", "default"),
    }
    assert schema.keys() <= known, schema.keys() - known
    if "anyOf" in schema:
        return [] if any(not problems(value, one, whole, at) for one in schema["anyOf"]) else [f"{at}: none of anyOf"]
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at}: expected {kind}"]
    found = [f"{at}: const"] if "const" in schema and value != schema["const"] else []
    found += [f"{at}: minimum"] if "minimum" in schema and value < schema["minimum"] else []
    if isinstance(value, dict):
        named = schema.get("properties", {})
        found += [f"{at}: lacks {name}" for name in schema.get("required", ()) if name not in value]
        rest = schema.get("additionalProperties", True)
        for name, item in value.items():
            if name not in named and rest is False:
                found.append(f"{at}: has {name}")
            elif name in named or isinstance(rest, dict):
                found += problems(item, named.get(name, rest), whole, f"{at}.{name}")
    if isinstance(value, list):
        found += [f"{at}: length"] if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 1e9) else []
        each = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        for number, (item, one) in enumerate(zip(value, each, strict=False)):
            found += problems(item, one, whole, f"{at}[{number}]")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path)
    build_suite(tmp_path, load_published())
    return tmp_path


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_committed_schema_is_that_of_the_models() -> None:
    assert SCHEMA.read_text() == schema_text(), "run: python -m report.export > docs/results.schema.json"


def test_what_is_written_is_what_the_schema_describes(folder: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    written = json.loads((folder / "results.json").read_text())
    assert problems(written, schema, schema) == []
    written["tables"][0]["rows"][0]["cells"][0]["value"] = "50"
    del written["records"][0]["seed"]
    assert problems(written, schema, schema) == [
        "$.tables[0].rows[0].cells[0].value: none of anyOf",
        "$.records[0]: lacks seed",
    ]


def test_a_line_a_cell_in_the_order_of_the_page(folder: Path) -> None:
    found = lines(folder)
    assert tuple(found[0]) == CSV_HEAD
    data = read_results((folder / "results.json").read_bytes())
    assert len(found) == sum(len(row.cells) for table in data.tables for row in table.rows)
    assert {line["checkpoint"] for line in found} == {"random", "SimSiam", NASTY, "collapsed"}


def test_the_parts_of_a_cell_are_its_texts_to_all_digits(folder: Path) -> None:
    cells = {(line["checkpoint"], line["column"], line["table"]): line for line in lines(folder)}
    probe = cells["SimSiam", "AvgPool", "imagenet_linear:cifar10_sample"]
    assert probe["text"] == "60.50 ± 0.50 (std 0.71, n 2)"
    assert (float(probe["value"]), float(probe["half_width"])) == (60.5, 0.5)
    assert float(probe["seed_std"]) == pytest.approx(2**-0.5)
    assert len(probe["records"].split()) == 2 and probe["trials_std"] == probe["word"] == ""
    absent = cells["collapsed", "k=10", "imagenet_knn:cifar10_sample"]
    assert (absent["text"], absent["value"], absent["word"], absent["records"]) == ("–", "", "", "")


def test_words_and_trials_have_fields_of_their_own(tmp_path: Path) -> None:
    trials = {"low_shot_k1": {"n": 5, "std": 0.25, "min": 1.0, "max": 9.0}}
    shots = {f"low_shot_{kind}k{k}": 8.5 for k in (1, 2, 4) for kind in ("", "clean_")}
    maps = {f"svm_{name}": 30.0 for name in ("clean", "avgpool", *(f"feature{n}" for n in range(1, 6)))}
    result = record(
        "a",
        "mini_voc07_svm",
        {"svm": 31.0} | shots | maps,
        labels={"best_layer": "feature4", "best_layer_clean": "feature5"},
        details={"trials": trials},
    )
    suite(tmp_path, [row("a")], measured(result))
    build_suite(tmp_path, load_published())
    cells = {line["column"]: line for line in lines(tmp_path)[:10]}
    assert (cells["Best Layer"]["word"], cells["Best Layer"]["value"]) == ("feature4", "")
    assert (cells["k=1"]["trials_std"], cells["k=1"]["value"], cells["k=2"]["trials_std"]) == ("0.25", "8.5", "")


def test_a_published_number_says_so_and_has_no_record(tmp_path: Path) -> None:
    suite(tmp_path, [row("a")], measured(record("a", "imagenet_knn", knn(50, 51, 52, 53))))
    build_suite(tmp_path, load_published())
    first, *_, last = lines(tmp_path)[:12]
    assert (first["published"], first["value"], first["row"], first["records"]) == ("yes", "57.4", "", "")
    assert (last["published"], last["value"], last["row"]) == ("no", "53.0", "a")


def test_no_time_host_or_path_is_in_them(folder: Path) -> None:
    for name in ("results.csv", "results.json"):
        text = (folder / name).read_text()
        assert HOST not in text and "/home" not in text and str(folder) not in text
        assert not re.search(r"\b20\d\d-\d\d-\d\d|seconds|started", text)
