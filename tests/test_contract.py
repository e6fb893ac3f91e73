"""The contract as a suite: what keeps it passes, and what breaks it is caught by the check that is meant for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from wrong_attention import WRONG, DenseAttention

import subquad
from subquad import Banded, Causal, Dense, Global, Packed, Random, attention, attention_backward, reference
from subquad.testing import Frame, check_attention, checks

# Enough to break; the dense implementations of this file go row by row in Python
SMALL = {
    "patterns": [Dense(), Causal(), Banded((5, 2)), Random(4, 0), Global([1, 2], columns=False), Banded(1) - Causal()],
    "dtypes": ["float64"],
    "size": 26,
}


def test_the_library_keeps_its_contract():
    report = check_attention(attention, backward=attention_backward, size=60)
    assert report.passed, str(report)
    assert report.cases > 2000
    assert [outcome.name for outcome in report.outcomes] == list(checks())
    assert not [outcome.name for outcome in report.outcomes if outcome.skipped]


def test_the_reference_keeps_what_it_claims():
    """Not its last bit: BLAS adds up in another order where there are other rows."""
    claimed = {"dtypes": ["float64"], "options": ["scale", "return_lse"], "size": 40}
    report = check_attention(
        reference.attention,
        backward=reference.attention_backward,
        skip=["bits", "isolation", "gradients-alone", "gradients-nan-outside"],
        **claimed,
    )
    assert report.passed, str(report)
    assert report.cases > 500
    assert {outcome.name for outcome in report.outcomes if outcome.skipped} == {
        "out-receives",
        "out-overlapping",
        "out-untouched",
        "gradients-threads",
    }


def test_dense_numpy_keeps_it():
    report = check_attention(DenseAttention(), **SMALL | {"dtypes": ["float64", "bfloat16"]})
    assert report.passed, str(report)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_what_is_wrong_is_caught_by_the_check_for_it(wrong):
    caught = WRONG[wrong]
    report = check_attention(wrong(), only=caught, **SMALL)
    assert caught == set(report.failed), str(report)
    for failure in report.failures:
        assert failure.check in str(failure)
        assert failure.message


@pytest.mark.parametrize("wrong", [w for w in WRONG if "Depends" in w.__name__ or w.__name__ in ("Leaks", "BaseTwo")])
def test_a_fault_of_one_kind_fails_no_check_of_values(wrong):
    """A last bit, a leak and a logarithm do not show in outputs: only the check for them sees them."""
    assert check_attention(wrong(), only=["dense-oracle", "alignment", "scale", "grouped-heads"], **SMALL)


def wrong_gradients(change):
    def backward(grad_out, query, key, value, out, lse, pattern, **options):
        found = attention_backward(grad_out, query, key, value, out, lse, pattern, **options)
        return change(found, query, options)

    return backward


def scaled(found, query, options):
    return found[0] / (options.get("scale") or 1) if options.get("scale") else found[0], *found[1:]


def of_threads(found, query, options):
    count = options.get("num_threads") or 1
    return *found[:2], (found[2] * (1 + 2e-7 * (count > 1))).astype(found[2].dtype)


GRADIENTS = {
    "scale forgotten": (scaled, {"gradients-scale"}),
    "query and key exchanged": (lambda f, q, o: (f[1], f[0], f[2]) if f[0].shape == f[1].shape else f, {"gradients"}),
    "dtype": (lambda f, q, o: tuple(x.astype(np.float64) for x in f), {"gradients"}),
    "sign": (lambda f, q, o: (f[0], -f[1], f[2]), {"gradients", "gradients-balance", "duality"}),
    "NaN without keys": (lambda f, q, o: (np.where(f[0] == 0, np.nan, f[0]), *f[1:]), {"gradients-without-keys"}),
    "of threads": (of_threads, {"gradients-threads"}),
    "of a batch": (
        lambda f, q, o: tuple(x * np.float32(1 + 2e-7 * (q.ndim > 2)) for x in f),
        {"gradients-alone"},
    ),
    "leak": (
        lambda f, q, o: tuple(x + 0 * sum(y.sum() for y in f) for x in f),
        {"gradients-nan-outside"},
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_wrong_gradients_are_caught(name):
    change, caught = GRADIENTS[name]
    with np.errstate(invalid="ignore"):
        report = check_attention(attention, backward=wrong_gradients(change), only=caught, dtypes=["float32"], size=24)
    assert caught <= set(report.failed), str(report)


# --- the report -------------------------------------------------------------------------------------------------------


def test_a_failure_can_be_repeated():
    told = []
    wrong = next(w for w in WRONG if w.__name__ == "TopLeft")()
    report = check_attention(wrong, only=["alignment", "lse"], progress=lambda *at: told.append(at), seed=3, **SMALL)
    assert told == [(0, 2, "alignment"), (1, 2, "lse")]
    assert not report
    assert report.failed == ("alignment",)
    failure = report.failures[0]
    assert failure.difference > 100 * failure.allowed
    assert failure.repeat.startswith("check_attention(..., only='alignment', case=")
    again = eval(
        failure.repeat.replace("...", "wrong").replace(")", ", **options)"),
        globals(),
        locals()
        | {
            "options": {name: x for name, x in SMALL.items() if name != "size"},
            "wrong": wrong,
        },
    )
    assert again.cases == 1
    assert str(again.failures[0]) == str(failure)
    arguments, options = failure.arguments
    assert not np.allclose(wrong(*arguments, **options), attention(*arguments, **options))
    text = str(report)
    assert "alignment  FAILED" in text
    assert failure.repeat in text
    with pytest.raises(AssertionError, match="alignment  FAILED"):
        report.raise_for_failures()
    with pytest.raises(AssertionError, match="Query i stands at position"):
        check_attention(wrong, only="alignment", raises=True, **SMALL)


def test_what_an_implementation_raises_is_a_failure():
    def broken(*args, **options):
        raise RuntimeError("out of order")

    report = check_attention(broken, only="dense-oracle", **SMALL)
    assert report.failures[0].message == "it raised RuntimeError: out of order"
    assert report.failures[0].difference is None


def test_nothing_to_run_is_no_pass():
    report = check_attention(attention, only="lse", options=["scale"], **SMALL)
    assert not report.passed
    assert report.outcomes[0].skipped == "return_lse is not claimed"
    with pytest.raises(AssertionError):
        report.raise_for_failures()


def test_what_is_not_claimed_is_never_asked_for():
    asked = set()

    def limited(query, key, value, pattern, **options):
        asked.update(options)
        assert pattern in claimed
        assert query.dtype == np.float64
        return attention(query, key, value, pattern, **options)

    claimed = [Causal(), Packed([10, 16])]
    report = check_attention(limited, patterns=claimed, options=["scale"], dtypes=[np.float64], size=26, skip="errors")
    assert report.passed, str(report)
    assert asked == {"scale"}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"fn": 3}, TypeError, "fn must be a function"),
        ({"backward": 3}, TypeError, "backward must be a function"),
        ({"size": 5}, ValueError, "size must be"),
        ({"size": 10**6}, ValueError, "size must be at most 4096, since the oracle is dense"),
        ({"seed": -1}, ValueError, "seed must be"),
        ({"only": "everything"}, ValueError, "only must name checks or groups"),
        ({"skip": ["lse", "mood"]}, ValueError, "mood"),
        ({"patterns": [3]}, TypeError, "patterns must hold subquad patterns alone; got 3"),
        ({"patterns": []}, ValueError, "patterns and dtypes must each hold one"),
        ({"dtypes": ["int8"]}, ValueError, "dtypes must be among"),
        ({"options": ["softcap"]}, ValueError, "options must be among"),
        ({"case": 1}, ValueError, "case needs one check"),
        ({"case": 10**6, "only": "lse"}, ValueError, "case must be below"),
    ],
)
def test_bad_arguments(change, error, match):
    arguments = {"fn": attention, **SMALL, **change}
    with pytest.raises(error, match=match):
        check_attention(arguments.pop("fn"), **arguments)


def test_numpy_and_numba_are_enough():
    code = """
