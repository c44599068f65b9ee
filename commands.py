"""The table of commands: the description, the arguments and the function of each.

Everything heavy is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from prune_export.verbs import artifacts, delivery, profiles, pruning, sparsity
from prune_export.verbs.command import Command, add_common

__all__ = ["COMMANDS", "MAIN", "Command", "add_common"]

MAIN = ""

COMMANDS: dict[str, Command] = {
    MAIN: Command(
        "Prunes a language model until it meets a target on a device, and hands over the measured artifact.\n"
        "\nOther commands: plan, prune, sparsify, export, benchmark, evaluate, verify, report, profile, kit (see "
        "--help).",
        "example:\n  prune-export --model ./my-llama --device cpu-xeon --target-latency 40ms\n"
        "\nexit codes: 0 met (or delivered as predicted), 2 bad input, 3 infeasible, 4 parity failed, 1 anything else",
        delivery.add_main,
        delivery.run_main,
    ),
    "plan": Command(
        "Chooses what to remove and writes the plan; exports nothing.",
        "example:\n  prune-export plan --model ./my-llama --target-ratio 22% -o plan.json",
        pruning.add_plan,
        pruning.run_plan,
    ),
    "prune": Command(
        "Writes a dense, smaller checkpoint.",
        "example:\n  prune-export prune --model ./my-llama --target-ratio 22% -o ./my-llama-22",
        pruning.add_prune,
        pruning.run_prune,
    ),
    "export": Command(
        "Exports a checkpoint, dense or pruned, to a runtime's format, behind the parity gate.",
        "example:\n  prune-export export --model ./my-llama-22 --precision int8 -o ./my-llama-22-ir",
        artifacts.add_export,
        artifacts.run_export,
    ),
    "benchmark": Command(
        "Times an artifact in fresh processes; needs no torch.",
        "example:\n  prune-export benchmark ./artifact --compare ./dense --workload prompt=256,new=64",
        artifacts.add_benchmark,
        artifacts.run_benchmark,
    ),
    "evaluate": Command(
        "Perplexity of a checkpoint, or of an exported artifact through its runtime.",
        "example:\n  prune-export evaluate --model ./artifact --eval-text wikitext2",
        artifacts.add_evaluate,
        artifacts.run_evaluate,
    ),
    "verify": Command(
        "Checks a delivery's or an export's files against their hashes, and its parity.",
        "example:\n  prune-export verify ./artifact",
        artifacts.add_verify,
        artifacts.run_verify,
    ),
    "report": Command(
        "Writes report.html for a delivered artifact again.",
        "example:\n  prune-export report ./artifact",
        artifacts.add_report,
        artifacts.run_report,
    ),
    "sparsify": Command(sparsity.DESCRIPTION, sparsity.EPILOG, sparsity.add_arguments, sparsity.run),
    "profile": Command(
        "Lists the device profiles, shows one, describes this machine, or measures it for one model's dimensions.",
        "example:\n  prune-export profile show cpu-xeon\n"
        "  prune-export profile measure --model ./my-llama -o box.toml\n"
        "  prune-export profile measure --kit ./kit -o box.toml",
        profiles.add_profile,
        profiles.run_profile,
    ),
    "kit": Command(
        "Packs exported stacks of a model's blocks, with which a machine without torch measures itself.",
        "example:\n  prune-export kit --model ./my-llama -o ./kit",
        profiles.add_kit,
        profiles.run_kit,
    ),
}
