"""Figures that live in a page and beside it: SVG in the page's own colours, PNG on white."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_WIDTH = 5.0  # inches: a phone shows a point as a pixel, a desk as one and a half
_FONT = 9.5  # points
_DPI = 200

# Name of a colour: on white, and on a dark page.  The page's style sheet has them as variables.
COLOURS = {
    "ink": ("#1e2429", "#e6e9ec"),
    "paper": ("#fffffe", "#15191d"),
    "rule": ("#e0e4e8", "#343c44"),
    "dense": ("#56626b", "#aab5bd"),
    "pruned": ("#12715b", "#5fd3b3"),
    "sparse": ("#8a5a00", "#e3b261"),
    "limit": ("#b3261e", "#ff8f86"),
    "predicted": ("#3567ad", "#8fb8f5"),
}


@dataclass(frozen=True)
class Picture:
    """A figure and its words.

    Attributes:
        name: of its PNG, and the prefix of its ids in the page.
        title: a few words.
        text: what it shows, for those who do not see it.
        figure: matplotlib's.
    """

    name: str
    title: str
    text: str
    figure: Any

    def svg(self) -> str:
        """As an element of an HTML page, without any reference to the outside; its colours follow the page."""
        buffer = io.StringIO()
        with _theme():
            self.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
        text = buffer.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
        text = _own_ids(text, self.name)
        for name, (light, _) in COLOURS.items():
            text = text.replace(light, f"var(--{name})")
        head = f'<svg role="img" aria-labelledby="{self.name}-title {self.name}-desc"'
        words = (
            f'<title id="{self.name}-title">{html.escape(self.title)}</title>'
            f'<desc id="{self.name}-desc">{html.escape(self.text)}</desc>'
        )
        opening = re.match(r"<svg([^>]*)>", text)
        assert opening is not None
        # In HTML an SVG needs no declared names; a size in points would keep it from following the page's width.
        kept = re.sub(r'\s(?:xmlns(?::\w+)?|version|width|height)="[^"]*"', "", opening[1])
        return f"{head}{kept}>{words}{text[opening.end() :]}"

    def png(self) -> bytes:
        """On white."""
        buffer = io.BytesIO()
        with _theme():
            self.figure.savefig(
                buffer, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None, "Title": self.title}
            )
        return buffer.getvalue()


def colour(name: str) -> str:
    """A colour by its name."""
    return COLOURS.get(name, COLOURS["ink"])[0]


@contextmanager
def canvas(height: float, *, panels: int = 1, heights: list[float] | None = None) -> Iterator[tuple[Any, list[Any]]]:
    """A figure and its panels, one below the other; everything is drawn within the block.

    Args:
        height: of the whole, in inches.
        panels: their number.
        heights: of the panels, relative to each other.
    """
    from matplotlib.figure import Figure  # the object interface: no global state, no display

    with _theme():
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axes = list(figure.subplots(panels, 1, squeeze=False, height_ratios=heights)[:, 0])
        for one in axes:
            one.grid(color=colour("rule"), linewidth=0.7)
            one.set_axisbelow(True)
            for side in ("top", "right"):
                one.spines[side].set_visible(False)
        yield figure, axes


def legend_below(figure: Any, handles: list[Any], *, columns: int = 3) -> None:
    """A legend under the panels, where it hides nothing."""
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


@contextmanager
def _theme() -> Iterator[None]:
    import matplotlib

    ink = colour("ink")
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        "font.size": _FONT,
        "axes.titlesize": _FONT,
        "legend.fontsize": _FONT - 0.7,
        "axes.linewidth": 0.7,
        "svg.fonttype": "none",  # letters stay letters: small, searchable, read aloud
        "svg.hashsalt": "prune-export",  # the same figure gives the same bytes
        "axes.formatter.useoffset": False,
    }
    with matplotlib.rc_context(settings):
        yield


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that no other figure of the page has."""
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    return svg.replace("url(#", f"url(#{prefix}-")
