"""An engine's own configuration files, with what they are based on merged in.

detectron2 and mmengine both let a YAML file name another one that it changes (`_BASE_`, `_base_`). The merged content
is part of a benchmark's settings, so a changed value re-runs its cells and a comment or a renamed file does not.
"""

from pathlib import Path
from typing import Any

from zoo.config import read_yaml
from zoo.errors import ConfigError

_BASES = ("_BASE_", "_base_")


def resolved(path: Path) -> dict[str, Any]:
    """The file's content over that of its bases, sequences as lists. Raises ConfigError naming the file."""
    return _resolved(path, ())


def _resolved(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: is based on itself, by way of {above[-1].name}")
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1: expected a mapping of keys to values, found {type(content).__name__}")
    bases = [content.pop(key) for key in _BASES if key in content]
    merged: dict[str, Any] = {}
    for base in bases:
        for name in (base,) if isinstance(base, str) else base:
            merged = laid_over(merged, _resolved(path.parent / name, (*above, path.resolve())))
    return laid_over(merged, _plain(content))


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above`'s values over `below`'s, mapping by mapping; lists are replaced whole."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = laid_over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
