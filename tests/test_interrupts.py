"""Ctrl-C during a long call, in a process of its own: soon an exception, `out` is flagged, and the pool goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

CHILD = """
import json, os, signal, sys, threading, time
import numpy as np
from subquad import Dense, Random, Causal, Banded, attention, attention_backward
kind, threads = sys.argv[1], int(sys.argv[2])
x = np.ones((16, 64), np.float32)
small = attention(x, x, x, Banded(3), num_threads=threads)
n, heads = (60_000, 8) if kind != "gathered" else (100_000, 32)
big = np.ones((1, n, 64), np.float32)
q, k, v = (np.broadcast_to(big, (heads, n, 64)) for _ in range(3))
out = np.zeros((heads, n, 64), np.float32)
pattern = {"gathered": Random(100)}.get(kind, Causal())
lse = np.zeros((heads, n), np.float32)
pattern.plan(n, n)
def call():
    if kind == "backward":
        attention_backward(out, q, k, v, out, lse, pattern, num_threads=threads)
    else:
        attention(q, k, v, pattern, out=out, num_threads=threads)
attention_backward(x, x, x, x, x, x[:, 0].copy(), Banded(3))
attention(x, x, x, Random(3))
sent = []
def interrupt():
    time.sleep(0.7)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    call()
    found = {"ended": "returned"}
except KeyboardInterrupt as error:
    after = time.monotonic() - sent[0]
    found = {"ended": "KeyboardInterrupt", "after": after, "notes": getattr(error, "__notes__", [])}
again = attention(x, x, x, Banded(3), num_threads=threads)
found["usable"] = bool((again == small).all())
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to oneself is POSIX")
@pytest.mark.parametrize("kind", ["tiled", "gathered", "backward"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_call_is_interrupted_at_once(kind, threads):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHILD, kind, str(threads)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ended"] == "KeyboardInterrupt"
    assert found["after"] < 0.5, found  # tasks take milliseconds: this is the contract, not a measure of speed
    assert found["usable"]
    if kind != "backward":
        assert "`out` was being written" in found["notes"][0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
