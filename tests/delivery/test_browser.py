"""The report in a real browser: what it draws, what it complains of, what it asks of the network."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_report import artifact  # type: ignore[import-not-found] # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"),
]

# What the browser made of the page, as text that --dump-dom prints.
PROBE = """
<script>addEventListener('load', () => {
  const drawn = element => { const box = element.getBoundingClientRect(); return box.width > 50 && box.height > 50 };
  const all = kind => [...document.querySelectorAll(kind)];
  const found = {
    headings: all('h1, h2').map(item => item.innerText),
    figures: all('figure svg').map(drawn),
    shapes: all('figure svg').map(item => item.querySelectorAll('path, use, image').length),
    dangling: all('use').filter(item => !document.querySelector(item.getAttribute('href')
      || item.getAttribute('xlink:href'))).length,
    images: all('img').map(item => [item.naturalWidth, item.naturalHeight]),
    requests: performance.getEntriesByType('resource').map(item => item.name),
    width: innerWidth, wide: document.documentElement.scrollWidth,
    beyond: all('body *').filter(item => !item.closest('.scroll') && !item.closest('svg')
      && item.getBoundingClientRect().right > innerWidth + 1).map(item => item.tagName),
  };
  parent.postMessage(JSON.stringify(found), '*');
})</script>
"""
# No window of Chromium is narrower than 500 pixels, a frame can be as narrow as a phone.
FRAME = """<!doctype html><body style="margin:0"><pre id="probe" hidden></pre>
<script>addEventListener('message', event => document.getElementById('probe').textContent = event.data)</script>
<iframe src="{page}" width="{width}" height="{height}" style="border:0;display:block"></iframe></body>
"""


@dataclass(frozen=True)
class Seen:
    """What one visit gave: the probe's findings, and the lines of the console."""

    found: dict[str, Any]
    console: list[str]


def visit(page: Path, work: Path, *, width: int) -> Seen:
    """Opens a page without a network, with the probe in it."""
    probed = page.with_name(f"probed-{page.name}")
    probed.write_text(page.read_text(encoding="utf8").replace("</body>", f"{PROBE}</body>"), encoding="utf8")
    result = _framed(probed, work, "--virtual-time-budget=5000", "--dump-dom", width=width, height=900)
    (text,) = re.findall(r'<pre id="probe" hidden="">(.*?)</pre>', result.stdout, flags=re.DOTALL)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(text)), console)


def screenshot(page: Path, to: Path, work: Path, *, width: int, height: int) -> tuple[int, int, int]:
    """Width, height and number of different rows of the picture."""
    _framed(page, work, f"--screenshot={to}", width=width, height=height)
    return _rows(to.read_bytes())


def _framed(page: Path, work: Path, *arguments: str, width: int, height: int) -> subprocess.CompletedProcess[str]:
    frame = work / "frame.html"
    frame.write_text(FRAME.format(page=page.as_uri(), width=width, height=height), encoding="utf8")
    return _chromium(work, "--hide-scrollbars", f"--window-size={max(500, width)},{height}", *arguments, frame.as_uri())


def _chromium(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work / 'profile'}"),
        *("--proxy-server=127.0.0.1:9", "--disable-background-networking", "--enable-logging=stderr", "--v=0"),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def _rows(png: bytes) -> tuple[int, int, int]:
    width, height, depth, colour = struct.unpack(">IIBB", png[16:26])
    channels = {2: 3, 6: 4}[colour]
    assert depth == 8
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    plain = zlib.decompress(data)
    step = 1 + width * channels
    return width, height, len({plain[row * step : (row + 1) * step] for row in range(height)})


@pytest.mark.parametrize("width", [1280, 480, 360])
def test_the_report_is_drawn_whole_and_asks_nothing_of_the_network(
    artifact: Path,  # noqa: F811
    tmp_path: Path,
    width: int,
) -> None:
    page = artifact / "report.html"
    seen = visit(page, tmp_path, width=width)
    assert seen.console == []
    assert seen.found["requests"] == []
    assert seen.found["width"] == width
    headings = re.findall(r"<h[12]>(.*?)</h[12]>", page.read_text(encoding="utf8"))
    assert len(headings) > 4
    assert seen.found["headings"] == [html.unescape(item) for item in headings]
    assert len(seen.found["figures"]) == 5
    assert all(seen.found["figures"])
    assert min(seen.found["shapes"]) > 10
    assert seen.found["dangling"] == 0
    assert seen.found["wide"] <= width, f"the page scrolls sideways: {seen.found['beyond']}"
    assert seen.found["beyond"] == []
    wide, high, different = screenshot(page, tmp_path / "page.png", tmp_path, width=width, height=3000)
    assert (wide, high) == (max(500, width), 3000)
    assert different > 500, "next to nothing was drawn"


def test_the_figures_beside_it_decode(artifact: Path, tmp_path: Path) -> None:  # noqa: F811
    pictures = sorted((artifact / "figures").glob("*.png"))
    assert len(pictures) == 5
    page = artifact / "pictures.html"
    page.write_text("<body>" + "".join(f'<img src="figures/{item.name}">' for item in pictures) + "</body>")
    seen = visit(page, tmp_path, width=1280)
    assert seen.console == []
    assert seen.found["images"] == [list(_rows(item.read_bytes())[:2]) for item in pictures]
    assert min(size for picture in seen.found["images"] for size in picture) > 300


def test_a_page_that_asks_for_something_outside_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<body><h1>x</h1><img src="http://example.org/x.png"><script>nonsense()</script></body>')
    seen = visit(page, tmp_path, width=1280)
    assert seen.found["requests"] == ["http://example.org/x.png"]
    assert seen.found["images"] == [[0, 0]]
    assert any("nonsense is not defined" in line for line in seen.console)
