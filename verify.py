"""Checks a delivered artifact: every file against its hash, the logits of its IR against its checkpoint."""

from __future__ import annotations

from pathlib import Path

from prune_export.errors import BadInputError, ParityError
from prune_export.files import sha256
from prune_export.manifest import CHECKPOINT_FOLDER, IR_FOLDER, MANIFEST, Manifest
from prune_export.progress import Progress

_AGREEMENT_SLACK = 0.25


def verify(directory: Path, *, progress: Progress | None = None) -> str:
    """Returns one line of what was checked.

    Parity of an fp32 artifact is its logits' against the checkpoint in torch; a compressed one is compared by its
    greedy tokens, whose agreement must not lie well below the manifest's.

    Raises:
        BadInputError: no artifact, or a file is missing, changed or not listed.
        ParityError: the IR does not compute what the checkpoint computes.
    """
    report = progress or Progress(quiet=True)
    manifest = Manifest.load(directory)
    with report.phase("checking hashes"):
        _check_files(directory, manifest)
    with report.phase("checking parity"):
        parity = _parity(directory, manifest)
    return f"{directory}: {len(manifest.files)} files as in the manifest; {parity}"


def _check_files(directory: Path, manifest: Manifest) -> None:
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if not path.is_dir()}
    found.pop(MANIFEST, None)
    missing = sorted(set(manifest.files) - set(found))
    extra = sorted(set(found) - set(manifest.files))
    linked = sorted(name for name, path in found.items() if path.is_symlink())
    changed = [
        name
        for name, record in manifest.files.items()
        if name in found and name not in linked and sha256(found[name]) != record.sha256
    ]
    problems = (("missing", missing), ("changed", changed), ("not listed", extra), ("a symbolic link", linked))
    text = "; ".join(f"{word}: {', '.join(names)}" for word, names in problems if names)
    if text:
        raise BadInputError(f"{directory} is not as its manifest says ({text}): copy or make the artifact again")


def _parity(directory: Path, manifest: Manifest) -> str:
    from prune_export.export.parity import check_parity, greedy_agreement
    from prune_export.prune.checkpoint import load

    model = load(directory / CHECKPOINT_FOLDER)
    ir = directory / IR_FOLDER
    if manifest.precision == "fp32":
        errors, tolerance = check_parity(model, ir)
        return f"largest logit error {max(errors.values()):.1e} of {tolerance:.0e} allowed"
    recorded = manifest.parity
    agreement = greedy_agreement(
        model, ir, precision=manifest.precision, prompt_ids=recorded.prompt, new_tokens=recorded.greedy_tokens
    )
    # Another processor rounds differently, and one early difference ends the count: some slack, not none.
    if agreement < recorded.greedy_agreement - _AGREEMENT_SLACK:
        raise ParityError(
            f"{directory}: {agreement:.0%} of the greedy tokens equal the checkpoint's, the manifest recorded "
            f"{recorded.greedy_agreement:.0%}: this host computes something else, make the artifact here"
        )
    return f"{agreement:.0%} of {recorded.greedy_tokens} greedy tokens equal the checkpoint's"
