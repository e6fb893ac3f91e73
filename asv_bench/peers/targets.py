"""What subquad promises for these cases, as data, and the verdict on what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from .cases import MEMORY_CASE, STARTUP, THREADS_CASE, TRAINING_MEMORY_CASE

#: Measured figures by (case, what), with `what` as in TARGETS.
Figures = Mapping[tuple[str, str], float]


@dataclass(frozen=True)
class Target:
    case: str
    what: str
    least: float | None = None
    most: float | None = None

    @property
    def bound(self) -> str:
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    def verdict(self, figures: Figures) -> str:
        value = figures.get((self.case, self.what))
        if value is None:
            return "not measured"
        met = value >= self.least if self.least is not None else value <= self.most
        return "met" if met else "not met"


OF_PEAK = "share of peak"
OVER = "times faster than {}"

TARGETS = (
    Target("banded-256", OF_PEAK, least=0.68),
    Target("banded-256", OVER.format("flex"), least=2.4),
    Target("banded-8", OVER.format("flex"), least=16),
    Target("banded-32", OVER.format("flex"), least=8),
    Target("banded-128", OVER.format("flex"), least=2.8),
    Target("banded-512", OVER.format("flex"), least=2),
    Target("random-64", OVER.format("gather"), least=26),
    Target("strided-128", OF_PEAK, least=0.55),
    Target("bigbird-64", OF_PEAK, least=0.55),
    Target("longformer-256", OF_PEAK, least=0.55),
    Target("banded-256-backward", OF_PEAK, least=0.66),
    Target("banded-256-training", OVER.format("sdpa-mask"), least=8),
    Target("banded-256-training", OVER.format("hf-longformer"), least=6),
    Target(THREADS_CASE.name, "speed-up", least=1.75),
    Target(MEMORY_CASE.name, "MB beyond arrays", most=64),
    Target(TRAINING_MEMORY_CASE.name, "MB beyond arrays", most=64),
    Target(STARTUP, "first call cold, s", most=6),
    Target(STARTUP, "first call warm, s", most=0.6),
    Target(STARTUP, "import over numpy", most=1.5),
    Target(STARTUP, "imports Numba", most=0),
)
