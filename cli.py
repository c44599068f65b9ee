"""Command line: argument parsing and printing, nothing else.  `--help` loads neither torch nor openvino."""

from __future__ import annotations

import argparse
import errno
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from prune_export import commands
from prune_export.errors import BadInputError, PruneExportError, missing_package, nearest

INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports a usage error as one line with exit code 2, like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise BadInputError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 met or done, 2 bad input, 3 infeasible, 4 the parity gate failed, 130 interrupted, 1 anything else.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        name, rest = _split(arguments)
        command = commands.COMMANDS[name]
        prog = "prune-export" if name == commands.MAIN else f"prune-export {name}"
        parser = _Parser(
            prog=prog,
            description=command.description,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parser)
        commands.add_common(parser)
        parsed = parser.parse_args(_join_values(rest))
        parsed.command = shlex.join(["prune-export", *arguments])
        del sys.argv[1:]  # OpenVINO's converter looks there for --verbose and would print pages
        return command.run(parsed)
    except PruneExportError as error:
        return _fail(str(error), error.exit_code, verbose)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing half-written was left", INTERRUPTED, False)
    except MemoryError:
        return _fail("out of memory: close other programs, or use a smaller model or --calibration-windows", 1, verbose)
    except BrokenPipeError:
        return 1
    except ModuleNotFoundError as error:
        known = missing_package(error)
        return _unexpected(error, verbose) if known is None else _fail(str(known), known.exit_code, verbose)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _fail(f"the disk is full ({error.filename or 'temporary files'}): free some space", 1, verbose)
        return _unexpected(error, verbose)
    except Exception as error:  # noqa: BLE001  the last resort: one line instead of a traceback
        return _unexpected(error, verbose)


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """The command's name and what follows it; no name means the main job."""
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in commands.COMMANDS:
            known = [name for name in commands.COMMANDS if name != commands.MAIN]
            raise BadInputError(
                f'unknown command "{arguments[0]}"{nearest(arguments[0], known)}: use one of {", ".join(known)}, '
                "or none for the main job"
            )
        return arguments[0], arguments[1:]
    return commands.MAIN, arguments


def _join_values(arguments: list[str]) -> list[str]:
    """Joins "--target-latency -3ms" with "=": argparse would take the value for an option and hide what is wrong."""
    joined: list[str] = []
    for argument in arguments:
        negative = len(argument) > 1 and argument[0] == "-" and (argument[1].isdigit() or argument[1] == ".")
        if negative and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _unexpected(error: BaseException, verbose: bool) -> int:
    lines = str(error).strip().splitlines() or [""]
    return _fail(f"{type(error).__name__}: {lines[0]} (--verbose shows where)", 1, verbose)


def _fail(message: str, code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    print(f"prune-export: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
