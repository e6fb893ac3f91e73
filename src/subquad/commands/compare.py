"""``subquad compare``: options, progress bar, outputs. The measuring is `subquad.compare`'s."""

import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from subquad.compare import Comparison, Progress

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
PICTURES = (".png", ".svg", ".pdf")
#: As a file's name: standard output.
STDOUT = "-"


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

    patterns = {name: parse_pattern(name) for name in _split(pattern or DEFAULT_PATTERNS, ";")}
    ns = [_whole("--n", number) for number in _split(n or (QUICK_N if quick else DEFAULT_N), ",")]
    setting = Setting(
        heads=_whole("--heads", heads),
        d=_whole("--d", d),
        num_threads=_whole("--threads", threads) if threads else default_threads(),
        seed=_whole("--seed", seed, least=0),
        memory_budget=parse_size(memory_budget) if memory_budget else default_memory_budget(),
        repeat_seconds=0.1 if quick else 0.3,
    )
    _check_outputs(json, plot)
    content = read_text(text, limit=max(ns))
    name = text.name if text else "Python's language reference"
    with _progress_bar() as progress:
        comparison = compare(patterns, ns, setting, text=content, text_name=name, progress=progress)
    _write(comparison, json, plot)
    if comparison.wrong:
        raise typer.Exit(1)


def default_json(args: list[str]) -> list[str]:
    """Give a bare ``--json`` its value, standard output: typer knows no options with an optional value."""
    completed = []
    for arg, following in itertools.zip_longest(args, args[1:]):
        completed.append(arg)
        bare = following is None or (following.startswith("-") and following != STDOUT)
        if arg == "--json" and bare:
            completed.append(STDOUT)
    return completed


def parse_size(text: str) -> int:
    """Bytes of ``500MB``, ``1.5 GB``, ``1GiB``, ``4096``; units are decimal unless they have an i."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if not match or (match[3] and not match[2]):
        raise ValueError(f"--memory-budget: {text!r} is no size; write one such as 500MB, 2GB or 1GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))


def _whole(option: str, text: str, least: int = 1) -> int:
    """The number that an option was given; typer's own message would leave out what it was given."""
    if not re.fullmatch(r"[0-9]{1,30}", text) or int(text) < least:
        raise ValueError(f"{option}: must be a whole number of at least {least}; got {text!r}")
    return int(text)


def _split(texts: list[str], separator: str) -> list[str]:
    return [part.strip() for text in texts for part in text.split(separator)]


def _check_outputs(json: str | None, plot: Path | None) -> None:
    """Refuse now what would fail after the long work."""
    from subquad.files import check_writable

    if json and json != STDOUT:
        check_writable(Path(json))
    if plot:
        if plot.suffix.lower() not in PICTURES:
            raise ValueError(f"--plot: {plot} must end in {', '.join(PICTURES)}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError('--plot: matplotlib is not installed; it needs: pip install "subquad[plot]"')
        check_writable(plot)


def _write(comparison: "Comparison", json: str | None, plot: Path | None) -> None:
    from subquad import compare_report
    from subquad.files import write_whole

    if plot:
        write_whole(plot, compare_report.draw(comparison, plot.suffix[1:].lower()))
    if json:
        text = compare_report.as_json(comparison) + "\n"
        if json == STDOUT:
            sys.stdout.write(text)
            return
        write_whole(Path(json), text.encode())
    compare_report.print_table(comparison, sys.stdout)


@contextmanager
def _progress_bar() -> Iterator["Progress | None"]:
    """Shows how far a comparison is, on standard error and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
