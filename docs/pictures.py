"""Pictures and facts of the pages, made when the pages are built: one entry a pattern, and what a plan looks like.

python docs/pictures.py pictures
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import subquad
from subquad import Banded, Causal, Global, Pattern, Random, Strided, plots
from subquad.kernels import layout

DRAWN_N, COUNTED_N = 64, 4096
FULL, BAND, BITS = "#0b5394", "#E69F00", "#009E73"


@dataclass(frozen=True)
class Entry:
    """A pattern, or a preset, with parameters that suit any n."""

    name: str
    code: str  # an expression in n
    rule: str  # which pairs are allowed
    pairs: str  # how many
    text: str

    def at(self, n: int) -> Pattern:
        from scipy import sparse

        names = {name: getattr(subquad, name) for name in subquad.__all__} | {"np": np, "sparse": sparse, "n": n}
        return eval(self.code, names)

    @property
    def file(self) -> str:
        return f"{self.name}.png"


WHOLE = [
    Entry("Dense", "Dense()", "all", "n²", "What every other pattern is compared with."),
    Entry(
        "Causal", "Causal()", "`j <= p`", "n (n + 1) / 2", "`pattern & Causal()` makes any pattern one of a decoder."
    ),
]
NEAR = [
    Entry(
        "Banded",
        "Banded(6)",
        "`abs(p - j) <= w`, or `p - left <= j <= p + right`",
        "n (2 w + 1) - w (w + 1)",
        "A sliding window. `Banded((left, right))` has two widths, of which `None` is unbounded; "
        "`Banded(1, block=64)` counts blocks of 64 tokens instead of tokens.",
    ),
    Entry(
        "dilated",
        "dilated(4, 3)",
        "`p - j` a multiple of the dilation, at most `window` times",
        "about n (2 w + 1)",
        "A window with gaps, which reaches further for the same number of keys: `Strided(3) & Banded(12)`.",
    ),
    Entry(
        "Neighborhood",
        "Neighborhood((n // 8, 8), 3)",
        "the nearest `window` tokens along each axis of a grid",
        "n window^D",
        "Images and volumes, as NATTEN defines them: at a border the window moves inwards and stays as wide. "
        "Here a grid of 8 columns, row by row.",
    ),
    Entry(
        "LogSparse",
        "LogSparse()",
        "`p - j` is 0, 1, 2, 4, 8, ...",
        "about n log₂ n",
        "Few keys, at distances that double (Li et al., 2019): in log n layers a token reaches every one before it.",
    ),
]
FAR = [
    Entry(
        "Strided",
        "Strided(8)",
        "`(p - j) % stride == 0`",
        "n² / stride",
        "Every stride-th token. Its pairs are reordered by residue class into dense blocks, as fast as a band.",
    ),
    Entry(
        "Columns",
        "Columns(8, 1)",
        "`j % stride >= stride - width`",
        "n² width / stride",
        "Summary tokens that everybody reads: the last `width` keys of every `stride`.",
    ),
    Entry(
        "Global",
        "Global([0, 1, 40])",
        "p or j in `tokens`",
        "2 n g - g²",
        "g tokens that see all and are seen by all; `rows=False` or `columns=False` keeps one half.",
    ),
    Entry(
        "Random",
        "Random(3, seed=0, block=4)",
        "`keys` random key blocks for each query block",
        "n keys block",
        "From a generator that counts, so a row's keys are the same on every platform and whoever asks for them.",
    ),
]
YOURS = [
    Entry(
        "BlockSparse",
        "BlockSparse(np.tri(n // 8, dtype=bool) & (np.indices((n // 8, n // 8)).sum(0) % 3 > 0), 8)",
        "`layout[i // block, j // block]`",
        "as the layout",
        "A layout of blocks of your own, dense or sparse.",
    ),
    Entry(
        "Explicit",
        'Explicit(sparse.diags_array([1.0] * 5, offsets=[-8, -1, 0, 1, 8], shape=(n, n), format="csr"))',
        "the stored entries of a SciPy CSR array",
        "as stored",
        "Graphs and meshes. Here the edges of a grid of 8 columns.",
    ),
    Entry(
        "Packed",
        "Packed([n // 2, n // 8, n // 4, n // 8])",
        "i and j in the same segment",
        "sum of squares",
        "Several sequences in one batch row, none of which sees another.",
    ),
]
PRESETS = [
    Entry(
        "longformer",
        "longformer(6, [0, 1])",
        "`Banded(window) | Global(tokens)`",
        "about n (2 w + 1 + 2 g)",
        "Beltagy, Peters, Cohan (2020).",
    ),
    Entry(
        "bigbird",
        "bigbird(4, random_blocks=1, global_blocks=1)",
        "blocks of a window, random ones and global ones",
        "about n block (window + random + 2 global)",
        "Zaheer et al. (2020). Each pair once, however the parts overlap.",
    ),
    Entry(
        "streaming",
        "streaming(4, 10)",
        "the first `sinks` keys and the last `window`",
        "about n (sinks + window)",
        "Attention sinks, for endless decoding (Xiao et al., 2023).",
    ),
    Entry(
        "sparse_transformer_strided",
        "sparse_transformer_strided(8)",
        "`(Banded((s, 0)) | Strided(s)) & Causal()`",
        "about n (s + n / 2 s)",
        'Child et al. (2019), "strided": O(n^1.5) where the stride follows the root of n.',
    ),
    Entry(
        "sparse_transformer_fixed",
        "sparse_transformer_fixed(8, 1)",
        "`(Banded(0, block=s) | Columns(s, w)) & Causal()`",
        "about n (s / 2 + n w / 2 s)",
        'Child et al. (2019), "fixed": the own block, and the last keys of every block before.',
    ),
]
CATALOGUE = {
    "Everything": WHOLE,
    "Near tokens": NEAR,
    "Far tokens": FAR,
    "Of your own": YOURS,
    "Presets": PRESETS,
}


def markdown(entry: Entry) -> str:
    """The entry on the page of patterns."""
    pattern = entry.at(COUNTED_N)
    count, share = pattern.nnz(COUNTED_N, COUNTED_N), pattern.density(COUNTED_N, COUNTED_N)
    return f"""
