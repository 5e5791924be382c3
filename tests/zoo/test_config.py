"""YAML 1.2 scalars, strictness, and errors that name every problem with its file and line."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from converters.parity import PLACES
from evaluate.benchmarks import load_benchmark
from evaluate.suite import SuiteConfig
from report.published import ABLATIONS_NAME, TABLES_NAME, Source, load_published
from zoo.config import Strict, dump_yaml, load, read_yaml, scalar, validate
from zoo.datasets import DatasetConfig, dataset_config
from zoo.errors import ConfigError
from zoo.files import CONFIGS
from zoo.native import resolved
from zoo.recipe import PretrainConfig


class Square(Strict):
    kind: Literal["square"]
    side: float


class Circle(Strict):
    kind: Literal["circle"]
    radius: float


class Item(Strict):
    path: str
    weight: float = 1.0


class Example(Strict):
    name: str
    count: int
    rate: float
    wanted: bool
    note: str | None
    pair: tuple[float, float]
    items: tuple[Item, ...]
    shape: Annotated[Square | Circle, Field(discriminator="kind")]


GOOD = """\
name: example
count: 3
rate: 1e-3
wanted: true
note: ~
pair: [0, 0.5]
items:
  - path: a
  - {path: b, weight: 2}
shape: {kind: square, side: 2}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "example.yaml"
    path.write_text(text)
    return path


def problems(folder: Path, text: str, *, overrides: tuple[str, ...] = ()) -> list[str]:
    """The lines of the ConfigError that `text` gives, without the path before ':line'."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path, Example, overrides=overrides)
    return [line.removeprefix(str(path)) for line in str(caught.value).splitlines()]


SCALARS: list[tuple[str, Any]] = [
    ("1e-3", 0.001),
    ("1.0e-3", 0.001),
    ("1E3", 1000.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("-.5", -0.5),
    ("+1.5", 1.5),
    ("010", 10),
    ("08", 8),
    ("-3", -3),
    ("+3", 3),
    ("0o17", 15),
    ("0x1F", 31),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("12:30", "12:30"),
    ("190:20:30", "190:20:30"),
    ("2024-01-31", "2024-01-31"),
    ("2024-01-31 10:00:00", "2024-01-31 10:00:00"),
    ("yes", "yes"),
    ("no", "no"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("true", True),
    ("True", True),
    ("FALSE", False),
    ("tRue", "tRue"),
    ("~", None),
    ("null", None),
    ("", None),
    (".inf", float("inf")),
    ("-.INF", float("-inf")),
    ("e3", "e3"),
    ("1e", "1e"),
    (".", "."),
    ("-", "-"),
    ("1.2.3", "1.2.3"),
    ("=", "="),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = scalar(text)
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_float() -> None:
    assert scalar(".nan") != scalar(".nan")


@pytest.mark.parametrize(("text", "value"), [item for item in SCALARS if item[0] not in ("-", "")])
def test_a_file_reads_scalars_the_same_way(tmp_path: Path, text: str, value: Any) -> None:
    assert read_yaml(write(tmp_path, f"key: {text}\n")) == {"key": value}


@pytest.mark.parametrize("text", ["'010'", '"1e-3"', "'true'", '"~"', "''", '"no"'])
def test_quoted_scalars_stay_strings(tmp_path: Path, text: str) -> None:
    assert read_yaml(write(tmp_path, f"key: {text}\n")) == {"key": text[1:-1]}


@pytest.mark.parametrize("text", [text for text, _ in SCALARS] + ["a: b", "- a", "#x", "two\nlines", "ä", " blank "])
def test_a_string_that_looks_like_something_else_survives_being_dumped(tmp_path: Path, text: str) -> None:
    data = {"name": text, text or "empty": 1}
    assert read_yaml(write(tmp_path, dump_yaml(data))) == data


def test_other_values_survive_being_dumped(tmp_path: Path) -> None:
    data = {"a": 1e-7, "b": 1, "c": None, "d": True, "e": (1.5, "x" * 200 + " " + "y" * 90), "f": {"g": -0.0}}
    assert read_yaml(write(tmp_path, dump_yaml(data))) == data


def test_a_good_file_becomes_a_typed_frozen_value(tmp_path: Path) -> None:
    value = load(write(tmp_path, GOOD), Example)
    assert value == Example(
        name="example",
        count=3,
        rate=0.001,
        wanted=True,
        note=None,
        pair=(0.0, 0.5),
        items=(Item(path="a"), Item(path="b", weight=2.0)),
        shape=Square(kind="square", side=2.0),
    )
    assert isinstance(value.pair[0], float)
    with pytest.raises(ValidationError, match="frozen"):
        value.count = 4


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    text = """\
name: example
cuont: 3
rate: fast
wanted: true
wanted: false
pair: [0, x]
items:
  - path: a
  - {path: 3, wieght: 2}
