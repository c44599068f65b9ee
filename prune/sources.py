"""From what the user named to a local model directory."""

from __future__ import annotations

import importlib.resources
import re
from pathlib import Path

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from prune_export.errors import BadInputError
from prune_export.prune.quiet import quiet

REFERENCE = "reference"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Of what lies at the top; folders hold the same model in other forms.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "merges.txt", "*.jinja"]
_IN_FOLDERS = ["*/*"]
# Where `transformers` keeps all chat templates but the first.
_TEMPLATES = "additional_chat_templates/"
_ANSWER_S = 5.0


def resolve_source(source: str) -> Path:
    """The local directory of a model.

    Args:
        source: a directory, "reference" for the embedded model (a directory of that name is "./reference"), or a model
            id of the Hugging Face hub, of which only safetensors, JSON, tokenizer files and chat templates are
            downloaded.

    Raises:
        BadInputError: no such directory, or the hub does not have the model or does not answer.
    """
    if source == REFERENCE:
        return Path(str(importlib.resources.files("prune_export.reference") / "model"))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise BadInputError(
            f"model {source} is a file: give the directory that holds config.json and safetensors weights"
        )
    if not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise BadInputError(
            f"model directory {source} does not exist: give a directory, a hub id such as owner/name, or {REFERENCE}"
        )
    return _download(source)


def _download(model_id: str) -> Path:
    try:
        # One question with a deadline: the download itself would retry for minutes when there is no network.
        files = HfApi().model_info(model_id, timeout=_ANSWER_S).siblings or []
    except HFValidationError as error:
        raise BadInputError(f"{model_id} is neither a directory nor a valid hub id: {error}") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        return _cached(model_id, error)
    with quiet():
        try:
            if any(file.rfilename.startswith(_TEMPLATES) for file in files):
                snapshot_download(model_id, allow_patterns=[f"{_TEMPLATES}*.jinja"])
            return Path(snapshot_download(model_id, allow_patterns=_WANTED, ignore_patterns=_IN_FOLDERS))
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            raise BadInputError(f"downloading {model_id} from the hub failed: {_first_line(error)}") from None


def _cached(model_id: str, error: Exception) -> Path:
    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except LocalEntryNotFoundError:
        raise BadInputError(
            f"{model_id} is no local directory and cannot be fetched from the hub ({_first_line(error)}): "
            "check the name and the network, or give a directory"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
