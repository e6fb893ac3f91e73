"""Pictures with Matplotlib: patterns, weights, heads, scaling. Needs the extra ``plot``.

Every function draws into the Axes it is given, or into new ones of a new figure, returns them, and never shows or saves
anything.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.complexity.fitting import Fit, bare, fit
from subquad.complexity.measuring import Measurement
from subquad.patterns.base import Pattern
from subquad.raster import edges_of, raster
from subquad.scores import SparseScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
#: How dark a pixel with a single pair is: a band one key wide in a million must be seen.
FAINTEST = 0.35
_COLOUR_MAP = "Blues"


def plot_pattern(
    pattern: Pattern, n_q: int, n_k: int | None = None, *, ax: Axes | None = None, pixels: int | None = None
) -> Axes:
    """Draw which keys (across) each query row (down) may attend.

    Parameters
    ----------
    pattern : Pattern
    n_q, n_k : int
        Numbers of queries and keys; `n_k` is `n_q` by default.
    ax : Axes, optional
        Where to draw.
    pixels : int, optional
        Rows and columns of the picture, where there are more queries and keys. By default what the Axes have room for
        now: with more, lines one pixel wide would be lost.

    Returns
    -------
    Axes

    Notes
    -----
    Up to `pixels` queries and keys, a pixel is a pair and the picture is exact. Beyond, a pixel stands for a rectangle
    of pairs, and is white where no allowed pair was found in it; the least share allowed is a third dark, everything
    allowed is darkest. So a band one key wide in a million is still seen, and darkness must not be read as density: for
    that there is ``pattern.density``. What is looked at in each rectangle: `subquad.raster.raster`. Memory O(pixels²)
    for any n.

    Examples
    --------
    >>> from subquad import Banded
    >>> axes = plot_pattern(Banded(2), 16)
    >>> axes.get_xlabel()
    'key'
    """
    n_k = n_q if n_k is None else n_k
    ax = _axes(ax, width=4.6, height=4.6)
    pixels = _room(ax) if pixels is None else pixels
    picture = raster(pattern, n_q, n_k, pixels, pixels)
    shown = np.where(picture > 0, FAINTEST + (1 - FAINTEST) * picture, 0)
    _heatmap(ax, shown, n_q, n_k, largest=1.25)
    ax.set_title("\n".join(textwrap.wrap(repr(pattern), 46, max_lines=2, placeholder=" ...")), fontsize=9)
    return ax


def plot_weights(
    weights: SparseScores, head: int | tuple[int, int] = 0, *, ax: Axes | None = None, pixels: int | None = None
) -> Axes:
    """Draw the weights (or scores) of one head as a heatmap: keys across, query rows down.

    Parameters
    ----------
    weights : SparseScores
        What `attention_weights` or `MultiHeadAttention.weights` gave.
    head : int or (batch, head), optional
        Which one, as `weights.data` has axes.
    ax, pixels
        As for `plot_pattern`.

    Notes
    -----
    A pixel is a pair, or the largest value of the pairs that it stands for. White: no allowed pair, or a weight of 0.
    Memory O(pixels² + pairs of the head).
    """
    ax = _axes(ax, width=5.2, height=4.6)
    picture = _weights_picture(weights, head, _room(ax) if pixels is None else pixels)
    image = _heatmap(ax, picture, *weights.shape, largest=None)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    return ax


def plot_heads(
    weights: SparseScores, *, axes: Sequence[Axes] | None = None, pixels: int | None = None, batch: int = 0
) -> npt.NDArray[Any]:
    """Draw the weights of every head side by side on one scale of colours.

    Parameters
    ----------
    weights : SparseScores
        Of several heads: ``data`` of shape (heads, nnz) or (batch, heads, nnz).
    axes : sequence of Axes, optional
        One for each head.
    pixels : int, optional
        As for `plot_weights`.
    batch : int, optional
        Which sequence, where there are several.

    Returns
    -------
    array of Axes, shape (heads,)
    """
    if weights.data.ndim not in (2, 3):
        raise ValueError(f"weights must have heads; got data of shape {weights.data.shape}: use plot_weights")
    n_heads = weights.data.shape[-2]
    heads: list[Any] = [h if weights.data.ndim == 2 else (batch, h) for h in range(n_heads)]
    if axes is None:
        axes = grid(n_heads)
    elif len(axes) != n_heads:
        raise ValueError(f"axes must hold one Axes for each of {n_heads} heads; got {len(axes)}")
    pixels = _room(axes[0]) if pixels is None else pixels
    pictures = [_weights_picture(weights, head, pixels) for head in heads]
    largest = max((float(picture.max(initial=0)) for picture in pictures), default=1.0)
    for h, (ax, picture) in enumerate(zip(axes, pictures, strict=True)):
        image = _heatmap(ax, picture, *weights.shape, largest=largest)
        ax.set_title(f"head {h}", fontsize=10)
    bar = axes[0].figure.colorbar(image, ax=list(axes), fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    return np.array(list(axes), dtype=object)


def plot_scaling(
    series: Mapping[str, Fit | Measurement | tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    ax: Axes | None = None,
    ylabel: str = "time, s",
) -> Axes:
    """Draw measured growth on logarithmic axes: points, the fitted curve, and in the legend what it says.

    Parameters
    ----------
    series : mapping of names to Fit, Measurement (its times), or pairs (n, y)
    ax : Axes, optional
    ylabel : str, optional

    Examples
    --------
    >>> axes = plot_scaling({"dense": ([1, 2, 4, 8, 16], [1, 4, 16, 64, 256])})
    >>> axes.get_legend().get_texts()[0].get_text()
    'dense: n²'
    """
    if not series:
        raise ValueError("series must hold at least one; got none")
    fits = {name: _as_fit(found) for name, found in series.items()}
    ax = _axes(ax, width=6.4, height=4.6)
    for number, (name, found) in enumerate(fits.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        n = np.geomspace(found.n[0], found.n[-1], 200)
        ax.plot(n, found.predict(n), color=colour, linewidth=1.2, alpha=0.8)
        ax.plot(found.n, found.y, marker, color=colour, markersize=5, label=f"{name}: {_verdict(found)}")
    ax.set_xscale("log")
    ax.set_yscale("log")
    _mark_sizes(ax, np.unique(np.concatenate([found.n for found in fits.values()])))
    ax.set_xlabel("n")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def _mark_sizes(ax: Axes, sizes: npt.NDArray[Any]) -> None:
    """Ticks at measured sizes, as many as have room: a factor of 1.8 or a tenth of the axis apart."""
    least = max(1.8, float(sizes[-1] / sizes[0]) ** 0.1)
    kept: list[float] = []
    for size in sizes.tolist():
        if not kept or size >= 0.99 * least * kept[-1]:
            kept.append(size)
    ax.set_xticks(kept, [f"{size:,.0f}" for size in kept])
    ax.set_xticks([], minor=True)


def _verdict(found: Fit) -> str:
    if found.distinguishable:
        return bare(found.order)
    low, high = found.interval
    return f"n^{found.exponent:.2f} ({low:.2f} to {high:.2f})" if math.isfinite(high) else "no order told"


def _as_fit(found: Fit | Measurement | tuple[npt.ArrayLike, npt.ArrayLike]) -> Fit:
    if isinstance(found, Fit):
        return found
    return found.fit() if isinstance(found, Measurement) else fit(*found)


def _weights_picture(weights: SparseScores, head: int | tuple[int, int], pixels: int) -> npt.NDArray[np.float32]:
    """The largest weight in each pixel."""
    index: tuple[int, ...] = head if isinstance(head, tuple) else (head,)
    leading = weights.data.shape[:-1]
    if not leading and index == (0,):
        index = ()
    if len(index) != len(leading) or any(not 0 <= h < size for h, size in zip(index, leading, strict=True)):
        raise ValueError(f"head must be an index into the leading axes {leading} of weights.data; got {head}")
    values = weights.data[index]
    (n_q, n_k), pixels = weights.shape, checks.integer(pixels, "pixels", 1, 1 << 14)
    row_edges, key_edges = edges_of(n_q, min(pixels, max(1, n_q))), edges_of(n_k, min(pixels, max(1, n_k)))
    picture = np.zeros((len(row_edges) - 1, len(key_edges) - 1), np.float32)
    if not n_q or not n_k:
        return picture
    for u, (first, end) in enumerate(itertools.pairwise(row_edges)):
        part = slice(int(weights.indptr[first]), int(weights.indptr[end]))
        column = np.searchsorted(key_edges, weights.indices[part], side="right") - 1
        np.maximum.at(picture[u], column, values[part].astype(np.float32))
    return picture


def _heatmap(ax: Axes, picture: npt.NDArray[Any], n_q: int, n_k: int, *, largest: float | None) -> Any:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    image = ax.imshow(
        np.ma.masked_equal(picture, 0),
        cmap=_COLOUR_MAP,
        vmin=0,
        vmax=largest,
        interpolation="nearest",
        extent=(-0.5, n_k - 0.5, n_q - 0.5, -0.5),
        aspect="auto" if max(n_q, n_k) > 4 * min(n_q, n_k) else "equal",
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.set_xlabel("key")
    ax.set_ylabel("query row")
    ax.tick_params(labelsize=8)
    return image


def _axes(ax: Axes | None, *, width: float, height: float) -> Axes:
    return ax if ax is not None else _figure(width, height).subplots()


def _room(ax: Axes) -> int:
    """Pixels along the shorter side of the Axes, less what labels will take."""
    box = ax.get_window_extent()
    return int(min(512, max(64, 0.75 * min(box.width, box.height))))


def grid(count: int, columns: int = 4) -> Sequence[Axes]:
    """So many Axes of one new figure, side by side."""
    columns = min(columns, max(1, count))
    rows = -(-count // columns)
    axes = np.ravel(_figure(2.6 * columns + 0.6, 2.7 * rows).subplots(rows, columns, squeeze=False))
    for unused in axes[count:]:
        unused.set_visible(False)
    return list(axes[:count])


def _figure(width: float, height: float) -> Any:
    """A figure that pyplot does not hold on to: it goes when its Axes go."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures are drawn by Matplotlib: pip install "subquad[plot]"') from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _whole_figure(axes: Axes) -> Any:
    return axes.figure


def content(axes: Axes, kind: str = "png") -> bytes:
    """The figure of some Axes as the content of a file: png, svg or pdf."""
    import io

    written = io.BytesIO()
    _whole_figure(axes).savefig(written, format=kind, dpi=150)
    return written.getvalue()
