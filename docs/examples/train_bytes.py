"""Train a language model on bytes, 8,192 at a time
=================================================

On a CPU, in minutes::

    pip install "subquad[torch,plot]"
    python docs/examples/train_bytes.py --plot loss.png

A small transformer predicts each byte from those before it. Every byte attends the last `window` ones and the first
`tokens` ones of its context, so a step costs O(n): dense attention over the same context would visit 8,192 x 8,192 / 2
pairs a head, and keep as many weights for the gradient. The text is the language reference that ships inside CPython;
its last tenth is never trained on. What the model is worth is said in bits per byte of that tenth, beside two tables
of counts: of single bytes, and of bytes after each byte.

Takes five minutes of processor time: 2 min 41 s on two cores of an AMD EPYC (Zen 3).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad import Banded, Causal, Global, Pattern
from subquad.text import read_text
from subquad.torch import SparseMultiheadAttention


@dataclass(frozen=True)
class Settings:
    """Every option of the command."""

    n: int = 8192  # bytes of context
    window: int = 128  # bytes that each one looks back
    tokens: int = 16  # first bytes of the context, which all others see
    width: int = 128
    heads: int = 4
    layers: int = 3
    steps: int = 250
    batch: int = 1
    rate: float = 4e-3  # the learning rate, at its highest
    seed: int = 0

    @property
    def pattern(self) -> Pattern:
        return (Banded((self.window, 0)) | Global(range(self.tokens))) & Causal()


# --- the model --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention, then a network of two layers, each on the normalised sum of all that came before."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        width = settings.width
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SparseMultiheadAttention(width, settings.heads, settings.pattern)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.before_attention(x)
        x = x + self.attention(normed, normed, normed)[0]
        return x + self.network(self.before_network(x))


class ByteModel(nn.Module):
    """Logits of the next byte at each of n positions: (batch, n) to (batch, n, 256)."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, settings.width)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(settings.width)
        self.logits = nn.Linear(settings.width, 256)
        self.register_buffer("places", waves(settings.n, settings.width))
        # the order of the last four bytes, which places alone would take long to tell
        self.near = nn.Conv1d(settings.width, settings.width, 4, groups=settings.width)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embedding(codes)
        x = x + self.near(F.pad(x.mT, (3, 0))).mT + self.places[: codes.shape[1]]
        return self.logits(self.norm(self.blocks(x)))


