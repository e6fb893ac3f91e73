"""One slip in a kernel at a time, run as plain Python: how it is found.

    python tests/slips_in_kernels.py [module]...

A slip is an end of a range that is one too far, or a comparison that takes or leaves the equal case. Some change
nothing: where two sides of a comparison are never equal, or work is done twice, or beside what is used of scratch.
"""

from __future__ import annotations

import ast
import signal
import sys
from collections import Counter

import numpy as np
from support import case
from support_gradients import backward_inputs
from support_interpreted import Interpreter
from support_pointers import KERNELS

from subquad import Banded, Random, attention, attention_backward, longformer

MODULES = ["tiled", "gathered", "softmax", "backward", "gathered_backward", "transpose"]
OTHER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SECONDS = 20  # from here on a call has no end


def calls():
    """Arrays, pattern, options, and what the compiled kernels make of them."""
    rng = np.random.default_rng(0)
    small = backward_inputs(rng, 20, 20, 9, 5, leading=(1, 1))
    wide = backward_inputs(rng, 9, 9, 33, 17, leading=(1, 1), dtype=np.float64)
    across = tuple(np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) for x in small)
    slopes = np.array([0.5])
    for arrays, pattern, options in (
        *((arrays, pattern, {}) for arrays in (small, across, wide) for pattern in (Banded(9), Random(4))),
        (small, longformer(4, (0, 7)), {}),
        (small, case("blocks-5", 20, 20), {}),
        (small, Random(4), {"key_lengths": np.array([13])}),
        (small, Banded(9), {"softcap": 1.5, "alibi_slopes": slopes}),
        (small, Random(4), {"dropout": 0.3, "seed": 1, "alibi_slopes": slopes}),
    ):
        kept = attention(*arrays[1:], pattern, return_lse=True, **options)
        yield arrays, pattern, options, (*kept, *attention_backward(*arrays, *kept, pattern, **options))


def slips(tree):
    """The tree with one slip at a time; a name that begins with an underscore is an intrinsic's."""
    for function in tree.body:
        intrinsic = isinstance(function, ast.FunctionDef) and "intrinsic" in map(ast.unparse, function.decorator_list)
        if not isinstance(function, ast.FunctionDef) or intrinsic or function.name.startswith("_"):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "range":
                at = min(1, len(node.args) - 1)
                end, node.args[at] = node.args[at], ast.BinOp(node.args[at], ast.Add(), ast.Constant(1))
                yield node.lineno
                node.args[at] = end
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
                operator, node.ops[0] = node.ops[0], OTHER[type(node.ops[0])]()
                yield node.lineno
                node.ops[0] = operator


def verdict(interpreter, expected):
    """How the slip shows first."""
    signal.alarm(SECONDS)
    try:
        for arrays, pattern, options, right in expected:
            with interpreter.running():
                out = attention(*arrays[1:], pattern, return_lse=True, num_threads=1, **options)
                grads = attention_backward(*arrays, *right[:2], pattern, num_threads=1, **options)
            if not all(np.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip((*out, *grads), right, strict=True)):
                return "another result"
    except IndexError:
        return "an access refused"
    except TimeoutError:
        return "no end"
    finally:
        signal.alarm(0)
    return "not at all"


def out_of_time(*_):
    raise TimeoutError


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, out_of_time)
    expected, total = list(calls()), Counter()
    assert verdict(Interpreter(), expected) == "not at all"
    for module in sys.argv[1:] or MODULES:
        source = (KERNELS / f"{module}.py").read_text()
        tree = ast.parse(source)
        for line in slips(tree):
            slipped = ast.unparse(ast.fix_missing_locations(tree))
            found = verdict(Interpreter(**{module: (source, slipped)}), expected)
            total[found] += 1
            if found == "not at all":
                print(f"{module}.py:{line}: {source.splitlines()[line - 1].strip()}")
    print(f"{total.total()} slips, found by: {dict(total)}")
