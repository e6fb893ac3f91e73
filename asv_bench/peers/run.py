"""The whole comparison as one value, ready for JSON; nothing here prints a result."""

import dataclasses
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import extras
from .cases import CASE_NAMES, CASES, MEMORY_CASE, STARTUP, THREADS_CASE, TRAINING_MEMORY_CASE, Case, shortened
from .contenders import CONTENDERS
from .masks import Refused
from .measure import Effort
from .targets import OF_PEAK, OVER, TARGETS
from .throughput import CaseResult, absent_package, first_line, run_case

SCHEMA = 1
PACKAGES = ("subquad", "numpy", "numba", "torch", "transformers", "local-attention")
QUICK_N = 1024


@dataclass(frozen=True)
class Settings:
    """`quick` shortens every case to QUICK_N tokens and measures briefly: it shows that all of it works."""

    threads: int = 1
    quick: bool = False
    only: Sequence[str] | None = None  # peers; subquad always takes part
    cases: Sequence[str] = CASE_NAMES
    cores: Sequence[int] = (0,)  # that the process had before it was pinned
    longest: int | None = None  # n at most; tests use less than QUICK_N

    @property
    def effort(self) -> Effort:
        return Effort(seconds=0.5, least=2, most=3) if self.quick else Effort(seconds=8, least=3, most=21)

    def shorten(self, case: Case) -> Case:
        longest = self.longest or (QUICK_N if self.quick else case.n)
        return shortened([case], longest)[0]


def progress(message: str) -> None:
    print(f"peers: {message}", file=sys.stderr, flush=True)


def compare(settings: Settings) -> dict[str, Any]:
    chosen = [one for one in CONTENDERS if one.name == "subquad" or settings.only is None or one.name in settings.only]
    results = [
        run_case(settings.shorten(case), chosen, settings.threads, settings.effort, progress)
        for case in CASES
        if case.name in settings.cases
    ]
    measured = {name: attempt(name, measure) for name, measure in extra_sections(settings).items()}
    figures = figures_of(results) | {
        (name, what): value for name, section in measured.items() for what, value in section["figures"].items()
    }
    return {
        "schema": SCHEMA,
        "machine": machine(),
        "settings": {"threads": settings.threads, "quick": settings.quick, "dtype": "float32"},
        "contenders": {
            one.name: {"about": one.about, "absent": absent_package(one), "chosen": one in chosen} for one in CONTENDERS
        },
        "throughput": [dataclasses.asdict(result) for result in results],
        "sections": measured,
        "targets": [judge(target, figures, settings) for target in TARGETS],
    }


def extra_sections(settings: Settings) -> dict[str, Callable[[], dict[str, float]]]:
    threads_case = settings.shorten(THREADS_CASE)
    memory_cases = [settings.shorten(case) for case in (MEMORY_CASE, TRAINING_MEMORY_CASE)]
    sections = {
        THREADS_CASE.name: lambda: extras.thread_scaling(threads_case, list(settings.cores), settings.effort),
        **{case.name: lambda case=case: extras.memory(case, settings.threads) for case in memory_cases},
        STARTUP: lambda: extras.startup(processes=1 if settings.quick else 9),
    }
    return {name: section for name, section in sections.items() if name in settings.cases}


def attempt(name: str, measure: Callable[[], dict[str, float]]) -> dict[str, Any]:
    progress(name)
    try:
        return {"status": "ok", "note": "", "figures": measure()}
    except Refused as refusal:
        return {"status": "refused", "note": str(refusal), "figures": {}}
    except Exception as error:  # one section that fails must not cost the others
        return {"status": "failed", "note": first_line(error), "figures": {}}


def figures_of(results: list[CaseResult]) -> dict[tuple[str, str], float]:
    figures = {}
    for result in results:
        for entry in result.entries:
            if entry.contender == "subquad" and entry.share_of_peak is not None:
                figures[result.case, OF_PEAK] = entry.share_of_peak
            if entry.times_subquad is not None:
                figures[result.case, OVER.format(entry.contender)] = entry.times_subquad
    return figures


def judge(target: Any, figures: dict[tuple[str, str], float], settings: Settings) -> dict[str, Any]:
    shortened_run = settings.quick or settings.longest is not None
    return {
        "case": target.case,
        "what": target.what,
        "bound": target.bound,
        "value": figures.get((target.case, target.what)),
        # The targets are for the full sizes.
        "verdict": "not judged" if shortened_run else target.verdict(figures),
    }


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
