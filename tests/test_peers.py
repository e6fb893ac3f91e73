"""The comparison with peers: what it reports when they are present, absent, failing or computing something else."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ASV_BENCH = Path(__file__).resolve().parents[1] / "asv_bench"
PACKAGES = ("torch", "transformers", "local_attention")


@pytest.fixture
def peers(monkeypatch):
    """The modules of asv_bench/peers, by name."""
    monkeypatch.syspath_prepend(ASV_BENCH)
    return lambda name: importlib.import_module(f"peers.{name}")


@pytest.fixture
def without_torch(monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # Python's own way to make an import fail


def tiny(peers, **changes):
    run = peers("run")
    names = [case.name for case in peers("cases").CASES]
    return run.compare(run.Settings(**{"quick": True, "longest": 256, "cases": names, "cores": [0]} | changes))


def test_absent_peers_are_listed_as_absent(peers, without_torch):
    comparison = tiny(peers)
    for name, contender in comparison["contenders"].items():
        assert (contender["absent"] is None) == (name == "subquad")
    for result in comparison["throughput"]:
        subquad, *others = result["entries"]
        assert subquad["status"] == "ok"
        assert len(others) >= 3
        assert {entry["status"] for entry in others} == {"absent"}
        assert all("torch" in entry["note"] for entry in others)
    text = peers("report").render(comparison)
    assert text.count("absent") > len(comparison["throughput"])


def test_comparison_is_plain_json(peers, without_torch):
    comparison = json.loads(json.dumps(tiny(peers, cases=["banded-8", "threads-2"]), allow_nan=False))
    assert set(comparison) == {"schema", "machine", "settings", "contenders", "throughput", "sections", "targets"}
    (result,) = comparison["throughput"]
    entry = result["entries"][0]
    assert result["pairs"] == 256 * 17 - 8 * 9
    assert entry["gflops"] == pytest.approx(4 * 64 * result["pairs"] / entry["seconds"] / 1e9)
    assert 0 < entry["share_of_peak"] < 1
    assert comparison["sections"]["threads-2"]["status"] == "refused"  # it was told of one core
    assert {target["verdict"] for target in comparison["targets"]} == {"not judged"}


def test_only_keeps_subquad_and_the_named(peers, without_torch):
    (result,) = tiny(peers, cases=["banded-8"], only=["sdpa-mask"])["throughput"]
    assert [entry["contender"] for entry in result["entries"]] == ["subquad", "sdpa-mask"]


def run_with(peers, prepare):
    """The smallest case, with one more contender of our own making."""
    throughput, contenders, cases = peers("throughput"), peers("contenders"), peers("cases")
    (case,) = cases.shortened([cases.CASES[1]], 128)
    other = contenders.Contender("other", "for this test", prepare)
    effort = peers("measure").Effort(seconds=0, least=1, most=1)
    return throughput.run_case(case, [contenders.CONTENDERS[0], other], 1, effort, lambda message: None)


def test_a_failing_peer_is_a_result(peers):
    def prepare(case, arrays, threads):
        raise RuntimeError("no compiler\nand a long story")

    result = run_with(peers, prepare)
    assert (result.entries[1].status, result.entries[1].note) == ("failed", "RuntimeError: no compiler")
    assert result.entries[0].seconds > 0


def test_a_case_that_nobody_can_do_is_reported(peers, without_torch, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError("too large")

    monkeypatch.setattr("subquad.attention", fail)
    comparison = tiny(peers, cases=["banded-8"])
    assert comparison["throughput"][0]["entries"][0]["note"] == "MemoryError: too large"
    assert "subquad          failed: MemoryError: too large" in peers("report").render(comparison)


@pytest.mark.parametrize(("wrong_by", "flagged"), [(0.0, False), (0.01, True), (np.nan, True)])
def test_other_results_are_flagged(peers, wrong_by, flagged):
    def prepare(case, arrays, threads):
        prepared = peers("contenders").prepare_subquad(case, arrays, threads)
        return prepared._replace(output=lambda out: out + np.float32(wrong_by))

    entry = run_with(peers, prepare).entries[1]
    assert ("(!)" in peers("report").difference(vars(entry))) == flagged


def test_verdicts(peers):
    targets = peers("targets")
    at_least, at_most = targets.Target("a", "speed", least=2), targets.Target("a", "size", most=64)
    assert at_least.verdict({("a", "speed"): 2.0}) == "met"
    assert at_least.verdict({("a", "speed"): 1.9}) == "not met"
    assert at_most.verdict({("a", "size"): 64.5}) == "not met"
    assert at_most.verdict({}) == "not measured"


def test_every_target_names_a_case(peers):
    names = peers("cases").CASE_NAMES
    assert all(target.case in names for target in peers("targets").TARGETS)


@pytest.mark.parametrize("name", ["banded-32", "strided-128", "bigbird-64", "longformer-256"])
def test_mask_mod_allows_what_the_pattern_allows(peers, name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    cases = peers("cases")
    (case,) = cases.shortened([case for case in cases.CASES if case.name == name], 512)
    index = torch.arange(case.n)
    allowed = peers("masks").mask_mod(case)(0, 0, index[:, None], index[None, :])
    np.testing.assert_array_equal(allowed.numpy(), case.dense_mask())


@pytest.mark.parametrize(
    ("case", "only"),
    [
        ("banded-32", ["sdpa-mask", "hf-longformer", "local-attention"]),
        ("random-64", ["sdpa-mask", "gather"]),
        ("longformer-256", ["sdpa-mask", "hf-longformer"]),
    ],
)
def test_peers_compute_the_same(peers, case, only):
    """FlexAttention is left to the command itself: compiling it takes ten seconds a case."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"{package} is not installed")
    (result,) = tiny(peers, longest=512, cases=[case], only=only)["throughput"]
    for entry in result["entries"][1:]:
        assert entry["status"] == "ok", entry["note"]
        assert entry["max_difference"] < 1e-4


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "peers", *arguments], cwd=ASV_BENCH, capture_output=True, text=True, check=False
    )


def test_command(tmp_path):
    file = tmp_path / "figures.json"
    done = command("--quick", "--only", "subquad", "--cases", "banded-8", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "banded-8: forward of Banded(8), n = 1024" in done.stdout
    assert json.loads(file.read_text())["settings"] == {"threads": 1, "quick": True, "dtype": "float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cases", "banded-9"), "--cases: no 'banded-9'; choose from banded-256,"),
        (("--only", "flexx"), "--only: no 'flexx'; choose from subquad, flex,"),
        (("--threads", "0"), "--threads must be from 1 to"),
        (("--json", "nowhere/figures.json"), "--json: there is no directory"),
    ],
)
def test_command_refuses(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_preparing_a_peer_leaves_autograd_as_it_was(peers):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    contenders, cases = peers("contenders"), peers("cases")
    (case,) = cases.shortened([cases.CASES[1]], 128)
    prepare = next(one.prepare for one in contenders.CONTENDERS if one.name == "sdpa-dense")
    prepared = prepare(case, case.inputs(), 1)
    assert not prepared.call().requires_grad
    assert torch.is_grad_enabled()
