"""``subquad advise``: whether a pattern pays on this machine, before anything long is run."""

import json as json_module
from dataclasses import asdict
from typing import Annotated

import typer

from subquad.commands.options import check_outputs, whole, write


def command(
    pattern: Annotated[str, typer.Argument(metavar="EXPRESSION", help="Such as 'Banded(256) | Global(range(16))'.")],
    n: Annotated[str, typer.Option(metavar="N", help="Queries and keys.")] = "4096",
    d: Annotated[str, typer.Option(metavar="N", help="Width of a head.")] = "64",
    heads: Annotated[str, typer.Option(metavar="N", help="Heads.")] = "1",
    threads: Annotated[str | None, typer.Option(metavar="N", help="Threads; by default as many as allowed.")] = None,
    dtype: Annotated[str, typer.Option(metavar="NAME", help="float32 or float64.")] = "float32",
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure this machine again.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the text where none is.")
    ] = None,
) -> None:
    """Predict the time of sparse and of dense attention, and from which n on sparse is faster."""
    from subquad.advice import advise
    from subquad.expression import parse_pattern

    parsed, sizes = parse_pattern(pattern), [whole(*x) for x in (("--n", n), ("--d", d), ("--heads", heads))]
    num_threads = whole("--threads", threads) if threads else None
    check_outputs(json, None)
    found = advise(parsed, *sizes, dtype=dtype, num_threads=num_threads, recalibrate=recalibrate)
    text = asdict(found) | {"speedup": found.speedup}
    if write(json, lambda: json_module.dumps(text, indent=2), None, lambda kind: b""):
        print(found)
