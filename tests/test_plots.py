"""Pictures: what each pixel shows against the mask, for any n, and in little memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from support import CASES, case, mask_of, sized_expressions

from subquad import (
    Banded,
    Causal,
    Dense,
    Global,
    MultiHeadAttention,
    Random,
    SparseScores,
    Strided,
    attention_weights,
    bigbird,
    longformer,
    plots,
)
from subquad.complexity import fit, measure
from subquad.raster import edges_of, raster

MILLION = 10**6


# --- the raster -------------------------------------------------------------------------------------------------------


@given(sized_expressions(largest=60))
def test_up_to_the_pixels_the_picture_is_the_mask(drawn):
    pattern, n_q, n_k = drawn
    try:
        pattern._validate(pattern_shape(n_q, n_k))
    except ValueError:
        return
    picture = raster(pattern, n_q, n_k, 64, 64)
    assert picture.shape == (min(64, max(1, n_q)), min(64, max(1, n_k)))
    if n_q and n_k:
        np.testing.assert_array_equal(picture, mask_of(pattern, n_q, n_k))
    else:
        assert not picture.any()


def pattern_shape(n_q, n_k):
    from subquad.patterns.base import Shape

    return Shape.aligned(n_q, n_k)


def block_means(mask, height, width):
    rows, keys = edges_of(mask.shape[0], height), edges_of(mask.shape[1], width)
    sums = np.add.reduceat(np.add.reduceat(mask.astype(float), rows[:-1], axis=0), keys[:-1], axis=1)
    return sums / np.outer(np.diff(rows), np.diff(keys))


@pytest.mark.parametrize("name", CASES)
def test_beyond_the_pixels_no_pixel_is_dark_without_a_pair(name):
    n_q, n_k, height, width = 200, 170, 30, 23
    pattern = case(name, n_q, n_k)
    picture, exact = raster(pattern, n_q, n_k, height, width), block_means(mask_of(pattern, n_q, n_k), height, width)
    assert (picture >= 0).all()
    assert (picture <= 1).all()
    assert not picture[exact == 0].any()
    # rows are sampled, so that a pixel is off by what its rows differ; on average the picture is right
    assert picture.mean() == pytest.approx(exact.mean(), abs=0.05)


@pytest.mark.parametrize(
    ("pattern", "n", "seen"),
    [
        (Banded(0), MILLION, lambda picture: np.diag(picture)),
        (Banded((5, -0)), 10**9, lambda picture: np.diag(picture)),
        (Global([500_123], rows=False), MILLION, lambda picture: picture[:, 128]),
        (Global([500_123], columns=False), MILLION, lambda picture: picture[128]),
        (longformer(1, [0, 999_999]), MILLION, lambda picture: picture[-1]),
        (Strided(128), MILLION, lambda picture: picture),
        (Dense() - Banded(10), MILLION, lambda picture: picture),
    ],
    ids=["band", "far-band", "column", "row", "longformer", "strided", "hole"],
)
def test_what_is_one_key_wide_in_a_million_is_seen(pattern, n, seen):
    picture = raster(pattern, n, n, 256, 256)
    assert (seen(picture) > 0).all()


def test_a_band_stays_a_line():
    picture = raster(Banded(128), MILLION, MILLION, 256, 256)
    i, j = np.nonzero(picture)
    assert np.abs(i - j).max() <= 1
    i, j = np.nonzero(raster(Causal(), MILLION, MILLION, 256, 256))
    assert (j <= i).all()
    assert len(i) == 256 * 257 / 2


@pytest.mark.parametrize("pattern", [Causal(), Banded(128), Strided(128), Random(64, 0), bigbird(64)], ids=repr)
def test_memory_does_not_grow_with_n(pattern):
    peaks = []
    for n in (MILLION, 64 * MILLION):
        tracemalloc.start()
        raster(pattern, n, n, 128, 128)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 50e6
    # a row's own keys apart, which are listed one row at a time
    assert peaks[1] < 1.5 * peaks[0] + 20e6


def test_large_numbers_are_cut_exactly():
    edges = edges_of(10**17 + 1, 3)
    assert edges.tolist() == [0, (10**17 + 1) // 3, 2 * (10**17 + 1) // 3, 10**17 + 1]


@pytest.mark.parametrize("arguments", [(Dense(), -1, 4, 8, 8), (Dense(), 4, 4, 0, 8), (Global([9]), 4, 4, 8, 8)])
def test_bad_sizes(arguments):
    with pytest.raises(ValueError, match=r"n_q|height|tokens"):
        raster(*arguments)


# --- the drawings -----------------------------------------------------------------------------------------------------


def shown(axes):
    return np.ma.filled(axes.get_images()[0].get_array(), 0)


def test_a_pattern_is_drawn_as_it_is():
    axes = plots.plot_pattern(Banded(1) | Global([0]), 5, 7)
    np.testing.assert_array_equal(shown(axes) > 0, mask_of(Banded(1) | Global([0]), 5, 7))
    assert axes.get_title() == "Banded(1) | Global((0,))"
    assert axes.get_images()[0].get_extent() == [-0.5, 6.5, 4.5, -0.5]


def test_the_faintest_pixel_is_dark_enough():
    axes = plots.plot_pattern(Banded(0), MILLION)
    dark = shown(axes)[shown(axes) > 0]
    assert dark.min() >= plots.FAINTEST
    assert np.array_equal(np.nonzero(shown(axes))[0], np.nonzero(shown(axes))[1])


def test_weights_are_drawn_as_they_are(rng):
    x = rng.standard_normal((2, 9, 4))
    weights = attention_weights(x, x, Banded(2))
    np.testing.assert_allclose(shown(plots.plot_weights(weights, 1)), weights.to_scipy(1).toarray(), rtol=1e-6)
    one = attention_weights(x[0], x[0], Causal())
    np.testing.assert_allclose(shown(plots.plot_weights(one)), one.to_scipy().toarray(), rtol=1e-6)


def test_many_weights_keep_the_largest_of_each_pixel(rng):
    x = rng.standard_normal((70, 4))
    weights = attention_weights(x, x, Banded(3))
    dense, edges = weights.to_scipy().toarray(), edges_of(70, 10)
    largest = np.maximum.reduceat(np.maximum.reduceat(dense, edges[:-1], axis=0), edges[:-1], axis=1)
    np.testing.assert_allclose(shown(plots.plot_weights(weights, pixels=10)), largest, rtol=1e-6)


def test_heads_share_one_scale(rng):
    x = rng.standard_normal((3, 6, 8))
    attend = MultiHeadAttention(8, 4, Banded(2), seed=0)
    axes = plots.plot_heads(attend.weights(x), batch=2)
    assert [ax.get_title() for ax in axes] == ["head 0", "head 1", "head 2", "head 3"]
    assert len({ax.get_images()[0].get_clim() for ax in axes}) == 1
    np.testing.assert_allclose(shown(axes[3]), attend.weights(x).to_scipy(2, 3).toarray(), rtol=1e-6)
    assert plots.plot_heads(attend.weights(x[0]), axes=list(axes))[0] is axes[0]


def test_scaling_says_what_was_fitted():
    n = np.geomspace(64, 4096, 7)
    measured = measure(lambda n: None, [1, 2, 4, 8, 16], repeats=1)
    axes = plots.plot_scaling({"square": fit(n, n**2), "line": (n, n), "nothing": measured}, ylabel="bytes")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["square: n²", "line: n"]
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylabel()) == ("log", "log", "bytes")
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), axes.get_lines()[0].get_xdata() ** 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_axes_are_used_returned_and_written(kind):
    axes = plots.plot_pattern(Dense(), 3)
    assert plots.plot_pattern(Causal(), 3, ax=axes) is axes
    assert len(plots.content(axes, kind)) > 1000


def test_nothing_of_pyplot_is_touched():
    code = "import sys; from subquad import plots, Dense; plots.plot_pattern(Dense(), 3); "
    code += "print('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None; from subquad import plots, Dense; plots.plot_pattern(Dense(), 3)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.stderr.endswith('ImportError: pictures are drawn by Matplotlib: pip install "subquad[plot]"\n')


def test_bad_arguments(rng):
    empty = SparseScores(np.zeros(1, np.int64), np.zeros(0, np.int64), np.zeros((0, 0)), (0, 0))
    with pytest.raises(ValueError, match=r"head must be an index into the leading axes \(0,\)"):
        plots.plot_weights(empty)
    x = rng.standard_normal((2, 3, 4))
    weights = attention_weights(x, x, Dense())
    with pytest.raises(ValueError, match="head must be"):
        plots.plot_weights(weights, 2)
    with pytest.raises(ValueError, match="one Axes for each of 2 heads; got 1"):
        plots.plot_heads(weights, axes=[plots.plot_weights(weights)])
    with pytest.raises(ValueError, match="use plot_weights"):
        plots.plot_heads(attention_weights(x[0], x[0], Dense()))
    with pytest.raises(ValueError, match="series"):
        plots.plot_scaling({})