### {entry.name}

::::{{container}} pattern
```{{image}} _generated/{entry.file}
:alt: {entry.name}: allowed pairs of {DRAWN_N} queries and keys
```

:::{{container}} facts
```python
{entry.code}
```

{entry.text}

| | |
|---|---|
| allowed | {entry.rule} |
| pairs | {entry.pairs} |
| order in n | `{pattern.order}` |
| at n = {COUNTED_N:,} | {count:,} pairs, {100 * share:.3g}% |

{{py:obj}}`subquad.{entry.name}`
:::
::::
"""


def build(directory: Path) -> None:
    """Write every picture, and the page of patterns."""
    directory.mkdir(parents=True, exist_ok=True)
    page = []
    for title, entries in CATALOGUE.items():
        page.append(f"\n## {title}\n")
        for entry in entries:
            axes = _axes(2.7, 2.7)
            plots.plot_pattern(entry.at(DRAWN_N), DRAWN_N, ax=axes).set_title("")
            _save(axes, directory / entry.file)
            page.append(markdown(entry))
    (directory / "catalogue.md").write_text("".join(page), encoding="utf-8")
    pattern = (Banded(20) | Global([0, 1])) & Causal()
    _save(_pattern(pattern), directory / "step-pattern.png")
    _save(_plan(pattern), directory / "step-plan.png")
    _save(_kernel(), directory / "step-kernel.png")
    for name, axes in _ways().items():
        _save(axes, directory / f"way-{name}.png")


# --- pattern, plan, kernel --------------------------------------------------------------------------------------------

STEPS_N = 96


def _pattern(pattern: Pattern) -> Any:
    axes = plots.plot_pattern(pattern, STEPS_N, ax=_axes(3.6, 3.9))
    axes.set_title("pattern: which pairs are allowed", fontsize=10)
    return axes


def _plan(pattern: Pattern) -> Any:
    """The tables of the plan as they are: a rectangle for each run of keys of each tile, by the mask it needs."""
    from matplotlib.patches import Patch, Rectangle

    axes, plan, drawn = _axes(3.6, 3.9), pattern.plan(STEPS_N, STEPS_N), set()
    for phase in plan.phases:
        for tile in phase.tiles:
            row, count = tile[layout.FIRST_ROW], tile[layout.ROW_COUNT]
            for run in phase.runs[tile[layout.RUN_BEGIN] : tile[layout.RUN_END]]:
                first, keys = run[layout.FIRST_KEY], run[layout.KEY_COUNT]
                if run[layout.KEY_LIST] != layout.NO_LIST:
                    first = phase.keys[run[layout.KEY_LIST]]
                masked = {layout.MASK_FULL: FULL, layout.MASK_BITS: BITS}.get(run[layout.MASK], BAND)
                full = run[layout.FULL_BEGIN], run[layout.FULL_END]
                pieces = [(0, keys, masked)] if masked == FULL else [(0, keys, masked), (*full, FULL)]
                for begin, end, colour in pieces:
                    if begin < min(end, keys):
                        box = (first + begin - 0.5, row - 0.5), min(end, keys) - begin, count
                        axes.add_patch(Rectangle(*box, facecolor=colour, edgecolor="white", linewidth=0.7))
                        drawn.add(colour)
    axes.set(xlim=(-0.5, STEPS_N - 0.5), ylim=(STEPS_N - 0.5, -0.5), aspect="equal", xlabel="key", ylabel="query row")
    axes.tick_params(labelsize=8)
    kinds = {FULL: "no mask", BAND: "two bounds", BITS: "bits"}
    axes.legend(handles=[Patch(color=c, label=kinds[c]) for c in kinds if c in drawn], fontsize=8, frameon=False)
    axes.set_title("plan: tiles of 16 rows, runs of keys", fontsize=10)
    return axes


def _kernel() -> Any:
    """One tile at work: a lane of the vector is a query row, keys go by one at a time."""
    from matplotlib.patches import FancyArrow, Rectangle

    axes = _axes(3.6, 3.9)
    for key in range(9):
        for row in range(16):
            done = "#9fc5e8" if key < 5 else FULL if key == 5 else "#eeeeee"
            axes.add_patch(Rectangle((key, row), 0.9, 0.9, facecolor=done))
    axes.add_patch(FancyArrow(5.45, -0.8, 2.4, 0, width=0.05, head_width=0.5, head_length=0.5, color="#444444"))
    axes.text(5.4, -1.3, "keys, one at a time", fontsize=8, ha="center")
    for place, (label, colour) in enumerate([("m", "#d9ead3"), ("denom", "#fff2cc"), ("out", "#f4cccc")]):
        x = 10.6 + 1.9 * place
        for row in range(16):
            axes.add_patch(Rectangle((x, row), 1.2, 0.9, facecolor=colour))
        axes.text(x + 0.6, -0.5, label, fontsize=8, ha="center")
    axes.text(-0.4, 8, "16 query rows = the lanes of a vector", fontsize=8, rotation=90, ha="right", va="center")
    axes.text(
        0,
        17.2,
        "a step of up to 96 keys:  s = q · key,  m' = max(m, s)\n"
        "denom = denom 2^(m - m') + Σ 2^(s - m')\nout = out 2^(m - m') + Σ 2^(s - m') value",
        fontsize=8,
        va="top",
        linespacing=1.5,
    )
    axes.set(xlim=(-1.6, 16), ylim=(21.5, -2.4))
    axes.set_axis_off()
    axes.set_title("kernel: online softmax, a tile at a time", fontsize=10)
    return axes


def _ways() -> dict[str, Any]:
    """The same tables for three patterns that reach memory in three ways."""
    n, stride = 64, 8
    strided = Strided(stride).to_csr(n, n).toarray()
    order = np.argsort(np.arange(n) % stride, kind="stable")
    reordered = _axes(2.9, 3.2)
    reordered.imshow(np.ma.masked_equal(strided[order][:, order], 0), cmap="Blues", vmin=0, vmax=1.25)
    reordered.set(xlabel="key, by residue class", ylabel="query row, by residue class")
    lists = plots.plot_pattern(Random(6, seed=0), n, ax=_axes(2.9, 3.2))
    found = {"strided": plots.plot_pattern(Strided(stride), n, ax=_axes(2.9, 3.2)), "reordered": reordered}
    found["lists"] = lists
    titles = {"strided": "Strided(8)", "reordered": "the same, reordered: dense blocks", "lists": "Random(6): lists"}
    for name, axes in found.items():
        axes.set_title(titles[name], fontsize=10)
        axes.tick_params(labelsize=8)
    return found


def _axes(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots()


def _save(axes: Any, path: Path) -> None:
    path.write_bytes(plots.content(axes))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
