"""The training example learns, as a function and as a command; so does the one in the README."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from subquad.text import read_text

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "docs" / "examples" / "train_bytes.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_bytes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_bytes"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_bytes"]


def small(example, **changes):
    sizes = {"n": 256, "window": 32, "tokens": 4, "width": 64, "layers": 2, "batch": 4, "steps": 60, "rate": 1e-2}
    return example.Settings(**sizes | changes)


def test_loss_falls(example):
    """Below what counts of single bytes reach (4.8 bits), on text that was not trained on: it has seen context."""
    steps = []
    run = example.train(small(example), read_text(limit=60_000), lambda step, run: steps.append(step))
    assert run.losses[0] > 7
    assert sum(run.losses[-10:]) / 10 < 4.5
    assert run.held_out[60] < 4.6
    assert steps == [1, 20, 40, 60]


def test_command_refuses():
    done = subprocess.run([sys.executable, str(SCRIPT), "--n", "100000"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("the text has ")
    assert "must be longer than n = 100000" in done.stderr


def test_same_seed_same_losses(example):
    text = read_text(limit=20_000)
    first, again = (example.train(small(example, steps=3), text).losses for _ in range(2))
    assert first == pytest.approx(again, rel=1e-6)


def test_later_bytes_do_not_matter(example):
    torch.manual_seed(0)
    model = example.ByteModel(small(example))
    codes = torch.randint(256, (1, 100))
    changed = codes.clone()
    changed[:, 60:] = 7
    with torch.no_grad():
        assert torch.equal(model(codes)[:, :60], model(changed)[:, :60])


def test_tables(example):
    text = b"ab" * 50_000
    assert example.table_bits(text, 20, 0) == pytest.approx(1, abs=0.01)
    assert example.table_bits(text, 20, 1) < 0.01
    assert example.table_bits(bytes(range(256)) * 40, 256, 0) == pytest.approx(8, abs=0.01)


def test_short_text_is_refused(example):
    with pytest.raises(ValueError, match="the text has 100 bytes; a tenth of it must be longer than n = 10"):
        example.split(b"a" * 100, 10)


def test_command(tmp_path):
    figures, picture = tmp_path / "run.json", tmp_path / "run.png"
    arguments = ["--n", "128", "--window", "16", "--width", "32", "--layers", "1", "--steps", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--json", str(figures), "--plot", str(picture)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pairs of 16,384 at n = 128" in done.stdout
    assert "counts of pairs of bytes: " in done.stdout
    assert "the weights of dense attention alone: 0 MB" in done.stdout
    written = json.loads(figures.read_text())
    assert len(written["losses"]) == 3
    assert written["losses"][0] == pytest.approx(math.log2(256), abs=1)
    assert list(written["held_out"]) == ["1", "3"]
    assert picture.stat().st_size > 10_000


def test_the_example_in_the_readme_runs():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"## Training\n(.*?)\n## ", readme, re.DOTALL)[1]
    assert len([line for line in section.splitlines() if line.strip()]) <= 10
    names = {}
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].replace("8192", "512")
    exec(compile(code, "README.md", "exec"), names)
    assert names["layer"].in_proj_weight.grad.abs().sum() > 0
