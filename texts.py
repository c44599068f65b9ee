"""Calibration and evaluation text: files, JSONL, `datasets` names, or the standard library by default.

Turned into token windows here and nowhere else, so that a digest stands for exactly what was used.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from prune_export.errors import BadInputError, nearest
from prune_export.reference import corpus

Role = Literal["calibration", "evaluation"]
_REACH_TIMEOUT_S = 3.0
_ENCODE_CHARACTERS = 1 << 16
_JSONL_FIELDS = ("text", "content", "sentence")


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool) -> Any: ...


@dataclass(frozen=True)
class Text:
    """A text with its provenance.

    Attributes:
        name: what reports call it.
        documents: its parts, in order.
        digest: sha256 of the parts joined by blank lines.
        python: the Python version where the text is the standard library's, else empty.
        is_default: no text was named by the user.
    """

    name: str
    documents: tuple[str, ...]
    digest: str
    python: str = ""
    is_default: bool = False

    def provenance(self) -> dict[str, str]:
        """Name, digest and Python version, as manifests record them."""
        return {"name": self.name, "digest": self.digest, **({"python": self.python} if self.python else {})}

    def first(self, count: int) -> Text:
        """The first `count` documents.

        Raises:
            BadInputError: there are fewer.
        """
        if count > len(self.documents):
            raise BadInputError(
                f"{self.name} has {len(self.documents)} rows, {count} are asked for: name a data set or a JSONL file "
                "with that many, or use --calibration-windows"
            )
        return _text(f"{self.name}, first {count} rows", self.documents[:count], keep_empty=True)


@dataclass(frozen=True)
class DatasetRow:
    """One data set of the papers: where it is and which rows serve which role.

    Attributes:
        path: hub id.
        config: configuration name, or None.
        column: the text column.
        splits: role to split; "alpaca" has no test split of its own and is split as SliceGPT and MultiPruner do.
        files: split to file, for sets too large to load whole.
        revision: branch of the hub repository, where the main one needs code to load.
    """

    path: str
    config: str | None
    column: str
    splits: dict[str, str]
    files: dict[str, str] | None = None
    revision: str | None = None


DATASETS: dict[str, DatasetRow] = {
    "wikitext2": DatasetRow(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "text", {"calibration": "train", "evaluation": "test"}
    ),
    "alpaca": DatasetRow("tatsu-lab/alpaca", None, "text", {"calibration": "test", "evaluation": "validation"}),
    "c4": DatasetRow(
        "allenai/c4",
        None,
        "text",
        {"calibration": "train", "evaluation": "validation"},
        {
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
    "ptb": DatasetRow(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        "sentence",
        {"calibration": "train", "evaluation": "test"},
        revision="refs/convert/parquet",
    ),
}


def load_text(name: str | None, role: Role) -> Text:
    """The text called `name`: a path to a text or JSONL file, a data set's name, or None for the default.

    Raises:
        BadInputError: no such file or data set, an empty or undecodable file, a data set that cannot be reached.
    """
    if name is None:
        return _default(role)
    path = Path(name)
    if path.is_file():
        documents = _jsonl(path) if path.suffix in (".jsonl", ".ndjson") else (_read(path),)
        return _text(path.name, documents)
    if name in DATASETS:
        split = DATASETS[name].splits[role]
        # The papers join all rows, the empty ones between WikiText's paragraphs included.
        return _text(f"{name}, {split} split", _dataset(name, split), keep_empty=True)
    raise BadInputError(
        f'{role} text "{name}" is neither a file nor a known data set{nearest(name, DATASETS)}: '
        f"give a .txt or .jsonl file or one of {', '.join(DATASETS)}"
    )


def token_windows(text: Text, tokenizer: Tokenizer, *, count: int, length: int) -> NDArray[np.int64]:
    """Non-overlapping windows of the tokenised text, evenly spread over it: [N, T] with N <= count.

    Args:
        text: documents are joined by blank lines.
        tokenizer: applied without special tokens.
        count: windows wanted; fewer are returned where the text is shorter.
        length: tokens a window.

    Raises:
        BadInputError: the text is shorter than one window.
    """
    stream = encode(text, tokenizer)
    available = len(stream) // length
    if available < 1:
        raise BadInputError(
            f"{text.name} has {len(stream)} tokens, one window needs {length}: give a longer text or a shorter window"
        )
    chosen = np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(np.int64))
    return np.stack([stream[index * length : (index + 1) * length] for index in chosen])


def windows_digest(windows: NDArray[np.int64]) -> str:
    """sha256 of token windows, shape included."""
    return hashlib.sha256(str(windows.shape).encode() + np.ascontiguousarray(windows).tobytes()).hexdigest()


def encode(text: Text, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """The whole text as one stream of token ids."""
    joined = corpus.DOCUMENT_SEPARATOR.join(text.documents)
    parts = _pieces(joined)
    encoded = tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray(ids, dtype=np.int64) for ids in encoded])


def _pieces(text: str) -> list[str]:
    """Cuts at line ends, so that one tokeniser call never sees a string of many megabytes."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", min(len(text), start + _ENCODE_CHARACTERS))
        end = len(text) if end < 0 else end
        pieces.append(text[start:end])
        start = end
    return pieces or [""]


def _default(role: Role) -> Text:
    try:
        source = corpus.calibration() if role == "calibration" else corpus.heldout()
    except FileNotFoundError as error:
        raise BadInputError(str(error)) from None
    return Text(source.name, source.documents, source.digest, source.python, is_default=True)


def _text(name: str, documents: Iterable[str], *, keep_empty: bool = False) -> Text:
    kept = tuple(document for document in documents if keep_empty or document.strip())
    if not any(document.strip() for document in kept):
        raise BadInputError(f"{name} holds no text")
    return Text(name, kept, hashlib.sha256(corpus.DOCUMENT_SEPARATOR.join(kept).encode()).hexdigest())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _jsonl(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInputError(f"{path}:{number} is no JSON: {error}") from None
        field = next((key for key in _JSONL_FIELDS if isinstance(row, dict) and isinstance(row.get(key), str)), None)
        if field is None:
            raise BadInputError(f"{path}:{number} has no text: a JSON object with one of {', '.join(_JSONL_FIELDS)}")
        documents.append(row[field])
    return documents


def _dataset(name: str, split: str) -> list[str]:
    try:
        import datasets
    except ModuleNotFoundError:
        raise BadInputError(f'data set "{name}" needs the datasets package: pip install "prune-export[data]"') from None
    _check_reachable(name)
    row = DATASETS[name]
    try:
        if name == "alpaca":
            halves = datasets.load_dataset(row.path, split="train").train_test_split(test_size=0.2, seed=42)
            rest = halves["test"].train_test_split(test_size=0.5, seed=42)
            loaded = rest["train" if split == "test" else "test"]
        else:
            files = {split: row.files[split]} if row.files else None
            loaded = datasets.load_dataset(row.path, row.config, data_files=files, split=split, revision=row.revision)
    except Exception as error:  # noqa: BLE001  datasets raises anything from its builders and its HTTP stack
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f'data set "{name}" ({row.path}) cannot be loaded: {reason}') from None
    return [str(value) for value in loaded[row.column]]


def _check_reachable(name: str) -> None:
    if os.environ.get("HF_HUB_OFFLINE") or os.environ.get("HF_DATASETS_OFFLINE"):
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=_REACH_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError):
        raise BadInputError(
            f'data set "{name}": {endpoint} does not answer within {_REACH_TIMEOUT_S:g} s: '
            "give a text file, or set HF_HUB_OFFLINE=1 to use the local cache"
        ) from None
