"""How do the tables' Markdown texts read as HTML, and as plain text?

Only what `report.markdown` and the tables write: **bold**, *italic*, `code`, [text](address) and backslash escapes.
Everything else is text, and is escaped; an address that a page must not follow (javascript: say) is left out.
"""

import re
from functools import lru_cache

from markupsafe import Markup, escape

_TOKEN = re.compile(
    r"\\(?P<escaped>[!-/:-@\[-`{-~])"
    r"|(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    r"|\*\*(?P<bold>(?:\\.|[^\\])+?)\*\*"
    r"|\*(?P<italic>(?:\\.|[^\\*])+?)\*"
    r"|\[(?P<text>(?:\\.|[^\\\]])*)\]\((?P<address>(?:[^()\s]|\([^()\s]*\))*)\)"
)
_SPECIAL = frozenset("\\`*[")
_FOLLOWED = ("https://", "http://", "#")


@lru_cache(maxsize=65536)
def html(markdown: str) -> Markup:
    """One line of Markdown as HTML."""
    if not _SPECIAL.intersection(markdown):
        return escape(markdown)
    parts: list[Markup] = []
    at = 0
    for match in _TOKEN.finditer(markdown):
        parts += [escape(markdown[at : match.start()]), _element(match)]
        at = match.end()
    return Markup("").join([*parts, escape(markdown[at:])])


def plain(markdown: str) -> str:
    """The words alone."""
    return html(markdown).striptags() if _SPECIAL.intersection(markdown) else markdown


def _element(match: re.Match[str]) -> Markup:
    if match["escaped"] is not None:
        return escape(match["escaped"])
    if match["code"] is not None:
        code = match["code"]
        bare = code[1:-1] if code.strip() and code[0] == code[-1] == " " else code  # CommonMark: `` ` `` is one tick
        return Markup("<code>{}</code>").format(bare)
    if match["bold"] is not None:
        return Markup("<strong>{}</strong>").format(html(match["bold"]))
    if match["italic"] is not None:
        return Markup("<em>{}</em>").format(html(match["italic"]))
    text = html(match["text"])
    if not match["address"].startswith(_FOLLOWED):
        return text
    return Markup('<a href="{}">{}</a>').format(match["address"], text)
