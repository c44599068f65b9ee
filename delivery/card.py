"""The model card: README.md with front matter that the hub reads, for deliveries, exports and pruned checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from prune_export.delivery.summary import claim, shown, sparsity_lines, timed_metric, times
from prune_export.export.versions import package_versions
from prune_export.export_record import ExportRecord
from prune_export.manifest import CHECKPOINT_FOLDER, Candidate, Manifest, ParityRecord
from prune_export.plan import PrunePlan
from prune_export.profiles.host import host_fingerprint
from prune_export.shape import LayerShape, ModelShape
from prune_export.units import format_bytes

CARD_FILE = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TAGS = ("prune-export",)


def write_card(directory: Path, text: str) -> None:
    """Writes README.md."""
    (directory / CARD_FILE).write_text(text, encoding="utf8")


def delivery_card(manifest: Manifest, plan: PrunePlan | None) -> str:
    """The card of what the main job delivers."""
    name, precision = _name(manifest.source), manifest.precision
    pruned = () if plan is None else ("pruned",)
    lines = [
        f"# {name} for {manifest.profile}",
        "",
        *claim(manifest).splitlines(),
        *sparsity_lines(manifest),
        "",
        f"Asked for: {manifest.target}. Weights in {precision}, {manifest.shape.parameters():,} parameters of "
        f"{manifest.dense_parameters:,}.",
        "",
        "## Figures",
        "",
        *_figures(manifest),
        "",
        *_plan_lines(plan, manifest.shape),
        "## Run it",
        "",
        "```python",
        *_RUN[manifest.formats[0]],
        "```",
        "",
        f"`{CHECKPOINT_FOLDER}/` holds the same model for transformers; `prune-export verify .` checks all files.",
        "",
        *_samples(manifest),
        *_texts(manifest.calibration, manifest.evaluation),
        *_origin(
            manifest.command,
            {
                "made": manifest.created,
                "model": f"{manifest.source}, sha256 {manifest.source_digest}",
                "plan": f"sha256 {manifest.plan_digest}" if manifest.plan_digest else "none, nothing was removed",
                "seed": str(manifest.seed),
                "parity": _parity(manifest.parity.max_logit_error, manifest.parity.tolerance)
                + f", {manifest.parity.greedy_agreement:.0%} of {manifest.parity.greedy_tokens} greedy tokens in "
                f"{precision}",
                **_not_compared(manifest.parity),
                "host": _words(_host(manifest)),
                "versions": _words(manifest.versions),
            },
        ),
    ]
    tags = (*_TAGS, *pruned, *manifest.formats, precision)
    return _front(manifest.source, manifest.formats[0], tags) + "\n".join(lines) + "\n"


def export_card(record: ExportRecord) -> str:
    """The card of an export."""
    library = {"openvino": "openvino", "onnx": "onnx", "decilm": "vllm"}[record.format]
    lines = [
        f"# {_name(record.source)} in {record.precision} for {_READERS[record.format]}",
        "",
        f"{record.shape.parameters():,} parameters, exported by prune-export behind its parity gate.",
        "",
        *_layer_lines(record.shape),
        "",
        *_origin(
            record.command,
            {
                "made": record.created,
                "model": f"{record.source}, sha256 {record.source_digest}",
                "parity": _parity(record.parity.max_logit_error, record.parity.tolerance)
                + f", {record.parity.greedy_agreement:.0%} of {record.parity.greedy_tokens} greedy tokens in "
                f"{record.precision}",
                **_not_compared(record.parity),
                **(_held_out(record.parity) if record.parity.held_out else {}),
                **({"rounding": _words(record.rounding)} if record.rounding else {}),
                **({"stored otherwise": _words(record.departures)} if record.departures else {}),
                "host": _words(record.host),
                "versions": _words(record.versions),
            },
        ),
    ]
    return _front(record.source, library, (*_TAGS, record.format, record.precision)) + "\n".join(lines) + "\n"


def _not_compared(parity: ParityRecord) -> dict[str, str]:
    return {"not compared": "; ".join(parity.unchecked)} if parity.unchecked else {}


def _held_out(parity: ParityRecord) -> dict[str, str]:
    """Perplexity through the export, and of what."""
    found = f"{parity.perplexity:.2f} through the export, {parity.nll_error:+.4f} nats a token from the checkpoint's"
    return {"held-out perplexity": f"{found}; {parity.held_out}"}


def checkpoint_card(plan: PrunePlan, *, command: str, calibration: Mapping[str, str]) -> str:
    """The card of a pruned checkpoint.

    Args:
        plan: that it was made by.
        command: command line, or empty.
        calibration: provenance of the text that it was made with; empty where none was read.
    """
    removed = f"{plan.ratio:.1%} of {plan.dense.parameters():,} parameters removed"
    load = "" if plan.uniform else ", trust_remote_code=True"
    lines = [
        f"# {_name(plan.source)}, pruned",
        "",
        f"{removed}: {plan.target.parameters():,} are left. Nothing was measured.",
        "",
        *_plan_lines(plan, plan.target),
        "## Load it",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("."{load})',
        "```",
        "",
        *_texts(calibration, {}),
        *_origin(
            command,
            {
                "model": f"{plan.source}, sha256 {plan.source_digest}",
                "plan": f"sha256 {plan.digest()}",
                "calibration tokens": f"sha256 {plan.calibration_digest}",
                "host": _words(host_fingerprint()),
                "versions": _words(package_versions()),
            },
        ),
    ]
    return _front(plan.source, "transformers", (*_TAGS, "pruned")) + "\n".join(lines) + "\n"


# From within the artifact's directory.
_RUN = {
    "openvino": (
        "import openvino_genai",
        "",
        'pipeline = openvino_genai.LLMPipeline("openvino", "CPU")',
        'print(pipeline.generate("Once upon a time", max_new_tokens=100))',
    ),
    "onnx": (
        "import onnxruntime_genai",
        "",
        'model = onnxruntime_genai.Model("onnx")',
        "tokenizer, settings = onnxruntime_genai.Tokenizer(model), onnxruntime_genai.GeneratorParams(model)",
        'prompt = tokenizer.encode("Once upon a time")',
        "settings.set_search_options(max_length=len(prompt) + 100)",
        "generator = onnxruntime_genai.Generator(model, settings)",
        "generator.append_tokens(prompt)",
        "while not generator.is_done():",
        "    generator.generate_next_token()",
        "print(tokenizer.decode(generator.get_sequence(0)))",
    ),
}
_READERS = {
    "openvino": "OpenVINO",
    "onnx": "ONNX Runtime",
    "decilm": "vLLM and llama.cpp (DeciLMForCausalLM)",
}


def _front(source: str, library: str, tags: Sequence[str]) -> str:
    """The YAML front matter."""
    data = ModelCardData(
        library_name=library,
        base_model=_base_model(source),
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _base_model(source: str) -> str | None:
    """The hub id that the source is, if it is one."""
    return source if _HUB_ID.fullmatch(source) and not Path(source).exists() and not source.startswith(".") else None


def _figures(manifest: Manifest) -> list[str]:
    """The comparison as a table; the delivered row in bold."""
    metric, base = timed_metric(manifest.target), manifest.candidates[0].perplexity
    columns = (f"{metric} {name}" for name in shown(manifest.target))
    head = ("model", "weights", *columns, "memory", "parameters", "perplexity", "rise")
    rows = [_figure_row(candidate, manifest, base) for candidate in manifest.candidates]
    marked = [
        tuple(f"**{cell}**" for cell in row) if candidate.delivered else row
        for candidate, row in zip(manifest.candidates, rows, strict=True)
    ]
    measured = any(candidate.measurement for candidate in manifest.candidates)
    how = "Measured" if measured else "Latencies with ~ are predicted, nothing was measured"
    how += f" with {manifest.workload}." if manifest.workload else "."
    return [*_table(head, marked), "", f"{how} Perplexity is through the artifact itself; bold: delivered."]


def _figure_row(candidate: Candidate, manifest: Manifest, base: float) -> tuple[str, ...]:
    measured = candidate.measurement
    memory = format_bytes(measured.peak_rss_bytes) if measured and measured.peak_rss_bytes else "-"
    return (
        candidate.name,
        candidate.precision,
        *times(candidate, manifest, shown(manifest.target)),
        memory,
        f"{candidate.parameters:,}",
        f"{candidate.perplexity:.2f}",
        f"{candidate.perplexity / base - 1:+.1%}",
    )


def _plan_lines(plan: PrunePlan | None, shape: ModelShape) -> list[str]:
    if plan is None:
        return []
    how = "; what stays was refitted to what went" if plan.compensated else ""
    return [
        "## What was removed",
        "",
        f"{plan.ratio:.1%} of the parameters, by {plan.method}{how}.",
        "",
        *_layer_lines(shape),
        "",
    ]


def _layer_lines(shape: ModelShape) -> list[str]:
    """A row for each run of layers of one shape."""
    runs: list[tuple[int, int, LayerShape]] = []
    for index, layer in enumerate(shape.layers):
        if runs and runs[-1][2] == layer:
            runs[-1] = (runs[-1][0], index, layer)
        else:
            runs.append((index, index, layer))
    numbers = [str(first) if first == last else f"{first}-{last}" for first, last, _ in runs]
    state_space = shape.mixer is not None
    head = ("mixer units", "states") if state_space else ("query heads", "KV heads", "MLP width")
    sizes = [
        (layer.mixer_width, layer.state_size) if state_space else (layer.query_heads, layer.kv_heads, layer.mlp_width)
        for *_, layer in runs
    ]
    rows = [(at, *map(str, row)) for at, row in zip(numbers, sizes, strict=True)]
    return _table(("layers", *head), rows)


def _samples(manifest: Manifest) -> list[str]:
    if not manifest.samples:
        return []
    lines = ["## Greedy continuation, before and after", ""]
    for name in ("prompt", "dense", "delivered"):
        # Indented, since a sample may hold a fence of its own.
        lines += [f"{name}:", "", *(f"    {line}" for line in manifest.samples[name].splitlines() or [""]), ""]
    return lines


def _texts(calibration: Mapping[str, str], evaluation: Mapping[str, str]) -> list[str]:
    found = [("calibration", calibration), ("evaluation", evaluation)]
    rows = [f"- {role}: {_words(text)}" for role, text in found if text]
    return ["## Texts", "", *rows, ""] if rows else []


def _origin(command: str, rows: Mapping[str, str]) -> list[str]:
    lines = ["## How it was made", ""]
    lines += ["```sh", command, "```", ""] if command else ["From Python.", ""]
    return [*lines, *(f"- {key}: {value}" for key, value in rows.items())]


def _host(manifest: Manifest) -> dict[str, str]:
    measured = next((item.measurement.host for item in manifest.candidates if item.measurement), None)
    return measured if measured is not None else host_fingerprint()


def _parity(error: float, tolerance: float) -> str:
    return f"largest logit error {error:.1e} of {tolerance:.0e} allowed"


def _words(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _name(source: str) -> str:
    return Path(source).name or source


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
