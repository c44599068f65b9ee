"""The verbs on checkpoints and artifacts: export, benchmark, evaluate, verify, report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from prune_export.errors import BadInputError
from prune_export.export.openvino_options import BACKUPS, CACHES, GROUPS, OpenVinoOptions
from prune_export.export.rounding_options import METHODS, RoundingOptions
from prune_export.formats import BOTH, FORMATS, PRECISIONS
from prune_export.hashes import sealed
from prune_export.progress import Progress
from prune_export.records import to_json
from prune_export.verbs.command import check_file, emit, limit_torch, positive
from prune_export.verbs.options import add_evaluation, requested_workload


def add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="checkpoint, dense or pruned")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, BOTH),
        default="openvino",
        help="of the artifact (default openvino); decilm is what vLLM and llama.cpp read of Llamas whose layers differ",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of the weights (default int8; for decilm as in the checkpoint)"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True)
    default = OpenVinoOptions()
    group = parser.add_argument_group("OpenVINO, with the meaning that optimum-cli export openvino gives them")
    group.add_argument(
        "--group-size",
        type=int,
        choices=GROUPS,
        help=f"int4 weights that share a scale, in ONNX too (default {default.group_size})",
    )
    group.add_argument("--sym", action="store_true", help="int8 or int4 without zero points")
    group.add_argument("--ratio", type=float, metavar="R", help="share of layers in int4 (default 1)")
    group.add_argument("--all-layers", action="store_true", help="embeddings and head in int4 too")
    group.add_argument(
        "--backup-precision", choices=BACKUPS, help=f"of layers that get no int4 (default {default.backup})"
    )
    group.add_argument("--awq", action="store_true", help="rescale channels before rounding to int4")
    group.add_argument("--scale-estimation", action="store_true", help="int4 scales by the error on calibration text")
    group.add_argument("--gptq", action="store_true", help="int4 by GPTQ on calibration text")
    group.add_argument("--calibration", metavar="TEXT", help="text for these and for --awq and --ratio")
    group.add_argument("--num-samples", type=int, metavar="N", help=f"windows of it (default {default.samples})")
    group.add_argument(
        "--kv-cache-precision", choices=CACHES, help="hint to the runtime (default: f16, beside int8 and int4 its own)"
    )
    group = parser.add_argument_group("rounding to int4 by Neural Compressor, for every format alike")
    group.add_argument(
        "--rounding",
        choices=METHODS,
        help="by Neural Compressor; takes --group-size, --calibration and --num-samples (default: each format's own)",
    )


def run_export(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    from prune_export.api import export

    parity = export(
        arguments.model,
        arguments.output,
        format=arguments.format,
        precision=arguments.precision,
        openvino=_openvino_options(arguments),
        rounding=_rounding_options(arguments),
        force=arguments.force,
        command=arguments.command,
        progress=Progress(quiet=arguments.quiet),
    )
    print(f"exported: {arguments.output} (largest logit error in fp32 {parity.max_logit_error:.1e})")
    return 0


def _rounding_options(arguments: argparse.Namespace) -> RoundingOptions | None:
    return None if arguments.rounding is None else RoundingOptions(arguments.rounding, **_shared_options(arguments))


def _shared_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Options that either of the two roundings has."""
    given = {
        "group_size": arguments.group_size,
        "calibration": arguments.calibration,
        "samples": arguments.num_samples,
    }
    return {name: value for name, value in given.items() if value is not None}


def _openvino_options(arguments: argparse.Namespace) -> OpenVinoOptions:
    given = {
        "symmetric": arguments.sym or None,
        "ratio": arguments.ratio,
        "all_layers": arguments.all_layers or None,
        "backup": arguments.backup_precision,
        "awq": arguments.awq or None,
        "scale_estimation": arguments.scale_estimation or None,
        "gptq": arguments.gptq or None,
        "kv_cache": arguments.kv_cache_precision,
    }
    shared = {} if arguments.rounding else _shared_options(arguments)
    return OpenVinoOptions(**shared, **{name: value for name, value in given.items() if value is not None})


def add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="artifact, or directory of an exported model")
    parser.add_argument("--compare", type=Path, metavar="DIR2", help="interleave with this one, print the ratio")
    parser.add_argument("--device", default="host", help="profile name or TOML file (default host)")
    parser.add_argument("--workload", metavar="prompt=512,new=128,batch=1")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the manifest's")
    parser.add_argument("--processes", type=int, default=4, help="fresh processes (default 4)")
    parser.add_argument("--batches", metavar="4,16", help="further batch sizes, for a table of the throughput")
    parser.add_argument(
        "--through",
        choices=("session", "genai"),
        default="session",
        help="the runtime itself (default), or its GenAI pipeline end to end",
    )
    parser.add_argument(
        "--manifest",
        metavar="FILE",
        help="a copy of the delivery's manifest in which this measurement takes the place of the prediction",
    )
    parser.add_argument("--json", metavar="FILE", help="raw samples and statistics; - prints them")
    parser.add_argument("--csv", metavar="FILE", help="statistics; - prints them")