def waves(n: int, width: int) -> Tensor:
    """Sines and cosines of each position, from a period of 2 pi bytes to one of 10,000 times that."""
    angles = torch.arange(n)[:, None] * torch.logspace(0, -4, width // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What came of a training run. Losses are in bits per byte."""

    losses: list[float] = dataclasses.field(default_factory=list)  # of each step
    held_out: dict[int, float] = dataclasses.field(default_factory=dict)  # by step
    seconds: float = 0.0
    peak_bytes: int = 0  # by which resident memory rose, everything included


def train(settings: Settings, text: bytes, report: Callable[[int, Run], None] = lambda step, run: None) -> Run:
    """Fit a new model to the first nine tenths of a text, and judge it on the rest."""
    torch.manual_seed(settings.seed)
    learned, held_out = split(text, settings.n)
    model = ByteModel(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, settings.steps, pct_start=0.1)
    loss_of(model, learned[None, :64]).backward()  # loads what is loaded once, before memory and time are looked at
    run, memory, start = Run(), peak_memory(), time.perf_counter()
    for step in range(1, settings.steps + 1):
        loss = loss_of(model, windows(learned, settings))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        run.losses.append(float(loss.detach()) / math.log(2))
        if step % 20 == 0 or step in (1, settings.steps):
            with torch.no_grad():
                run.held_out[step] = float(loss_of(model, held_out)) / math.log(2)
            run.seconds, run.peak_bytes = time.perf_counter() - start, peak_memory() - memory
            report(step, run)
    return run


def split(text: bytes, n: int) -> tuple[Tensor, Tensor]:
    """The bytes to learn from, and up to four windows (windows, n + 1) of the last tenth."""
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    learned, rest = codes[: -len(codes) // 10], codes[-len(codes) // 10 :]
    if len(rest) <= n:
        raise ValueError(f"the text has {len(text)} bytes; a tenth of it must be longer than n = {n}")
    count = min(4, (len(rest) - 1) // n)
    return learned, torch.stack([rest[at * n : (at + 1) * n + 1] for at in range(count)])


def windows(codes: Tensor, settings: Settings) -> Tensor:
    """(batch, n + 1) bytes from random places."""
    starts = torch.randint(len(codes) - settings.n, (settings.batch,)).tolist()
    return torch.stack([codes[start : start + settings.n + 1] for start in starts])


def loss_of(model: nn.Module, codes: Tensor) -> Tensor:
    """Mean surprise, in nats, at each byte but the first."""
    return F.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())


# --- what to compare it with ------------------------------------------------------------------------------------------


def table_bits(text: bytes, n: int, order: int) -> float:
    """Bits per byte of the held-out windows by counts of bytes (order 0), or of bytes after each byte (order 1)."""
    learned, held_out = (x.numpy() for x in split(text, n))
    counts = np.full((256, 256), 1 / 256)  # a pair that was never seen is possible all the same
    np.add.at(counts, (learned[:-1], learned[1:]), 1)
    if order == 0:
        counts[:] = counts.sum(axis=0)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(-np.log2(shares[held_out[:, :-1], held_out[:, 1:]]).mean())


def peak_memory() -> int:
    """The most resident memory that this process has had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def dense_bytes(settings: Settings) -> int:
    """What dense attention keeps of one step for its gradient: a float32 weight a pair, head and layer."""
    return 4 * settings.n**2 * settings.heads * settings.layers * settings.batch


# --- the command ------------------------------------------------------------------------------------------------------


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, metavar="X")
    parser.add_argument("--text", metavar="FILE", help="train on this; default Python's language reference")
    parser.add_argument("--plot", metavar="FILE", help="draw the loss curve")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    return parser.parse_args()


def main() -> None:
    given = vars(options())
    text, plot_file, json_file = read_text(given.pop("text")), given.pop("plot"), given.pop("json")
    settings = Settings(**given)
    pairs = settings.pattern.nnz(settings.n, settings.n)
    print(f"{settings.pattern}: {pairs:,} pairs of {settings.n**2:,} at n = {settings.n:,}")

    def report(step: int, run: Run) -> None:
        print(f"step {step:4d}  {run.losses[-1]:6.3f} bits a byte, held out {run.held_out[step]:6.3f}", flush=True)

    run = train(settings, text, report)
    tables = {name: table_bits(text, settings.n, order) for order, name in enumerate(("bytes", "pairs of bytes"))}
    for name, bits in tables.items():
        print(f"counts of {name}: {bits:.3f} bits a byte, held out")
    print(f"{settings.steps} steps in {run.seconds:.0f} s on {torch.get_num_threads()} threads")
    dense = dense_bytes(settings) / 1e6
    print(f"memory: {run.peak_bytes / 1e6:,.0f} MB in all; the weights of dense attention alone: {dense:,.0f} MB")
    if json_file:
        figures = dataclasses.asdict(run) | {"settings": given, "tables": tables, "dense_bytes": dense_bytes(settings)}
        with open(json_file, "w") as file:
            json.dump(figures, file, indent=1)
    if plot_file:
        plot(run, tables, plot_file)


def plot(run: Run, tables: dict[str, float], file: str) -> None:
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4), layout="constrained").subplots()
    axes.plot(range(1, len(run.losses) + 1), run.losses, label="trained on", linewidth=1)
    axes.plot(list(run.held_out), list(run.held_out.values()), "o-", label="held out", markersize=4)
    for (name, bits), style in zip(tables.items(), (":", "--"), strict=True):
        axes.axhline(bits, color="gray", linestyle=style, label=f"counts of {name}, held out")
    axes.set(xlabel="step", ylabel="bits per byte", ylim=(0, None), title="A byte-level language model")
    axes.legend()
    axes.figure.savefig(file, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
