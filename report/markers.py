"""How generated text gets into a hand-written file: only what stands between two markers is replaced.

    <!-- generated: begin -->            the whole page
    <!-- generated:NAME begin -->        one block of it, a table say
    ...
    <!-- generated:NAME end -->

A marker is a line of its own. What stands outside is kept byte for byte.
"""

import re
from collections.abc import Iterator, Mapping

from zoo.errors import ConfigError, several

_MARKER = re.compile(r"<!-- generated:(?P<name>\S*) (?P<edge>begin|end) -->")


def begin(name: str) -> str:
    return f"<!-- generated:{name} begin -->"


def end(name: str) -> str:
    return f"<!-- generated:{name} end -->"


def names(text: str) -> set[str]:
    """The names of the blocks that `text` has markers for; the whole page is ''."""
    return {name for _, name, _ in _markers(text)}


def fill(text: str, blocks: Mapping[str, str], *, where: str) -> str:
    """`text` with every block's content replaced. Raises ConfigError for unpaired markers and unknown names.

    `where` names the file. A block's content has no line break at its end.
    """
    problems: list[str] = []
    opened: tuple[int, str] | None = None
    for number, name, edge in _markers(text):
        if edge == "begin":
            if opened is not None:
                problems.append(f"line {number}: {begin(name)} inside the block begun on line {opened[0]}")
            if name not in blocks:
                problems.append(f"line {number}: no block '{name}'; there are: {', '.join(sorted(blocks)[1:])}")
            opened = (number, name)
        elif opened is None or opened[1] != name:
            problems.append(f"line {number}: {end(name)} without its begin")
        else:
            opened = None
    if opened is not None:
        problems.append(f"line {opened[0]}: {begin(opened[1])} without its end")
    if problems:
        raise ConfigError(several(f"{where}: the markers of generated text are wrong:", problems))
    return "".join(_filled(text, blocks))


def _markers(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        match = _MARKER.fullmatch(line.strip())
        if match:
            yield number, match["name"], match["edge"]


def _filled(text: str, blocks: Mapping[str, str]) -> Iterator[str]:
    inside = False
    for line in text.splitlines(keepends=True):
        match = _MARKER.fullmatch(line.strip())
        inside = inside and not (match and match["edge"] == "end")
        if not inside:
            yield line
        if match and match["edge"] == "begin":
            inside = True
            yield f"\n{blocks[match['name']]}\n\n"
