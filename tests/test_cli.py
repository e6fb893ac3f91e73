"""The command: arguments, outputs, exit codes; never a traceback, never half a file."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys

import pytest

import subquad
from subquad import compare
from subquad.cli import main
from subquad.commands.compare import DEFAULT_PATTERNS, parse_size
from subquad.commands.options import default_json
from subquad.complexity.memory import MemoryUse
from subquad.expression import parse_pattern

SMALL = ["--pattern", "Banded(9)", "--n", "64,128", "--d", "16", "--threads", "1", "--quick"]


@pytest.fixture
def in_process(monkeypatch):
    """No child processes and no repeats."""
    monkeypatch.setattr(compare, "call_in_child", lambda function, *args, env: function(*args))
    monkeypatch.setattr(compare, "dense_memory", lambda n, *_: MemoryUse(4 * n * n, exact=True))
    monkeypatch.setattr(compare, "sparse_memory", lambda pattern, n, *_: MemoryUse(100 * n, exact=True))
    monkeypatch.setattr(compare, "median_seconds", lambda call, _: (call(), 1e-3)[1])


@pytest.fixture
def no_work(monkeypatch):
    """Fails if anything is measured."""
    monkeypatch.setattr(compare, "compare", lambda *args, **kwargs: pytest.fail("the long work began"))


def run(*args):
    """The command in a process of its own."""
    code = "import sys; from subquad.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *args],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


# --- what it prints ---------------------------------------------------------------------------------------------------


def test_the_whole_command_on_a_text_of_ones_own(tmp_path):
    text, report, plot = tmp_path / "mine.txt", tmp_path / "report.json", tmp_path / "plot.png"
    text.write_bytes(b"It was the best of times, it was the worst of times. \xff")
    finished = run("compare", "--text", str(text), *SMALL, "--json", str(report), "--plot", str(plot))
    assert finished.returncode == 0
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert lines[0].startswith("mine.txt: float32, 1 head, d = 16, 1 thread, seed 0")
    assert "repeated to reach n = 128" in lines[-2]
    assert lines[-1].startswith("At n = 128 Banded(9) attends 14 % of the pairs in ")
    content = json.loads(report.read_text())
    assert lines[-1] == content["summary"]
    assert [row["pairs"] for row in content["rows"]] == [64**2, 64 * 19 - 90, 128**2, 128 * 19 - 90]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([text, report, plot])


def test_json_alone_leaves_nothing_else_on_standard_output(in_process, capsys):
    assert main(["compare", *SMALL, "--json"]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert {row["pattern"] for row in json.loads(output.out)["rows"]} == {"dense NumPy", "Banded(9)"}


def test_several_patterns_and_sizes(in_process, capsys):
    args = ["--pattern", "Banded(3); Causal()", "--patterns", "Strided(5)", "--n", "64", "--n", "32,16", "--json", "-"]
    assert main(["compare", "--quick", *args]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["n"] for row in rows[::4]] == [16, 32, 64]
    assert [row["pattern"] for row in rows[1:4]] == ["Banded(3)", "Causal()", "Strided(5)"]


def test_the_defaults_can_be_parsed(in_process, capsys):
    assert main(["compare", "--quick", "--n", "300", "--json"]) == 0
    assert [row["pattern"] for row in json.loads(capsys.readouterr().out)["rows"][1:]] == DEFAULT_PATTERNS
    assert all(parse_pattern(text).nnz(1024, 1024) for text in DEFAULT_PATTERNS)


def test_the_seed_decides_and_the_budget_is_kept(in_process, capsys):
    differences = []
    for seed in ("1", "1", "2"):
        assert main(["compare", *SMALL, "--json", "--seed", seed, "--memory-budget", "65.6kB"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert not any(row["predicted"] for row in rows)
        differences.append(rows[1]["mass"])
    assert differences[0] == differences[1] != differences[2]


def test_a_terminal_without_unicode_gets_its_table(in_process, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["compare", *SMALL]) == 0
    assert b"of n?" in written.getvalue()


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"subquad {subquad.__version__}\n"
    assert main([]) == 0
    assert "compare" in capsys.readouterr().out
    assert main(["compare", "--help"]) == 0
    assert "--memory-budget" in capsys.readouterr().out


# --- how it ends ------------------------------------------------------------------------------------------------------


def assert_refused(capsys, args, *words):
    assert main(args) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("subquad: ")
    assert output.err.count("\n") == 1
    for word in words:
        assert word in output.err


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--pattern", "Bandit(9)"], "did you mean Banded?"),
        (["--pattern", "Banded(-9)"], "window"),
        (["--pattern", ""], "not an expression"),
        (["--n", "0"], "at least 1"),
        (["--n", "-5"], "at least 1"),
        (["--n", "many"], "'many'"),
        (["--n", "1024,,"], "''"),
        (["--n", "1.5"], "'1.5'"),
        (["--n", "9" * 30], "give a smaller n"),
        (["--heads", "0"], "--heads: must be a whole number of at least 1; got '0'"),
        (["--d", "x"], "--d: "),
        (["--threads", "0"], "--threads: "),
        (["--threads", "two"], "'two'"),
        (["--seed", "-1"], "--seed: "),
        (["--memory-budget", "much"], "500MB"),
        (["--memory-budget", "1kB"], "memory_budget"),
        (["--text", "no-such-file.txt"], "no-such-file.txt: No such file or directory"),
        (["--text", "."], "Is a directory"),
        (["--json", "no-such-folder/report.json"], "no-such-folder/report.json: cannot be written"),
        (["--json", "."], "is not a regular file"),
        (["--plot", "no-such-folder/plot.png"], "no-such-folder/plot.png: cannot be written"),
        (["--plot", "plot.doc"], ".png"),
        (["--no-such-option"], "--no-such-option"),
        (["surplus"], "surplus"),
        (["--n"], "--n"),
    ],
)
def test_bad_input_is_one_line_before_the_work(capsys, monkeypatch, tmp_path, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "_measure_dense", lambda *args: pytest.fail("the long work began"))
    assert_refused(capsys, ["compare", *args], word)
    assert not list(tmp_path.iterdir())


def test_an_empty_text_is_refused(capsys, no_work, tmp_path):
    (tmp_path / "empty.txt").touch()
    assert_refused(capsys, ["compare", "--text", str(tmp_path / "empty.txt")], "empty.txt: the text file is empty")


def test_an_unknown_subcommand(capsys):
    assert_refused(capsys, ["contrast"], "contrast")


def test_a_wrong_result_ends_with_1_and_is_still_written(in_process, monkeypatch, capsys, tmp_path):
    def broken(query, key, value, pattern, *, out, num_threads):
        out[...] = 0

    monkeypatch.setattr(subquad, "attention", broken)
    report = tmp_path / "report.json"
    assert main(["compare", *SMALL, "--json", str(report)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("WRONG: Banded(9) at n = 64")
    assert json.loads(report.read_text())["rows"][1]["correct"] is False


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "compare", interrupted)
    assert main(["compare", *SMALL]) == 130
    assert capsys.readouterr().err == "subquad: interrupted\n"


def test_a_failing_child_is_one_line(in_process, monkeypatch, capsys):
    def failing(*args, **kwargs):
        raise RuntimeError("the process that was to run f ended with status -9:\nit wrote nothing")

    monkeypatch.setattr(compare, "call_in_child", failing)
    assert_refused(capsys, ["compare", *SMALL], "status -9: it wrote nothing")


def test_a_failed_write_leaves_the_old_file(in_process, monkeypatch, capsys, tmp_path):
    report = tmp_path / "report.json"
    report.write_text("old")

    def no_space(*args):
        raise OSError(28, "No space left on device", str(report))

    monkeypatch.setattr(os, "replace", no_space)
    assert_refused(capsys, ["compare", *SMALL, "--json", str(report)], "report.json: No space left on device")
    assert report.read_text() == "old"
    assert list(tmp_path.iterdir()) == [report]


def test_a_reader_that_goes_away_is_no_error():
    read_end, write_end = os.pipe()
    os.close(read_end)
    code = "import sys; from subquad.cli import main; sys.exit(main(['--version']))"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=env, check=False)
    os.close(write_end)
    assert finished.returncode == 0
    assert finished.stderr == b""


# --- optional parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_cli(missing):
    code = f"import sys; sys.modules['{missing}'] = None; from subquad.cli import main; sys.exit(main(['--version']))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == f'subquad: {missing} is not installed; the command needs: pip install "subquad[cli]"\n'


def test_without_the_extra_plot(monkeypatch, capsys, no_work, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_refused(capsys, ["compare", "--plot", str(tmp_path / "a.png")], 'pip install "subquad[plot]"')


def test_importing_the_command_imports_neither_numba_nor_matplotlib():
    code = "import sys, subquad.cli, subquad.commands; print([m for m in ('numba', 'matplotlib') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout == "[]\n"


# --- small parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("500MB", 500 * 10**6),
        ("1.5 GB", 15 * 10**8),
        ("2g", 2 * 10**9),
        ("1GiB", 2**30),
        (".5 KiB", 512),
        ("1TB", 10**12),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1 PB", "-1MB", "1e9", "1iB", "1.2.3MB"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("args", "completed"),
    [
        (["--json"], ["--json", "-"]),
        (["--json", "--quick"], ["--json", "-", "--quick"]),
        (["--json", "-"], ["--json", "-"]),
        (["--json", "a.json", "--quick"], ["--json", "a.json", "--quick"]),
        (["--json=a.json"], ["--json=a.json"]),
        ([], []),
    ],
)
def test_a_bare_json_means_standard_output(args, completed):
    assert default_json(args) == completed


def test_a_progress_bar_shows_on_a_terminal_alone(in_process, monkeypatch, capsys):
    assert main(["compare", *SMALL]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["compare", *SMALL]) == 0
    assert "Banded(9), n = 128" in capsys.readouterr().err
