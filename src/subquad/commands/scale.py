"""``subquad scale``: options and outputs. The measuring is `subquad.complexity.scaling`'s."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subquad.commands.options import check_outputs, number, print_parts, progress_bar, split, table, whole, write

if TYPE_CHECKING:
    from subquad.complexity.fitting import Fit
    from subquad.complexity.scaling import Scaling

DEFAULT_PATTERNS = [
    "Dense()",
    "Causal()",
    "Strided(128)",
    "Banded(64)",
    "longformer(64, range(16))",
    "Random(32, seed=0)",
]
DEFAULT_N = ["512,724,1024,1448,2048,2896,4096,5793,8192"]
QUICK_N = ["256,362,512,724,1024,1448,2048"]


def command(
    pattern: Annotated[
        list[str] | None,
        typer.Option(
            "--pattern",
            "--patterns",
            metavar="EXPRESSION",
            help="Such as 'Banded(256) | Global(range(16))'. Repeat the option, or separate by ';'.",
        ),
    ] = None,
    n: Annotated[list[str] | None, typer.Option(metavar="N[,N...]", help="Numbers of tokens, at least five.")] = None,
    order: Annotated[
        str | None, typer.Option(metavar="ORDER", help="Hold all patterns to it, such as 'O(n log n)'.")
    ] = None,
    heads: Annotated[str, typer.Option(metavar="N", help="Number of heads.")] = "1",
    d: Annotated[str, typer.Option(metavar="N", help="Width of a head.")] = "64",
    threads: Annotated[str, typer.Option(metavar="N", help="Threads of each call.")] = "1",
    tolerance: Annotated[
        str, typer.Option(metavar="X", help="How far an exponent's interval may lie above the declared one.")
    ] = "0.15",
    budget: Annotated[
        str, typer.Option(metavar="SECONDS", help="Timing of each pattern; larger n are left out beyond it.")
    ] = "30",
    memory: Annotated[bool, typer.Option("--memory", help="Measure memory too, about two seconds each n.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the table where none is.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw time against n (or .svg, .pdf).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small n and few repeats, for a first look.")] = False,
) -> None:
    """Measured growth against the order each pattern declares; ends with 1 where one does not hold."""
    from subquad.complexity import scaling
    from subquad.complexity.orders import parse_order
    from subquad.expression import parse_pattern

    patterns = {name: parse_pattern(name) for name in split(pattern or DEFAULT_PATTERNS, ";")}
    ns = [whole("--n", size) for size in split(n or (QUICK_N if quick else DEFAULT_N), ",")]
    declared = parse_order(order) if order else None
    setting = scaling.Setting(
        heads=whole("--heads", heads),
        d=whole("--d", d),
        num_threads=whole("--threads", threads),
        tolerance=number("--tolerance", tolerance),
        budget=number("--budget", budget),
        repeats=3 if quick else 7,
        memory=memory,
    )
    check_outputs(json, plot)
    with progress_bar() as progress:
        found = scaling.scale(patterns, ns, setting, order=declared, progress=progress)
    if write(json, lambda: scaling.as_json(found), plot, lambda kind: _draw(found, kind)):
        _print(found)
    if any(one.broken for one in found):
        raise typer.Exit(1)


def _print(found: "list[Scaling]") -> None:
    from subquad.complexity.scaling import verdict

    memory = any(one.memory for one in found)
    made = table("pattern", "declared", "pairs", "time", "exponent of time", *(["memory"] if memory else []), "")
    for one in found:
        low, high = one.time.interval
        cells = [one.pattern, str(one.declared), f"n^{one.pairs.exponent:.2f}", _order(one.time)]
        cells.append(f"{one.time.exponent:.2f} ({low:.2f} to {high:.2f})")
        if memory:
            cells.append(_order(one.memory) if one.memory else "too little")
        verdict_of = f"{' and '.join(one.broken)} DO NOT HOLD" if one.broken else "holds"
        made.add_row(*cells, verdict_of, style="red" if one.broken else None)
    notes = [f"{one.pattern}: time: {one.time.reason}" for one in found if one.time.reason]
    notes += [
        f"{one.pattern}: n = {', '.join(f'{n:,}' for n in one.skipped)} left out for the budget"
        for one in found
        if one.skipped
    ]
    sizes = found[0].time.n
    heading = f"n = {sizes[0]:,.0f} to {sizes[-1]:,.0f}, {len(sizes)} sizes, float32, one warm call, least of several"
    print_parts(heading, made, *notes, verdict(found))


def _order(found: "Fit") -> str:
    return f"{found.order}" if found.distinguishable else f"{found.order} ?"


def _draw(found: "list[Scaling]", kind: str) -> bytes:
    from subquad import plots

    axes = plots.plot_scaling({one.pattern: one.time for one in found}, ylabel="time of one call, s")
    axes.set_xlabel("n, tokens")
    return plots.content(axes, kind)
