"""The commands `subquad doctor` and `subquad cache`: what they find, and that they find what is wrong."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

import subquad
from subquad import doctor
from subquad.cli import main
from subquad.kernels import build, cache


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def report(capsys, *args, code=0):
    assert main([*args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_nothing_is_wrong_here(capsys):
    found = report(capsys, "doctor")
    assert found["problems"] == []
    assert len(found["checks"]) == 24
    assert {check["dtype"] for check in found["checks"]} == {"float32", "float64"}
    assert {check["what"] for check in found["checks"]} == {"the output", "the gradient"}
    assert all(check["difference"] > 0 for check in found["checks"])  # rounding is seen, so something was compared
    assert found["versions"]["subquad"] == subquad.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["processor"]["vector_bytes"] in (16, 32, 64)
    assert 0 < found["testing_seconds"] < found["seconds"]


def test_the_table(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for text in ("processor", "vectors", "24 of 24 results agree", "nothing is wrong"):
        assert text in shown


@pytest.mark.parametrize("which", ["attention", "attention_backward"])
def test_a_kernel_that_computes_wrongly_is_found(capsys, monkeypatch, which):
    monkeypatch.setattr(doctor, "_patterns", lambda: [subquad.Causal(), subquad.Random(5)])
    plain = getattr(subquad, which)

    def off(*args, **options):
        first, *others = plain(*args, **options)
        bad = first.copy()
        bad[0, 77, 5] += 1e-3 if which == "attention" else 0.05
        return bad, *others

    monkeypatch.setattr(subquad, which, off)
    found = report(capsys, "doctor", code=1)
    assert not any(check["correct"] for check in found["checks"] if check["what"] == "the output") or (
        which == "attention_backward"
    )
    assert "is off by" in found["problems"][0]["what"]
    assert "subquad cache --clear" in found["problems"][0]["way_out"]


def test_a_nan_is_wrong(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_patterns", lambda: [subquad.Causal()])
    plain = subquad.attention
    monkeypatch.setattr(subquad, "attention", lambda *a, **o: (plain(*a, **o)[0] * np.nan, plain(*a, **o)[1]))
    assert main(["doctor"]) == 1
    assert "something is wrong" in capsys.readouterr().out


def test_a_kernel_that_cannot_be_had(monkeypatch, capsys):
    def broken(name, dtype):
        raise RuntimeError("no LLVM")

    monkeypatch.setattr("subquad.kernels.load", broken)
    found = report(capsys, "doctor", code=1)
    assert "tiled for float32 cannot be had: RuntimeError: no LLVM" in found["problems"][0]["what"]


@pytest.mark.parametrize(
    ("name", "value", "what", "way_out"),
    [
        ("SUBQUAD_NUM_THREADS", "many", "got 'many'", "unset SUBQUAD_NUM_THREADS"),
        ("SUBQUAD_CACHE_DIR", "here", "absolute path; got 'here'", "mode 700"),
    ],
)
def test_wrong_settings(capsys, monkeypatch, name, value, what, way_out):
    monkeypatch.setattr(doctor, "_test_kernels", lambda *args: None)
    monkeypatch.setenv(name, value)
    (problem,) = report(capsys, "doctor", code=1)["problems"]
    assert what in problem["what"]
    assert way_out in problem["way_out"]


def test_a_cache_that_is_switched_off_is_no_fault(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_test_kernels", lambda *args: None)
    monkeypatch.setenv("SUBQUAD_CACHE", "0")
    assert report(capsys, "doctor")["cache"] == {
        "directory": None,
        "problem": "the environment variable SUBQUAD_CACHE is 0",
    }


def test_an_old_numba_is_named(monkeypatch):
    found = doctor.Report({"numpy": "2.1.0", "numba": "0.59.1"}, {}, {}, {})
    doctor._look_at_versions(found)
    assert [problem["what"] for problem in found.problems] == ["Numba 0.62 is needed, found 0.59.1"]


def test_a_processor_without_multiply_add_is_named():
    found = doctor.Report({}, {"architecture": "x86_64", "features": ["avx"]}, {}, {})
    doctor._look_at_processor(found)
    assert "FMA3" in found.problems[0]["what"]


# --- subquad cache ----------------------------------------------------------------------------------------------------


def fill(place):
    current, old = f"subquad_tiled_float32-{build.source_digest()}.o", f"subquad_gathered_float64-{'0' * 24}.o"
    for name in (current, old):
        cache.write(name, b"code")
    (place / f"{current}.0123456789abcdef.tmp").write_bytes(b"half")
    (place / "notes.txt").write_text("mine")
    return current, old


def test_what_is_kept(capsys, place):
    current, old = fill(place)
    found = report(capsys, "cache", "--show")
    assert found["directory"] == str(place)
    assert [(row["name"], row["bytes"], row["current"]) for row in found["entries"]] == [
        (old, 36, False),
        (current, 36, True),
        (f"{current}.0123456789abcdef.tmp", 4, False),
    ]
    assert (found["bytes"], found["stale"]) == (76, 2)
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "of this build" in shown
    assert "3 kernels, 76 B, 2 stale" in shown


def test_clearing_deletes_the_librarys_own_files_alone(capsys, place):
    fill(place)
    assert len(report(capsys, "cache", "--clear")["deleted"]) == 3
    assert os.listdir(place) == ["notes.txt"]
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"{place}: 0 files deleted, 0 B\n"


def test_an_empty_and_a_missing_cache(capsys, place):
    assert report(capsys, "cache") == {"directory": str(place), "problem": None, "entries": [], "bytes": 0, "stale": 0}
    assert report(capsys, "cache", "--clear")["deleted"] == []
    assert not place.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="modes are those of POSIX")
def test_nothing_is_deleted_from_a_directory_that_others_share(capsys, place):
    fill(place)
    place.chmod(0o777)
    assert "written to by others" in report(capsys, "cache")["problem"]
    assert main(["cache", "--clear"]) == 2
    assert "written to by others" in capsys.readouterr().err
    assert len(os.listdir(place)) == 4
    assert main(["cache", "--show", "--clear"]) == 2