def run_benchmark(arguments: argparse.Namespace) -> int:
    workload = requested_workload(arguments)
    destinations = [item for item in (arguments.json, arguments.csv, arguments.manifest) if item]
    if len(set(destinations)) < len(destinations):
        raise BadInputError(f"{', '.join(destinations)}: --json, --csv and --manifest each need a place of their own")
    for destination in destinations:
        check_file(destination, arguments.force)
    from prune_export.benchmark.claim import Asked, claimed, sentences, with_measurement
    from prune_export.benchmark.run import render_csv, render_json, render_text, run_benchmark
    from prune_export.profiles.load import load_profile

    profile = load_profile(arguments.device)
    manifest = None
    if arguments.manifest:
        asked = Asked(
            workload=workload if arguments.workload else None,
            precision=arguments.precision or "",
            threads=arguments.threads,
            through=arguments.through,
            compare=arguments.compare,
        )
        manifest, profile = claimed(arguments.directory, profile, asked)
        workload = manifest.workload or workload
    result = run_benchmark(
        arguments.directory,
        profile=profile,
        workload=workload,
        compare=arguments.compare,
        precision=arguments.precision or "",
        threads=arguments.threads,
        rounds=positive(arguments.processes, "--processes") or 1,
        through=arguments.through,
        batches=_batches(arguments.batches),
        progress=Progress(quiet=arguments.quiet),
    )
    if "-" not in (arguments.json, arguments.csv):
        print(render_text(result))
    if manifest is not None:
        manifest = with_measurement(manifest, result.measurements[0])
        emit(json.dumps(sealed(to_json(manifest)), indent=1), arguments.manifest)
        if "-" not in (arguments.json, arguments.csv, arguments.manifest):
            print("\n".join(sentences(manifest)))
    emit(json.dumps(render_json(result), indent=1), arguments.json)
    emit(render_csv(result).rstrip("\n"), arguments.csv)
    return 0


def _batches(text: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if wrong := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise BadInputError(f'--batches "{wrong[0]}" is no batch size: give whole numbers, e.g. --batches 4,16')
    return tuple(dict.fromkeys(int(part) for part in parts))


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Arguments of `evaluate`."""
    parser.add_argument("--model", default="reference", metavar="DIR", help="checkpoint or exported artifact")
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        help="another one, or what --json wrote of it: paired difference",
    )
    parser.add_argument("--window", type=int, metavar="T", help="tokens a window (default: 2048 or the context)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of an export without manifest")
    parser.add_argument("--json", metavar="FILE", help="per-window figures; - prints them")
    add_evaluation(parser, whole=True)


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Scores one model, or two on the same windows."""
    check_file(arguments.json, arguments.force)
    tokens = _tokens(arguments.eval_tokens)
    from prune_export.evaluate import Comparison, Evaluation, evaluate, saved_evaluation

    def scored(model: str, like: Evaluation | None = None) -> Evaluation:
        """On the same windows as another evaluation where there is one: defaults depend on a model's size."""
        return evaluate(
            model,
            eval_text=arguments.eval_text,
            tokens=tokens if tokens or like is None else like.window_tokens * len(like.nll),
            window=positive(arguments.window, "--window") or (None if like is None else like.window_tokens),
            precision=arguments.precision,
            threads=arguments.threads,
            progress=Progress(quiet=arguments.quiet),
        )

    result: Evaluation | Comparison
    if arguments.compare and arguments.compare.endswith(".json"):
        other = saved_evaluation(Path(arguments.compare))
        result = Comparison(scored(arguments.model, other), other)
    else:
        one = result = scored(arguments.model)
        if arguments.compare:
            result = Comparison(one, scored(arguments.compare, one))
    if arguments.json != "-":
        print(result)
    emit(json.dumps(result.to_json(), indent=1), arguments.json)
    return 0


def _tokens(text: str | None) -> int | None:
    from prune_export.evaluate import ALL_TOKENS

    if text == "all":
        return ALL_TOKENS
    if text is not None and not text.isdecimal():
        raise BadInputError(f'--eval-tokens "{text}" is neither a number of tokens nor "all"')
    return positive(None if text is None else int(text), "--eval-tokens")


def add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="delivered artifact, or export")
    parser.add_argument("--model", metavar="CHECKPOINT", help="that an export was made from: compared with it in torch")


def run_verify(arguments: argparse.Namespace) -> int:
    limit_torch(arguments.threads)
    from prune_export.verify import verify

    print(verify(arguments.directory, checkpoint=arguments.model, progress=Progress(quiet=arguments.quiet)))
    return 0


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="delivered artifact")


def run_report(arguments: argparse.Namespace) -> int:
    from prune_export.delivery.report import remake_report

    print(remake_report(arguments.directory))
    return 0
