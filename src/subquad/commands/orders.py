"""``subquad orders``: the fourteen orders of growth in the terminal, as JSON, as a picture."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from subquad.commands.options import check_outputs, print_parts, table, whole, write


def command(
    n: Annotated[str, typer.Option(metavar="N", help="Where the growth is shown.")] = "1024",
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the table where none is.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw all of them (or .svg, .pdf).")] = None,
) -> None:
    """The fourteen orders of growth, with an example of each from language models."""
    size = whole("--n", n)
    check_outputs(json, plot)
    if write(json, lambda: _as_json(size), plot, _draw):
        _print(size)


def _print(n: int) -> None:
    from subquad.complexity.orders import ORDERS

    growth = f"at n = {n:,}"
    made = table("order", "name", growth, "in language models", right=(growth,))
    for order in ORDERS:
        made.add_row(str(order), order.name, _written(float(order.log_growth(n))), order.example)
    print_parts(made, "Sources and meanings: subquad orders --json", wrap=True)


def _written(log_growth: float) -> str:
    """A number of any size from its natural log: 1,024 or 10^301."""
    import math

    if log_growth < math.log(1e7):
        return f"{math.exp(log_growth):,.4g}" if log_growth < math.log(1e3) else f"{math.exp(log_growth):,.0f}"
    return f"10^{log_growth / math.log(10):,.0f}"


def _as_json(n: int) -> str:
    from subquad.complexity.orders import ORDERS

    rows = [
        {
            "order": str(order),
            "name": order.name,
            "meaning": order.meaning,
            "example": order.example,
            "source": order.source,
            "n": n,
            "log10_growth": float(order.log_growth(n)) / 2.302585092994046,
        }
        for order in ORDERS
    ]
    return json_module.dumps(rows, indent=2, ensure_ascii=False)


def _draw(kind: str) -> bytes:
    from subquad import plots
    from subquad.complexity.chart import chart

    return plots.content(chart(), kind)
