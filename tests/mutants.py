"""Faults put into a copy of the library by hand, each of which the contract's suite must find.

An edit that no longer matches its source exactly once is an error, so that no mutant silently stops being one. From
the folder of the project:

    python tests/mutants.py            # all of them, one line each; the exit status is the number of survivors
    python tests/mutants.py top-left   # some
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src"


class Mutant(NamedTuple):
    file: str  # below subquad/
    old: str
    new: str
    check: str  # of the contract: the one that must fail
    patterns: str


MUTANTS = {
    "top-left": Mutant(
        "forward.py",
        "table[layout.SHIFT], table[layout.N_K] = shape.shift, shape.n_k",
        "table[layout.SHIFT], table[layout.N_K] = 0, shape.n_k",
        "alignment",
        "Causal()",
    ),
    "last tile skipped": Mutant(
        "plan/tables.py",
        "return list(zip(starts.tolist(), [*starts[1:].tolist(), len(work)], strict=True))",
        "return list(zip(starts.tolist(), [*starts[1:].tolist(), len(work) - 1], strict=True))",
        "dense-oracle",
        "Banded(3)",
    ),
    "mask bit shifted": Mutant(
        "plan/masks.py",
        "1 << (owner % lanes)",
        "1 << ((owner + 1) % lanes)",
        "dense-oracle",
        "Random(60, 0)",
    ),
    "word of bits reversed": Mutant(
        "plan/masks.py",
        "(allowed @ (1 << np.arange(lanes)))",
        "(allowed @ (1 << np.arange(lanes)[::-1]))",
        "dense-oracle",
        "Banded(40) - Strided(3), (Banded(20) | Strided(2)) & Banded(30)",
    ),
    "head stride of groups": Mutant(
        "forward.py",
        "head // group * stride for start",
        "head * stride // group for start",
        "grouped-heads",
        "Banded(3)",
    ),
    "first pair of a row skipped": Mutant(
        "plan/lists.py",
        "return GatheredPhase(np.concatenate(([0], np.cumsum(counts))), keys)",
        "return GatheredPhase(np.concatenate(([1], np.cumsum(counts))), keys)",
        "dense-oracle",
        "Random(5, 0) & Causal() | Banded(0)",
    ),
    "second phase starts anew": Mutant(
        "forward.py",
        "{layout.FOLD: int(number > 0),",
        "{layout.FOLD: 0,",
        "dense-oracle",
        "Random(4, 5) | Banded(30)",
    ),
    "lists by key begin late": Mutant(
        "plan/tables.py",
        "return GatheredPhase(indptr, parts[0][1] if parts else self.indices)",
        "return GatheredPhase(np.append(indptr[1:], indptr[-1]), parts[0][1])",
        "gradients",
        "Random(5, 0)",
    ),
    "gradients exchanged": Mutant(
        "backward.py",
        "places = call.place(k, q, v, grads.of_out, grads.lse, grads.delta, grads.key, grads.value)",
        "places = call.place(k, q, v, grads.of_out, grads.lse, grads.delta, grads.value, grads.key)",
        "gradients",
        "Random(5, 0)",
    ),
    "delta forgotten": Mutant(
        "attention.py",
        "        for x in of_lse:\n            delta -= x\n",
        "        delta *= 0\n",
        "gradients",
        "Banded(3)",
    ),
    "heads of a group overwrite": Mutant(
        "backward.py",
        "found.setdefault(head // self.inputs.group if shared else head, []).append(head)",
        "found[head // self.inputs.group if shared else head] = [head]",
        "gradients-of-groups",
        "Banded(3)",
    ),
    "merge without weights": Mutant(
        "attention.py",
        "share_a, share_b = (np.where(w == 0, 0, w / total)[..., None] for w in (weight_a, weight_b))",
        "share_a, share_b = (np.where(w == 0, 0, 0.5)[..., None] for w in (weight_a, weight_b))",
        "complement",
        "Dense(), Banded(3)",
    ),
    "out may overlap": Mutant(
        "inputs.py",
        "if isinstance(x, np.ndarray) and _overlap(out, x):",
        "if False:",
        "out-overlapping",
        "Banded(3)",
    ),
    "default scale forgotten": Mutant(
        "inputs.py",
        "return float(d**-0.5)",
        "return 1.0",
        "scale",
        "Banded(3)",
    ),
}
CONTROL = [(mutant.check, mutant.patterns) for mutant in MUTANTS.values()]

_CHILD = """
import sys
import subquad
from subquad import *
from subquad.testing import check_attention
assert subquad.__file__.startswith(sys.argv[1]), subquad.__file__
failed = set()
for check, patterns in zip(sys.argv[2::2], sys.argv[3::2]):
    found = check_attention(
        attention, backward=attention_backward, only=check, patterns=eval(f"[{patterns}]"), dtypes=["float32"], size=70
    )
    assert found.cases, check
    failed.update(found.failed)
print(*sorted(failed))
"""


def failed_checks(edit: Mutant | None, asked: list[tuple[str, str]]) -> list[str]:
    """The checks that fail on a copy of the library with this edit; a process that dies fails them all."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(SOURCE / "subquad", Path(folder, "subquad"), ignore=shutil.ignore_patterns("__pycache__"))
        if edit is not None:
            path = Path(folder, "subquad", edit.file)
            text = path.read_text(encoding="utf-8")
            if text.count(edit.old) != 1:
                raise ValueError(
                    f"{edit.file} must hold this text exactly once; it does {text.count(edit.old)} times:\n{edit.old}"
                )
            path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
        words = [word for pair in asked for word in pair]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CHILD, folder, *words],
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode > 0:
        raise RuntimeError(done.stderr)
    return done.stdout.split() if done.returncode == 0 else [check for check, _ in asked]


def is_killed(name: str) -> bool:
    mutant = MUTANTS[name]
    return mutant.check in failed_checks(mutant, [(mutant.check, mutant.patterns)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of mutants; all by default")
    names = parser.parse_args().names or list(MUTANTS)
    if failed := failed_checks(None, CONTROL):
        print(f"the library itself fails {', '.join(failed)}")
        return 1
    survivors = 0
    for name in names:
        killed = is_killed(name)
        survivors += not killed
        print(f"{name:<28} {'killed by ' + MUTANTS[name].check if killed else 'SURVIVES'}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
