"""From scaled dot products to sparse attention, each step computed and drawn.

    python docs/examples/walkthrough.py pictures/       # prints each step, writes five pictures; about a minute

The steps are those of the article "The Big O notation and its significance in LLMs": scores and softmax weights,
several heads and their concatenated outputs, why that is O(n²), a local window and its diagonal band, then local,
strided, global, random and Longformer attention side by side, and the growth of dense and sparse attention measured.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import subquad
from subquad import Banded, Dense, Global, MultiHeadAttention, Random, Strided, attention, longformer, plots
from subquad.complexity import cost
from subquad.complexity.scaling import Setting, scale

N, EMBED = 5, 8


def scaled_dot_product(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores q k / sqrt(d), their softmax, and the weighted values, with x as query, key and value."""
    scores = subquad.attention_scores(x, x, Dense())
    weights = subquad.attention_weights(x, x, Dense())
    out = attention(x, x, x)
    return scores.data.reshape(N, N), weights.data.reshape(N, N), out


def several_heads(x: np.ndarray, num_heads: int = 2) -> tuple[MultiHeadAttention, np.ndarray]:
    """Each head attends in its own projections; their outputs stand side by side."""
    attend = MultiHeadAttention(EMBED, num_heads, Dense(), seed=0)
    return attend, attend.concatenated(x)


def local_band(n: int = 12, window: int = 2) -> np.ndarray:
    """Softmax weights of a window of 2 to each side: a diagonal band, zero elsewhere."""
    x = np.random.default_rng(1).standard_normal((n, EMBED))
    return subquad.attention_weights(x, x, Banded(window)).to_scipy().toarray()


def sparse_patterns(n: int) -> dict[str, subquad.Pattern]:
    """The article's five, with parameters that suit n."""
    window = max(2, n // 16)
    return {
        "local": Banded(window),
        "strided": Strided(max(2, n // 8)),
        "global": Global(range(2)),
        "random": Random(window, seed=0),
        "longformer": longformer(window, 2),
    }


def growth(ns: list[int], budget: float = 10.0) -> dict[str, Any]:
    """Time of dense and sparse attention, fitted."""
    patterns = {"dense": Dense(), "local": Banded(64), "longformer": longformer(64, 16), "random": Random(64, seed=0)}
    found = scale(patterns, ns, Setting(d=64, repeats=5, budget=budget))
    return {one.pattern: one.time for one in found}


def draw(folder: Path, x: np.ndarray, weights: np.ndarray, attend: MultiHeadAttention, fits: dict[str, Any]) -> None:
    """The pictures: weights, heads, the band, five patterns side by side, growth."""
    folder.mkdir(parents=True, exist_ok=True)

    def save(name: str, axes: Any) -> None:
        (folder / f"{name}.png").write_bytes(plots.content(axes))

    axes = plots.plot_weights(subquad.attention_weights(x, x, Dense()))
    axes.set_title("softmax weights", fontsize=10)
    save("weights", axes)
    save("heads", plots.plot_heads(attend.weights(x))[0])
    save("local-band", plots.plot_pattern(Banded(2), 12))
    side_by_side = sparse_patterns(64)
    panels = plots.grid(len(side_by_side), columns=5)
    for panel, (name, pattern) in zip(panels, side_by_side.items(), strict=True):
        share = pattern.density(64, 64)
        plots.plot_pattern(pattern, 64, ax=panel).set_title(f"{name}\n{share:.0%} of the pairs", fontsize=9)
    save("patterns", panels[0])
    save("growth", plots.plot_scaling(fits, ylabel="time of one call, s"))


def main(folder: Path | None = None, ns: list[int] | None = None) -> dict[str, Any]:
    """Run all steps; the results by name."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, EMBED))
    np.set_printoptions(precision=3, suppress=True, linewidth=110)

    print(f"1. Scaled dot products of {N} tokens with {EMBED} numbers each: {N} x {N} scores, n² of them")
    scores, weights, out = scaled_dot_product(x)
    print(scores, "\nsoftmax weights, each row adds up to 1:", weights, "", sep="\n")

    attend, concatenated = several_heads(x)
    print(
        f"2. Two heads of {attend.head_dim} columns; outputs concatenated, {concatenated.shape}:",
        concatenated,
        sep="\n",
    )
    print("and projected:", attend(x), "", sep="\n")

    print("3. The bottleneck: pairs, and memory of one head's scores in float32")
    for n in (1024, 16_384, 262_144):
        dense, local = n * n, cost(Banded(128), n)
        print(f"   n = {n:>7,}: dense {dense:>14,} pairs, {4 * dense / 1e9:7.3f} GB; Banded(128) {local.pairs:>10,}")

    band = local_band()
    print("\n4. Local attention, window 2: a diagonal band", (band > 0).astype(int), "", sep="\n")

    print("5. Five patterns at n = 64")
    for name, pattern in sparse_patterns(64).items():
        print(f"   {name:<10} {pattern!r:<40} {pattern.nnz(64, 64):>5} of 4096 pairs, {pattern.order}")

    print("\n6. Measured growth")
    fits = growth(ns or [512, 724, 1024, 1448, 2048, 2896, 4096, 5793, 8192])
    for name, found in fits.items():
        print(f"   {name:<10} {found}")
    if folder is not None:
        draw(folder, x, weights, attend, fits)
    return {
        "x": x,
        "scores": scores,
        "weights": weights,
        "out": out,
        "attend": attend,
        "concatenated": concatenated,
        "band": band,
        "fits": fits,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
