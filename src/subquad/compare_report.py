"""A comparison as a table, as JSON and as a picture, and in one sentence."""

import dataclasses
import io
import json
import math
import textwrap
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from subquad.compare import DENSE, Comparison, Row
from subquad.complexity.memory import RESOLUTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Wider than any table: asks a table for the width it would like.
UNBOUNDED = 10_000
#: Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"
#: More labels than this collide on the n axis.
MOST_TICKS = 7


def format_bytes(size: float) -> str:
    """Three digits at most and a decimal unit: ``1.07 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{_digits(size)} {unit}"


def format_seconds(seconds: float) -> str:
    """Three digits at most: ``45.1 ms``."""
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 999.5:
            return f"{_digits(seconds * scale)} {unit}"
    return f"{_digits(seconds)} s"


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 99.5 or number == 0 else f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _extra_memory(row: Row) -> str:
    return format_bytes(row.extra_bytes) if row.extra_bytes >= RESOLUTION else f"<{RESOLUTION / 1e6:g} MB"


def _row_cells(row: Row) -> list[str]:
    dense = row.pattern == DENSE
    mark = "~" if row.predicted else ""
    mark_dense = mark if dense else ""
    return [
        row.pattern,
        f"{row.n:,}",
        f"{row.pairs:,}",
        _percent(row.share),
        mark_dense + format_seconds(row.seconds),
        "" if dense else f"{mark}{_digits(row.speedup)} x",
        mark_dense + _extra_memory(row),
        format_bytes(row.scores_bytes),
        "" if row.max_difference is None else f"{row.max_difference:.1e}" + ("" if row.correct else " WRONG"),
        "" if row.mass is None else _percent(row.mass),
    ]


def print_table(comparison: Comparison, file: TextIO) -> None:
    """Print heading, table, notes and, last, the sentence of what was found."""
    setting = comparison.setting
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("pattern")
    for name in ("n", "pairs", "of n²", "time", "vs dense", "extra memory", "n x n scores", "max diff", "mass kept"):
        table.add_column(name, justify="right")
    for pattern in comparison.patterns:
        table.add_section()
        for row in comparison.of(pattern):
            table.add_row(*_row_cells(row), style="red" if row.correct is False else None)
    console = Console(file=file, highlight=False, markup=False, emoji=False)
    unbounded = console.options.update(width=UNBOUNDED)
    # A terminal that is too narrow wraps the lines; rich would cut the cells off.
    console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    heads = "1 head" if setting.heads == 1 else f"{setting.heads} heads"
    threads = "1 thread" if setting.num_threads == 1 else f"{setting.num_threads} threads"
    setup = f"{comparison.text_name}: float32, {heads}, d = {setting.d}, {threads}, seed {setting.seed}"
    for part in (setup, table, *comparison.notes, headline(comparison)):
        console.print(part, soft_wrap=isinstance(part, str))


def headline(comparison: Comparison) -> str:
    """One sentence: what is wrong, or the pattern that keeps the most softmax mass per second at the largest n."""
    if comparison.wrong:
        row = comparison.wrong[0]
        return (
            f"WRONG: {row.pattern} at n = {row.n:,} differs from the float64 oracle by {row.max_difference:.2g}, "
            f"rounding explains {row.tolerance:.2g}."
        )
    largest = max(row.n for row in comparison.rows)
    dense, *sparse = [row for row in comparison.rows if row.n == largest]
    row = max(sparse, key=lambda row: (row.mass or 0.0) / row.seconds)
    return (
        f"At n = {row.n:,} {row.pattern} attends {_percent(row.share)} of the pairs in {format_seconds(row.seconds)}: "
        f"{_against_dense(row)}, {_extra_memory(row)} instead of "
        f"{_extra_memory(dense)}, and keeps {_percent(row.mass or 0.0)} of the softmax mass."
    )


def _against_dense(row: Row) -> str:
    if 0.95 < row.speedup < 1.05:
        return "as fast as dense" + (" would be" if row.predicted else "")
    factor, word = (row.speedup, "faster") if row.speedup > 1 else (1 / row.speedup, "slower")
    about, would_be = ("about ", " would be") if row.predicted else ("", "")
    return f"{about}{_digits(factor)} x {word} than dense{would_be}"


def as_json(comparison: Comparison) -> str:
    """The comparison as a JSON object: setting, rows, notes, summary. A number that is not finite becomes null."""
    content = {
        "text": comparison.text_name,
        "setting": dataclasses.asdict(comparison.setting),
        "rows": [dataclasses.asdict(row) for row in comparison.rows],
        "notes": comparison.notes,
        "summary": headline(comparison),
    }
    return json.dumps(_finite(content), indent=2, ensure_ascii=False)


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(child) for key, child in node.items()}
    if isinstance(node, list):
        return [_finite(child) for child in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def draw(comparison: Comparison, format: str = "png") -> bytes:
    """Time and extra memory against n, both axes logarithmic, as the content of a picture file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    time_axes, memory_axes = figure.subplots(1, 2)
    _draw_lines(time_axes, comparison, "seconds", 1e3, "time, ms")
    _draw_lines(
        memory_axes, comparison, "extra_bytes", 1e-6, f"memory beyond inputs and output, MB (from {RESOLUTION / 1e6:g})"
    )
    handles, labels = time_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(textwrap.fill(headline(comparison), 120), fontsize=10)
    content = io.BytesIO()
    figure.savefig(content, format=format, dpi=150)
    return content.getvalue()


def _draw_lines(axes: "Axes", comparison: Comparison, quantity: str, scale: float, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for number, pattern in enumerate(comparison.patterns):
        rows = comparison.of(pattern)
        n = [row.n for row in rows]
        # A logarithmic axis has no place for zero, nor for noise.
        y = [scale * max(getattr(row, quantity), RESOLUTION if quantity == "extra_bytes" else 0) for row in rows]
        colour = "black" if pattern == DENSE else COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        # Only dense rows are predicted themselves; the dashes start at the last measured point.
        measured = sum(not (row.predicted and pattern == DENSE) for row in rows)
        axes.plot(n[:measured], y[:measured], color=colour, marker=marker, label=pattern)
        if measured < len(rows):
            first = max(measured - 1, 0)
            (line,) = axes.plot(n[first:], y[first:], "--", color=colour, marker=marker, label=f"{pattern}, predicted")
            line.set(markerfacecolor="white", zorder=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_locator(NullLocator())
    ticks = sorted({row.n for row in comparison.rows})
    if len(ticks) <= MOST_TICKS:
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_xticks([], minor=True)
    axes.set_xlabel("n, tokens")
    axes.set_title(label, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