import sys
for name in ("scipy", "onnx", "ml_dtypes", "hypothesis", "pytest"): sys.modules[name] = None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else real(name, *rest)
from subquad import attention
from subquad.testing import check_attention
report = check_attention(attention, only="values", size=24)
assert report.passed, str(report)
print([(outcome.name, outcome.skipped) for outcome in report.outcomes if outcome.skipped])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[('onnx', 'needs onnx')]"


def test_frames():
    for contiguous in (False, True):
        for x in (np.ones((3, 4), np.float32), np.arange(6).reshape(2, 3), np.zeros((0, 3)), np.ones(2, np.float16)):
            frame = Frame(x, contiguous=contiguous)
            np.testing.assert_array_equal(frame.view, x)
            assert frame.view.flags.c_contiguous or not contiguous
            frame.view[...] = 7
            frame.assert_untouched()
    frame = Frame(np.ones(5, np.int64), margin=2)
    around = frame.view.base.view(np.int64)
    assert sorted(set(around.tolist())) == [np.iinfo(np.int64).min, 1, np.iinfo(np.int64).max]
    around[0] = 0
    with pytest.raises(AssertionError, match="1 elements outside"):
        frame.assert_untouched()


def test_the_names_are_there_without_an_import():
    assert subquad.testing.check_attention is check_attention
