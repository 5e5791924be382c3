"""How a YAML file becomes a typed, frozen value, or one error that lists every problem with its line.

Scalars follow YAML 1.2's core schema (PyYAML alone follows 1.1): `1e-3` is a float, `no` a string, `010` the number 10.
Duplicate keys, unknown keys, missing keys and wrong types are errors; nothing is coerced, except that an integer is
accepted where a float is expected. Anchors, aliases, tags and merge keys are refused: a file reads as it stands. Only
a model that says so (`may_have_base`) may be spread over two: `base: OTHER.yaml`, beside it, and what differs from it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from zoo.errors import ConfigError, several


class Strict(BaseModel):
    """Base of every configuration model: frozen, no unknown keys, no coercion, no NaN."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)
    may_have_base: ClassVar[bool] = False  # whether a file of it may begin with `base: OTHER.yaml`


Model = TypeVar("Model", bound=Strict)
Path_ = tuple[str | int, ...]  # where a value stands: ("views", "crop") or ("checkpoints", 0, "card")

_SCALARS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("null", re.compile(r"(?:null|Null|NULL|~|)$")),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")),
    ("int", re.compile(r"[-+]?[0-9]+$")),
    ("octal", re.compile(r"0o[0-7]+$")),
    ("hex", re.compile(r"0x[0-9a-fA-F]+$")),
    ("float", re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")),
    ("special", re.compile(r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")),
)
_BASES = {"int": 10, "octal": 8, "hex": 16}


def scalar(text: str) -> Any:
    """The value of a plain (unquoted) YAML 1.2 core-schema scalar."""
    kind = next((name for name, pattern in _SCALARS if pattern.match(text)), "str")
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind in _BASES:
        return int(text.removeprefix("0o").removeprefix("0x") if kind != "int" else text, _BASES[kind])
    if kind == "float":
        return float(text)
    if kind == "special":
        return float(text.lower().replace(".", ""))
    return text


class _Document:
    """One parsed file: its data (sequences as tuples), the line of every value, and the problems met on the way."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path_, int] = {(): 1}
        self.problems: list[tuple[int, str]] = []
        node = yaml.compose(text, Loader=_Plain)
        self.data: Any = None if node is None else self._value(node, ())

    def _value(self, node: yaml.Node, at: Path_) -> Any:
        self.lines[at] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._value(child, (*at, index)) for index, child in enumerate(node.value))
        assert isinstance(node, yaml.ScalarNode)
        return scalar(node.value) if node.style is None else node.value  # a quoted scalar stays a string

    def _mapping(self, node: yaml.MappingNode, at: Path_) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append((line, "a key must be a plain scalar"))
                continue
            key = scalar(key_node.value) if key_node.style is None else key_node.value
            if key == "<<":
                self.problems.append((line, f"{_dotted((*at, key))}: merge keys are not supported"))
                continue
            if key in result:
                first = self.lines[(*at, key)]
                self.problems.append((line, f"{_dotted((*at, key))}: duplicate key (first on line {first})"))
                continue
            result[key] = self._value(value_node, (*at, key))
            self.lines[(*at, key)] = line  # the key's line: what an editor should jump to
        return result


class _Plain(yaml.SafeLoader):
    """PyYAML's composer, with all refused that would give a value another meaning than its text has."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        found = None
        if isinstance(event, yaml.AliasEvent):
            found = "aliases (*name)"
        elif isinstance(event, yaml.NodeEvent) and event.anchor:
            found = "anchors (&name)"
        elif getattr(event, "tag", None):
            found = "tags (!name)"
        if found:
            raise yaml.MarkedYAMLError(problem=f"{found} are not supported", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def _dotted(at: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in at) or "(top level)"


def read_yaml(path: Path) -> Any:
    """A YAML file's plain data (mappings as dicts, sequences as tuples). Raises ConfigError naming file and line."""
    document = _parse(path)
    if document.problems:
        raise _error([(path, line, problem) for line, problem in document.problems])
    return document.data


def load(path: Path, model: type[Model], *, overrides: Sequence[str] = ()) -> Model:
    """Read `path` as a `model`. Raises ConfigError with every problem, each with file and line.

    `overrides` are `key.sub=value` strings (from --set); a value is read as a YAML scalar or flow collection.
    """
    documents = [(path, _parse_mapping(path))]
    data = documents[0][1].data
    if model.may_have_base and "base" in data:
        documents.append(_base(path, documents[0][1]))
        data = _merged(documents[1][1].data, data)
    problems = [(where, line, text) for where, document in documents for line, text in document.problems]
    problems += [(path, 0, problem) for text in overrides if (problem := _override(data, text, model))]
    try:
        value = model.model_validate(data)
    except ValidationError as error:
        for item in error.errors():
            at, text = _problem(item, data)
            problems.append((*_place_in_files(documents, at), f"{_dotted(at)}: {text}"))
        raise _error(problems) from None
    if problems:
        raise _error(problems)
    return value


def _base(path: Path, document: _Document) -> tuple[Path, _Document]:
    """The file that `path` starts from, and its content; the key `base` is taken out of `document`.

    A base has no base of its own: whoever reads a file has two to look at, and no more.
    """
    name = document.data.pop("base")
    here = f"{path}:{document.lines[('base',)]}: base"
    if not isinstance(name, str):
        raise ConfigError(f"{here}: expected the path of a file, seen from this one's folder, found {_shown(name)}")
    try:
        base = _parse_mapping(path.parent / name)
    except ConfigError as error:
        raise ConfigError(f"{here}: {error}") from error
    if "base" in base.data:
        raise ConfigError(f"{here}: expected a file without a base of its own, found {name}, which has one")
    return path.parent / name, base


def _merged(base: dict[Any, Any], own: dict[Any, Any]) -> dict[Any, Any]:
    """`base` with what `own` says instead: mappings key by key, all else (lists too) as a whole."""
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in own.items()
    }
    return {**base, **both}


def validate(data: Mapping[str, Any], model: type[Model], *, where: str) -> Model:
    """Plain data as a `model`; the same messages as `load`, without lines. `where` names the origin."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = [_problem(item, data) for item in error.errors()]
        problems = list(dict.fromkeys(f"{_dotted(at)}: {text}" for at, text in found))
        raise ConfigError(several(f"{where} is not valid:", problems)) from None


class _Dumper(yaml.SafeDumper):
    """PyYAML's emitter, with quotes round every string that `scalar` would read as something else."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = None if isinstance(scalar(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _string)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml` reads back as it was (tuples and lists both as sequences)."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _parse_mapping(path: Path) -> _Document:
    document = _parse(path)
    if not isinstance(document.data, dict):
        raise _error([(path, 1, f"expected a mapping of keys to values, found {_shown(document.data)}")])
    return document


def _parse(path: Path) -> _Document:
    try:
        return _Document(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(other.name for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; files there: {', '.join(near[:12])}" if near else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error


def _override(data: dict[Any, Any], text: str, model: type[BaseModel]) -> str | None:
    """Put one `key.sub=value` into `data`; the problem as text if neither it nor the model has a place for it."""
    key, separator, raw = text.partition("=")
    if not separator or not key:
        return f"--set {text}: expected key=value"
    try:
        document = _Document(raw)
    except yaml.YAMLError:
        return f"--set {text}: the value is not valid YAML"
    if document.problems:
        return f"--set {text}: {document.problems[0][1]}"
    parts = [scalar(part) for part in key.split(".")]
    target: Any = data
    for part in parts[:-1]:
        target = target.get(part) if isinstance(target, dict) else None
    if not isinstance(target, dict) or (parts[-1] not in target and not _is_optional(model, parts)):
        return f"--set {text}: no key '{key}' in this file"
    target[parts[-1]] = document.data
    return None


def _is_optional(model: Any, parts: Sequence[Any]) -> bool:
    """Whether a key (its parts, from the top) is one that `model` knows and a file may leave out."""
    for part in parts[:-1]:
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
    field = model.model_fields.get(parts[-1])
    return field is not None and not field.is_required()


def _place_in_files(documents: Sequence[tuple[Path, _Document]], location: Path_) -> tuple[Path, int]:
    """File and line of the deepest part of `location` that stands in one (a missing key has its parent's line)."""
    for depth in range(len(location), 0, -1):
        for path, document in documents:
            if location[:depth] in document.lines:
                return path, document.lines[location[:depth]]
    return documents[0][0], 1


_REQUIRED = {"missing": "missing key", "extra_forbidden": "unknown key"}


def _problem(item: Any, data: Any) -> tuple[Path_, str]:
    """Where in `data` one of pydantic's errors lies, and what it says."""
    kind, at = item["type"], _place(item["loc"], data)
    if kind == "missing":
        return (*at, item["loc"][-1]), _REQUIRED[kind]
    if kind == "union_tag_not_found":
        return (*at, item["ctx"]["discriminator"].strip("'")), _REQUIRED["missing"]
    if kind == "union_tag_invalid":
        expected = f"expected one of {item['ctx']['expected_tags']}, found '{item['ctx']['tag']}'"
        return (*at, item["ctx"]["discriminator"].strip("'")), expected
    if kind in _REQUIRED:
        return at, _REQUIRED[kind]
    if kind == "value_error":  # raised by a validator of ours: its text is the message
        return at, str(item["ctx"]["error"])
    expected = (item["msg"][0].lower() + item["msg"][1:]).replace("a valid tuple", "a list")
    return at, f"{expected}, found {_shown(item['input'])}"


def _place(location: Sequence[str | int], data: Any) -> Path_:
    """The parts of pydantic's `location` that stand in `data`: it adds the names of union branches, which do not."""
    at: Path_ = ()
    for part in location:
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        at = (*at, part)
    return at


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({_TYPES.get(type(value), type(value).__name__)})"


_TYPES = {str: "a string", int: "an integer", float: "a float", bool: "a boolean", dict: "a mapping", tuple: "a list"}


def _error(problems: Sequence[tuple[Path, int, str]]) -> ConfigError:
    lines = (f"{path}:{line}: {text}" if line else f"{path}: {text}" for path, line, text in sorted(set(problems)))
    return ConfigError("\n".join(lines))
