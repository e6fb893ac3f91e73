"""The command. Parses and pins first; everything that may start threads is imported after that."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from .pinning import available_cores, pin


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m peers", description="subquad against its peers, in one run")
    result.add_argument("--threads", type=int, default=1, help="cores to pin to (default: 1)")
    result.add_argument("--quick", action="store_true", help="short sequences, few rounds: shows that all of it works")
    result.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    result.add_argument("--only", nargs="+", metavar="NAME", help="these peers alone, besides subquad")
    result.add_argument("--cases", nargs="+", metavar="NAME", help="these cases alone")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    cli = parser()
    options = cli.parse_args(arguments)
    cores = available_cores()
    if not 1 <= options.threads <= len(cores):
        cli.error(f"--threads must be from 1 to {len(cores)}, the cores available: got {options.threads}")
    if options.json and not options.json.absolute().parent.is_dir():
        cli.error(f"--json: there is no directory {options.json.absolute().parent}")
    pin(options.threads)

    from .cases import CASE_NAMES
    from .contenders import CONTENDERS
    from .report import render
    from .run import Settings, compare

    refuse_unknown(cli, "--only", options.only, [one.name for one in CONTENDERS])
    refuse_unknown(cli, "--cases", options.cases, CASE_NAMES)
    comparison = compare(
        Settings(
            threads=options.threads,
            quick=options.quick,
            only=options.only,
            cases=options.cases or CASE_NAMES,
            cores=cores,
        )
    )
    print(render(comparison))
    if options.json:
        options.json.write_text(json.dumps(comparison, indent=2) + "\n")
    return 0


def refuse_unknown(
    cli: argparse.ArgumentParser, option: str, given: Sequence[str] | None, known: Sequence[str]
) -> None:
    for name in given or ():
        if name not in known:
            cli.error(f"{option}: no {name!r}; choose from {', '.join(known)}")


if __name__ == "__main__":
    sys.exit(main())
