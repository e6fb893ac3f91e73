"""``subquad compare``: options, progress bar, outputs. The measuring is `subquad.compare`'s."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subquad.commands.options import check_outputs, progress_bar, split, whole, write

if TYPE_CHECKING:
    from subquad.compare import Comparison

DEFAULT_PATTERNS = [
    "Banded(256)",
    "Strided(128)",
    "longformer(256, range(16))",
    "bigbird(64)",
    "Random(64, seed=0)",
    "Causal()",
]
DEFAULT_N = ["1024,2048,4096,8192,16384"]
QUICK_N = ["512,1024,2048"]


def command(
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to attend over; default Python's language reference.")
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "--patterns",
            metavar="EXPRESSION",
            help="Such as 'Banded(256) | Global(range(16))'. Repeat the option, or separate by ';'.",
        ),
    ] = None,
    n: Annotated[
        list[str] | None, typer.Option(metavar="N[,N...]", help="Numbers of tokens (bytes of the text).")
    ] = None,
    heads: Annotated[str, typer.Option(metavar="N", help="Number of heads.")] = "1",
    d: Annotated[str, typer.Option(metavar="N", help="Width of a head.")] = "64",
    threads: Annotated[
        str | None, typer.Option(metavar="N", help="Of sparse and dense; all processors by default.")
    ] = None,
    seed: Annotated[str, typer.Option(metavar="N", help="Of the embedding and its projections.")] = "0",
    memory_budget: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Dense beyond it is predicted, not run; such as 500MB or 1GiB. Default 2GB."),
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the table where none is.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw time and memory against n (or .svg, .pdf).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small n and short repeats, for a first look.")] = False,
) -> None:
    """Dense against sparse attention on real text: time, memory, accuracy."""
    from subquad.compare import Setting, compare, default_memory_budget, default_threads
    from subquad.expression import parse_pattern
    from subquad.text import read_text

    patterns = {name: parse_pattern(name) for name in split(pattern or DEFAULT_PATTERNS, ";")}
    ns = [whole("--n", number) for number in split(n or (QUICK_N if quick else DEFAULT_N), ",")]
    setting = Setting(
        heads=whole("--heads", heads),
        d=whole("--d", d),
        num_threads=whole("--threads", threads) if threads else default_threads(),
        seed=whole("--seed", seed, least=0),
        memory_budget=parse_size(memory_budget) if memory_budget else default_memory_budget(),
        repeat_seconds=0.1 if quick else 0.3,
    )
    check_outputs(json, plot)
    content = read_text(text, limit=max(ns))
    name = text.name if text else "Python's language reference"
    with progress_bar() as progress:
        comparison = compare(patterns, ns, setting, text=content, text_name=name, progress=progress)
    _write(comparison, json, plot)
    if comparison.wrong:
        raise typer.Exit(1)


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``1.5 GB``, ``1GiB``, ``4096``; units are decimal unless they have an i."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if not match or (match[3] and not match[2]):
        raise ValueError(f"--memory-budget: {text!r} is no size; write one such as 500MB, 2GB or 1GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def _write(comparison: "Comparison", json: str | None, plot: Path | None) -> None:
    from subquad import compare_report

    table_too = write(
        json, lambda: compare_report.as_json(comparison), plot, lambda kind: compare_report.draw(comparison, kind)
    )
    if table_too:
        compare_report.print_table(comparison, sys.stdout)
