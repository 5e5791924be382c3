"""The guides of docs/: their code blocks, and the commands that they and the README tell."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zoo.files import ROOT

GUIDES: Final = ("add_a_benchmark", "add_a_layout", "cluster", "faq", "variants")
DOCUMENTS: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE: Final = re.compile(r"^```\w*\n(.*?)^```$", re.M | re.S)
_MODULE: Final = re.compile(r"(?:python|torchrun\b.*?) -m ([\w.]+)(.*)")
_RUN_ALL: Final = re.compile(r"\./run_all\.sh(.*)")
_END: Final = re.compile(r"\s#| \| |\s…\s")  # of a command: a comment, the next of several alternatives


def text_of(guide: str) -> str:
    return (ROOT / "docs" / f"{guide}.md").read_text()


def block(guide: str, before: str) -> str:
    """The first code block after the text `before`."""
    _, found, rest = text_of(guide).partition(before)
    match = _FENCE.search(rest)
    assert found and match, f"docs/{guide}.md: expected a code block after {before!r}"
    return match[1]


@dataclass(frozen=True)
class Command:
    """`python -m module words…`. words: up to the first that is no plain word; `a|b` are alternatives."""

    where: str
    module: str
    words: tuple[str, ...]
    options: tuple[str, ...]
    rest: str


def commands(path: Path) -> Iterator[Command]:
    """Every command of a document, in blocks and in code within sentences; those of run_all.sh as what it runs."""
    text = path.read_text()
    lines = [line for code in _FENCE.findall(text) for line in code.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", _FENCE.sub("", text))]
    for line in lines:
        for pattern, module in ((_MODULE, ""), (_RUN_ALL, "evaluate")):
            for match in pattern.finditer(line):
                rest = _END.split(match[match.lastindex or 1])[0].rstrip()
                words = tuple(re.match(r"(?: [a-z][\w|-]*(?=[\s;).,]|$))*", rest)[0].split())  # type: ignore[index]
                options = tuple(re.findall(r"(?<=[\s(\[])--[a-z][\w-]*", rest))
                if module:
                    words = ("suite",)
                yield Command(path.name, module or match[1], words, options, rest)
