"""Elements of a self-contained page: its style, tables, figures, lists."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from prune_export.delivery.drawing import COLOURS, Picture

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:1.5rem auto;padding:0 1rem;
color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;line-height:1.25;margin-bottom:.2rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin-top:2.2rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
.claim{font-size:1.1rem;color:var(--pruned);white-space:pre-line}.missed{color:var(--limit)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;min-width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
.left{text-align:left}
tr.marked td{font-weight:600;background:var(--soft)}
figure{margin:1rem 0 1.6rem}figure svg{display:block;width:100%;max-width:38rem;height:auto}
figcaption,.small{font-size:.9rem;opacity:.85;max-width:38rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.25rem 1.2rem;margin:.4rem 0}
dt{opacity:.75}dd{margin:0;overflow-wrap:anywhere}
pre{background:var(--soft);padding:.7rem;border-radius:6px;white-space:pre-wrap;overflow-wrap:anywhere}
code{font-size:.85em}summary{cursor:pointer;margin:.6rem 0}
@media(max-width:40rem){dl{grid-template-columns:minmax(0,1fr);gap:0}dd{margin-bottom:.55rem}
th,td{padding:.3rem .45rem;font-size:.9rem}}
@media print{details>*{display:block}}
"""
_SOFT = ("#f3f5f7", "#1f252b")


def document(title: str, body: str) -> str:
    """A whole page without any outside reference, for light and dark."""
    colours = {**COLOURS, "soft": _SOFT}
    light, dark = (";".join(f"--{name}:{pair[at]}" for name, pair in colours.items()) for at in (0, 1))
    style = f":root{{color-scheme:light dark;{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{_STYLE}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def escaped(text: str) -> str:
    """Text as HTML."""
    return html.escape(text)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of a class of the style sheet."""
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escaped(text)}</p>"


def figure(picture: Picture, caption: str) -> str:
    """A figure with its caption."""
    return f"<figure>{picture.svg()}<figcaption>{escaped(caption)}</figcaption></figure>"


def table(
    name: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, marks: Sequence[bool] = (), left: int = 1
) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        name: for those who do not see it.
        head: of the columns.
        rows: of text.
        marks: rows that stand out.
        left: so many columns are words, the others figures.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        side = [' class="left"' if column < left else "" for column in range(len(cells))]
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(f"<{tag}{scope}{at}>{escaped(cell)}</{tag}>" for cell, at in zip(cells, side, strict=True))

    marked = [*marks, *([False] * (len(rows) - len(marks)))]
    body = "".join(
        f"<tr{' class=marked' if mark else ''}>{line(row, 'td')}</tr>" for row, mark in zip(rows, marked, strict=True)
    )
    # It can be scrolled, so it can be reached with the keyboard.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(name)}">'
        f"<table><thead><tr>{line(head, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def definitions(rows: Mapping[str, str]) -> str:
    """Names and what they stand for; those that stand for nothing are left out."""
    found = {key: value for key, value in rows.items() if value}
    return (
        "<dl>" + "".join(f"<dt>{escaped(key)}</dt><dd>{escaped(value)}</dd>" for key, value in found.items()) + "</dl>"
    )


def details(summary: str, body: str) -> str:
    """Something to open."""
    return f"<details><summary>{escaped(summary)}</summary>{body}</details>"