shape: {kind: square, side: 2}
"""
    assert problems(tmp_path, text) == [
        ":1: count: missing key",
        ":1: note: missing key",
        ":2: cuont: unknown key",
        ":3: rate: input should be a valid number, found 'fast' (a string)",
        ":5: wanted: duplicate key (first on line 4)",
        ":6: pair.1: input should be a valid number, found 'x' (a string)",
        ":9: items.1.path: input should be a valid string, found 3 (an integer)",
        ":9: items.1.wieght: unknown key",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count: 3", "count: true", "count: input should be a valid integer, found True (a boolean)"),
        ("count: 3", "count: '3'", "count: input should be a valid integer, found '3' (a string)"),
        ("count: 3", "count: 3.0", "count: input should be a valid integer, found 3.0 (a float)"),
        ("count: 3", "count:", "count: input should be a valid integer, found nothing"),
        ("rate: 1e-3", "rate: true", "rate: input should be a valid number, found True (a boolean)"),
        ("rate: 1e-3", "rate: '1'", "rate: input should be a valid number, found '1' (a string)"),
        ("rate: 1e-3", "rate: .nan", "rate: input should be a finite number, found nan (a float)"),
        ("rate: 1e-3", "rate: .inf", "rate: input should be a finite number, found inf (a float)"),
        ("wanted: true", "wanted: 1", "wanted: input should be a valid boolean, found 1 (an integer)"),
        ("wanted: true", "wanted: yes", "wanted: input should be a valid boolean, found 'yes' (a string)"),
        ("name: example", "name: 12", "name: input should be a valid string, found 12 (an integer)"),
        ("note: ~", "note: 1.5", "note: input should be a valid string, found 1.5 (a float)"),
        ("pair: [0, 0.5]", "pair: 3", "pair: input should be a list, found 3 (an integer)"),
        ("pair: [0, 0.5]", "pair: [1]", "pair.1: missing key"),
        ("side: 2}", "side: x}", "shape.side: input should be a valid number, found 'x' (a string)"),
        ("side: 2}", "radius: 2}", "shape.radius: unknown key"),
        ("kind: square", "kind: star", "shape.kind: expected one of 'square', 'circle', found 'star'"),
        ("kind: square, ", "", "shape.kind: missing key"),
        ("shape: {kind: square, side: 2}", "shape: 3", "shape: input should be a valid dictionary"),
    ],
)
def test_nothing_is_coerced_but_integers_to_floats(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    line = GOOD[: GOOD.index(old)].count("\n") + 1
    assert any(found.startswith(f":{line}: {message}") for found in problems(tmp_path, GOOD.replace(old, new)))


def test_a_problem_inside_a_union_has_the_line_of_its_key(tmp_path: Path) -> None:
    text = GOOD.replace("shape: {kind: square, side: 2}", "shape:\n  kind: circle\n  radius: wide")
    assert problems(tmp_path, text) == [":12: shape.radius: input should be a valid number, found 'wide' (a string)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\n", ":1: not valid YAML: anchors (&name) are not supported"),
        ("a: 1\nb: *x\n", ":2: not valid YAML: aliases (*name) are not supported"),
        ("a: !!str 1\n", ":1: not valid YAML: tags (!name) are not supported"),
        ("!thing {a: 1}\n", ":1: not valid YAML: tags (!name) are not supported"),
        ("a: 1\n<<: {b: 2}\n", ":2: <<: merge keys are not supported"),
        ("a: [1\nb: 2\n", ":2: not valid YAML: "),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML: but found another document"),
        ("a: 1\n? [x]\n: 2\n", ":2: a key must be a plain scalar"),
        ("a: \x01\n", ": not valid YAML: "),
        ("a:\n  b: 1\n  b: 2\n", ":3: a.b: duplicate key (first on line 2)"),
        ("a:\n  - b: 1\n    b: 2\n", ":3: a.0.b: duplicate key (first on line 2)"),
    ],
)
def test_a_file_reads_as_it_stands_or_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "nothing"), ("# only a comment\n", "nothing"), ("- a\n", "['a'] (a list)"), ("word\n", "'word' (a string)")],
)
def test_a_configuration_that_is_no_mapping_is_refused(tmp_path: Path, text: str, found: str) -> None:
    assert problems(tmp_path, text) == [f":1: expected a mapping of keys to values, found {found}"]


def test_a_key_that_is_no_string_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD + "12: a\n") == [":11: 12: keys should be strings, found 12 (an integer)"]


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.yaml: cannot be read as UTF-8 text"):
        load(path, Example)


def test_a_missing_file_is_named_with_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"exmaple.yaml: no such file; files there: example.yaml$"):
        load(tmp_path / "exmaple.yaml", Example)
    with pytest.raises(ConfigError, match=r"no such file$"):
        load(tmp_path / "nowhere" / "x.yaml", Example)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load(tmp_path, Example)


def test_overrides_are_typed_and_reach_nested_keys(tmp_path: Path) -> None:
    overrides = ("count=7", "rate=1", "note='12'", "pair=[1, 2]", "shape.side=1e1", "shape.kind=square")
    value = load(write(tmp_path, GOOD), Example, overrides=overrides)
    assert (value.count, value.rate, value.note, value.pair) == (7, 1.0, "12", (1.0, 2.0))
    assert value.shape == Square(kind="square", side=10.0)


def test_an_override_may_exchange_a_whole_block(tmp_path: Path) -> None:
    value = load(write(tmp_path, GOOD), Example, overrides=("shape={kind: circle, radius: 3}",))
    assert value.shape == Circle(kind="circle", radius=3.0)


def test_an_override_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD), Example, overrides=("name=a=b",)).name == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("count", ": --set count: expected key=value"),
        ("=3", ": --set =3: expected key=value"),
        ("cuont=3", ": --set cuont=3: no key 'cuont' in this file"),
        ("shape.colour=3", ": --set shape.colour=3: no key 'shape.colour' in this file"),
        ("count.x=3", ": --set count.x=3: no key 'count.x' in this file"),
        ("pair=[1", ": --set pair=[1: the value is not valid YAML"),
        ("shape={kind: square, side: 1, side: 2}", ": --set shape={kind: square, side: 1, side: 2}: side: duplicate"),
        ("count=x", ":2: count: input should be a valid integer, found 'x' (a string)"),
        ("shape.side=x", ":10: shape.side: input should be a valid number, found 'x' (a string)"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, message: str) -> None:
    (found,) = problems(tmp_path, GOOD, overrides=(override,))
    assert found.startswith(message)


def test_plain_data_gives_the_same_messages_without_lines() -> None:
    data = {"kind": "square", "side": "x", "more": 1}
    with pytest.raises(ConfigError) as caught:
        validate(data, Square, where="job.json")
    assert str(caught.value).splitlines() == [
        "job.json is not valid:",
        "  - side: input should be a valid number, found 'x' (a string)",
        "  - more: unknown key",
    ]


def test_a_validators_own_words_are_the_message(tmp_path: Path) -> None:
    text = (
        (CONFIGS / "pretrain" / "simsiam_r50_100e.yaml").read_text().replace("warmup_epochs: 0", "warmup_epochs: 100")
    )
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=r":\d+: \(top level\): warmup_epochs: expected fewer than epochs \(100\)"):
        load(path, PretrainConfig)


class Inner(Strict):
    depth: int
    kind: str


class Spread(Strict):
    """A model whose files may have a base."""

    may_have_base: ClassVar[bool] = True

    name: str
    inner: Inner | None
    sizes: tuple[int, ...]


BASE = "name: base\ninner:\n  depth: 1\n  kind: plain\nsizes: [1, 2]\n"


def spread(folder: Path, text: str, *, base: str = BASE, overrides: tuple[str, ...] = ()) -> Spread:
    (folder / "base.yaml").write_text(base)
    return load(write(folder, text), Spread, overrides=overrides)


def test_a_file_with_a_base_states_what_differs(tmp_path: Path) -> None:
    found = spread(tmp_path, "base: base.yaml\nname: own\ninner: {kind: odd}\nsizes: [3]\n")
    assert found == Spread(name="own", inner=Inner(depth=1, kind="odd"), sizes=(3,))
    assert spread(tmp_path, "base: base.yaml\ninner: null\n") == Spread(name="base", inner=None, sizes=(1, 2))
    assert spread(tmp_path, "base: base.yaml\n", overrides=("inner.depth=9",)).inner == Inner(depth=9, kind="plain")


@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("base: base.yaml\ninner: {kind: 1}\n", BASE, "FILE:2: inner.kind: input should be a valid string, found 1 "),
        ("base: base.yaml\ninner: {kinds: x}\n", BASE, "FILE:2: inner.kinds: unknown key"),
        ("base: base.yaml\n", BASE.replace("depth: 1", "depth: x"), "BASE:3: inner.depth: input should be a valid int"),
        ("base: base.yaml\n", BASE + "name: twice\n", "BASE:6: name: duplicate key (first on line 1)"),
        ("base: base.yaml\nname: a\n", "- 1\n", "FILE:1: base: BASE:1: expected a mapping of keys to values"),
        ("name: a\nbase: none.yaml\n", BASE, "FILE:2: base: DIR/none.yaml: no such file; files there: base.yaml"),
        (
            "base: [base.yaml]\n",
            BASE,
            "FILE:1: base: expected the path of a file, seen from this one's folder, found [",
        ),
        ("base: base.yaml\n", "base: a.yaml\n", "FILE:1: base: expected a file without a base of its own, found base."),
    ],
)
def test_a_problem_of_a_file_with_a_base_is_told_where_it_stands(
    tmp_path: Path, text: str, base: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        spread(tmp_path, text, base=base)
    shown = str(caught.value).replace(str(tmp_path / "base.yaml"), "BASE").replace(str(write(tmp_path, text)), "FILE")
    assert message in shown.replace(str(tmp_path), "DIR")


def test_a_base_is_for_models_that_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=":1: base: unknown key"):
        load(write(tmp_path, "base: base.yaml\ndepth: 1\nkind: x\n"), Inner)


def config_files(folder: str) -> list[Path]:
    """Every YAML file below configs/<folder>; none at all would be a test that tests nothing."""
    found = sorted((CONFIGS / folder).rglob("*.yaml"))
    assert found, folder
    return found


def identifier(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", config_files("datasets"), ids=identifier)
def test_every_dataset_file_loads_under_its_own_name(path: Path) -> None:
    assert dataset_config(path.stem).name == path.stem
    assert path.parent == CONFIGS / "datasets"


@pytest.mark.parametrize("path", config_files("datasets"), ids=identifier)
def test_every_substitute_names_a_dataset(path: Path) -> None:
    original = load(path, DatasetConfig).substitute_for
    assert original is None or (CONFIGS / "datasets" / f"{original}.yaml").exists()


@pytest.mark.parametrize("path", config_files("pretrain"), ids=identifier)
def test_every_pretrain_file_loads_under_its_own_name(path: Path) -> None:
    config = load(path, PretrainConfig)
    assert config.name == path.stem
    assert {config.split, config.monitor.bank_split, config.monitor.query_split} <= set(
        dataset_config(config.dataset).splits
    )


@pytest.mark.parametrize("path", config_files("benchmarks"), ids=identifier)
def test_every_benchmark_file_loads_and_names_a_dataset(path: Path) -> None:
    assert path.parent == CONFIGS / "benchmarks"
    assert dataset_config(load_benchmark(path.stem).dataset)


@pytest.mark.parametrize("path", config_files("suites"), ids=identifier)
def test_every_suite_file_loads_and_names_files_that_exist(path: Path) -> None:
    suite = load(path, SuiteConfig)
    assert suite.name == path.stem
    for name in {*suite.benchmarks, *(name for entry in suite.checkpoints for name in entry.benchmarks or ())}:
        assert load_benchmark(name)
    for entry in suite.checkpoints:
        for recipe in (entry.pretrain, entry.supervised):
            assert recipe is None or (CONFIGS.parent / recipe).is_file()


PUBLISHED = [path for path in config_files("published") if path.name not in (TABLES_NAME, ABLATIONS_NAME)]


@pytest.mark.parametrize("path", PUBLISHED, ids=identifier)
def test_every_published_file_loads(path: Path) -> None:
    assert load(path, Source).rows


def test_the_published_files_agree_with_their_tables() -> None:
    assert len(load_published().sources) == len(PUBLISHED)


def test_every_engine_file_is_a_benchmarks_or_stands_under_one() -> None:
    """Named by a benchmark, a base of one that is, or what a conversion is proven in."""
    named = {
        CONFIGS.parent / read_yaml(path)["settings"]["engine_config"]
        for path in config_files("benchmarks")
        if "engine_config" in read_yaml(path)["settings"]
    }
    named |= {CONFIGS / "engines" / engine / name for engine, places in PLACES.items() for name, _ in places.values()}
    for path in list(named):
        assert resolved(path)
        while path is not None:
            named.add(path)
            content = read_yaml(path)
            base = content.get("_BASE_", content.get("_base_"))
            path = path.parent / base if base else None
    assert named == set(config_files("engines"))


def test_no_configuration_folder_is_left_unread() -> None:
    """A new folder under configs/ needs its line above."""
    known = {"datasets", "pretrain", "benchmarks", "suites", "published", "engines", "checkpoints"}
    assert {path.relative_to(CONFIGS).parts[0] for path in CONFIGS.rglob("*.yaml")} == known
