"""Text that every Python installation carries: the sources of the standard library.

The reference model is trained on it, and two fixed lists of modules serve as calibration and held-out text when the
user names none.  Both lists avoid `test/` (slim Pythons omit it) and modules that recent Pythons dropped or turned
into packages, so the same lists exist everywhere; the exact text still depends on the Python version, which is why
`Corpus` carries a digest and the version and every figure is reported next to them.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CALIBRATION_MODULES = (
    "collections/__init__", "typing", "inspect", "subprocess", "threading", "functools", "shutil", "dataclasses",
    "doctest", "optparse", "configparser", "unittest/case", "asyncio/base_events", "asyncio/tasks",
    "email/_header_value_parser", "http/client", "http/server", "urllib/request", "urllib/parse",
    "logging/__init__", "multiprocessing/managers", "multiprocessing/pool", "pickle", "pickletools", "gettext",
    "locale", "ssl", "smtplib", "imaplib", "socket", "socketserver", "random", "_pydecimal", "contextlib",
    "traceback", "uuid", "tempfile", "types", "weakref", "xmlrpc/client", "xml/etree/ElementTree",
)  # fmt: skip
HELDOUT_MODULES = (
    "argparse", "statistics", "ipaddress", "tarfile", "mailbox", "textwrap", "difflib", "plistlib", "selectors",
    "sched", "fractions", "csv", "heapq", "json/decoder", "json/encoder", "asyncio/queues", "asyncio/streams",
    "asyncio/locks", "concurrent/futures/process", "concurrent/futures/_base", "email/message",
    "http/cookiejar", "http/cookies", "logging/handlers", "unittest/mock", "xml/dom/minidom", "cmd", "calendar",
    "fileinput", "filecmp", "ftplib", "netrc", "profile", "pstats", "queue", "shelve", "shlex", "stat", "timeit",
    "trace", "wave", "webbrowser", "zipapp", "turtle", "curses/textpad", "dis", "hmac", "copy",
)  # fmt: skip

# Character tables and grammars: numbers and escapes, not language.
_NOT_TEXT = ("encodings", "lib2to3", "site-packages", "__pycache__", "pydoc_data")
DOCUMENT_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Corpus:
    """A fixed list of documents.

    Attributes:
        name: what reports call it.
        documents: one string per module, in list order.
        digest: sha256 over all documents, 64 hex digits.
        python: version of the Python whose standard library this is.
    """

    name: str
    documents: tuple[str, ...]
    digest: str
    python: str


def stdlib_directory() -> Path:
    """The directory that holds the standard library's pure Python modules."""
    return Path(sysconfig.get_paths()["stdlib"])


def calibration() -> Corpus:
    """Default calibration text (part of the reference model's training text).

    Raises:
        FileNotFoundError: this Python carries no standard library sources.
    """
    return _fixed("standard library, calibration modules", CALIBRATION_MODULES)


def heldout() -> Corpus:
    """Default evaluation text; the reference model never saw it.

    Raises:
        FileNotFoundError: this Python carries no standard library sources.
    """
    return _fixed("standard library, held-out modules", HELDOUT_MODULES)


def training_documents() -> tuple[str, ...]:
    """Every module of the standard library (tests included) except the held-out ones, plus `pydoc_data.topics`.

    Returned in sorted path order; exact duplicates are dropped.
    """
    root = stdlib_directory()
    held = {f"{name}.py" for name in HELDOUT_MODULES}
    held_tests = {f"test/test_{name.split('/')[-1].removesuffix('.py')}.py" for name in held}
    seen: set[str] = set()
    documents: list[str] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.as_posix() in held | held_tests or set(relative.parts) & set(_NOT_TEXT):
            continue
        text = _read(path)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if text and digest not in seen and len(text) > 200:
            seen.add(digest)
            documents.append(text)
    return (*documents, *_help_topics())


def _fixed(name: str, modules: tuple[str, ...]) -> Corpus:
    root = stdlib_directory()
    paths = [root / f"{module}.py" for module in modules]
    documents = tuple(_read(path) for path in paths if path.is_file())
    if len(documents) < len(modules) // 2:
        raise FileNotFoundError(
            f"only {len(documents)} of {len(modules)} standard library sources found in {root}; "
            "pass your own text with --calibration and --eval-text"
        )
    digest = hashlib.sha256(DOCUMENT_SEPARATOR.join(documents).encode()).hexdigest()
    return Corpus(name=name, documents=documents, digest=digest, python=platform.python_version())


def _help_topics() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    return tuple(str(text) for _, text in sorted(topics.items()) if len(str(text)) > 200)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf8", errors="ignore").strip()
