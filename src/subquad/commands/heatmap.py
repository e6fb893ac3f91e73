"""``subquad heatmap``: a pattern as a picture, in the terminal or in a file, for any n."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subquad.commands.options import check_outputs, whole

if TYPE_CHECKING:
    from subquad.patterns import Pattern

#: Up to so many keys, the terminal shows each pair.
EXACT = 40
#: Characters across beyond.
WIDTH = 72
#: From nothing to everything allowed.
SHADES, ASCII_SHADES = " ░▒▓█", " .:*#"


def command(
    pattern: Annotated[str, typer.Argument(metavar="EXPRESSION", help="Such as 'Banded(256) | Global(range(16))'.")],
    n: Annotated[str, typer.Option(metavar="N", help="Queries, and keys unless --keys is given.")] = "1024",
    keys: Annotated[str | None, typer.Option(metavar="N", help="Keys.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw into a file instead (or .svg, .pdf).")
    ] = None,
) -> None:
    """Which keys (across) each query row (down) may attend."""
    from subquad.expression import parse_pattern

    parsed = parse_pattern(pattern)
    n_q = whole("--n", n)
    n_k = whole("--keys", keys) if keys else n_q
    check_outputs(None, plot)
    if plot:
        from subquad import plots
        from subquad.files import write_whole

        write_whole(plot, plots.content(plots.plot_pattern(parsed, n_q, n_k), plot.suffix[1:].lower()))
    else:
        print(_text(parsed, n_q, n_k))


def _text(pattern: "Pattern", n_q: int, n_k: int) -> str:
    """The picture in characters; a character is twice as high as wide, so a pair takes two."""
    from subquad.raster import raster

    exact = max(n_q, n_k) <= EXACT
    width = n_k if exact else min(n_k, WIDTH)
    height = n_q if exact else min(n_q, max(1, round(WIDTH / 2 * min(2.0, n_q / n_k))))
    picture = raster(pattern, n_q, n_k, height, width)
    shades = SHADES if _can_print(SHADES) else ASCII_SHADES
    # whatever is allowed is seen, however little of the pixel it is
    levels = (picture > 0) + (picture > 0.05).astype(int) + (picture > 0.35) + (picture > 0.75)
    lines = ["".join(shades[level] * (2 if exact else 1) for level in row) for row in levels]
    total = f"{pattern!r}: {n_q:,} x {n_k:,}, {pattern.order}"
    if exact:
        total += f", {int(picture.sum()):,} pairs"
    return "\n".join([total, *(f"|{line}|" for line in lines)])


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
