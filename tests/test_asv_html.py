"""The committed results of asv, published as HTML and opened in Chromium: what its graphs show is read from the page."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ASV_BENCH = Path(__file__).resolve().parents[1] / "asv_bench"
RESULTS = ASV_BENCH / "results"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("asv", reason='asv is not installed: pip install "subquad[bench]"')
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

# Opens asv's page beside itself and writes down what it shows, once it shows it.
READER = """<!doctype html><pre id="seen"></pre><iframe id="page" width="1200" height="900"></iframe><script>
function wait(found, done) {
  const seen = found();
  if (seen) { document.getElementById("seen").textContent = JSON.stringify(seen); }
  else { setTimeout(() => wait(found, done), 50); }
}
const page = document.getElementById("page");
page.src = "index.html" + decodeURIComponent(location.search.slice(1));
wait(() => {
  try { return (%s)(page.contentWindow, page.contentDocument); } catch (error) { return null; }
});
</script>"""
GRAPH = """(window, document) => {
  const plot = window.$("#main-graph").data("plot");
  return plot && plot.getData().length && {
    series: plot.getData().map((one) => ({label: one.label, values: one.data.map((point) => point[1])})),
    unit: plot.getOptions().yaxes[0].axisLabel,
    drawn: document.querySelector("#main-graph canvas").width > 0,
  };
}"""
LISTED = """(window, document) => {
  const names = [...document.querySelectorAll("#summarygrid-display a.benchmark-container")].map((a) => a.href);
  return names.length && names;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The published directory."""
    sys.path.insert(0, str(ASV_BENCH))
    try:
        import publish
    finally:
        sys.path.remove(str(ASV_BENCH))
    directory = tmp_path_factory.mktemp("asv") / "html"
    publish.publish(directory)
    return directory


@contextlib.contextmanager
def served(directory):
    handler = functools.partial(Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def read(directory, script, where="", profile="profile"):
    """What `script` finds in the page, after Chromium has run it."""
    (directory / "reader.html").write_text(READER % script, encoding="utf-8")
    with served(directory) as address:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000"]
        command += [f"--user-data-dir={directory / profile}", "--dump-dom", f"{address}/reader.html?{where}"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    seen = re.search(r'<pre id="seen">(.+?)</pre>', found.stdout, re.DOTALL)
    assert seen, f"the page shows nothing: {found.stdout[-2000:]} {found.stderr[-2000:]}"
    return json.loads(html.unescape(seen[1]))


def stored(benchmark, parameter):
    """What asv wrote down for a parameter, oldest commit first."""
    files = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*/*-*.json")]
    values = []
    for found in sorted(files, key=lambda found: found["date"]):
        row, parameters = found["results"][benchmark][:2]
        values.append(row[parameters[0].index(repr(parameter))])
    return values


@needs_browser
def test_the_page_lists_what_was_run(page):
    listed = " ".join(read(page, LISTED))
    for name in ("track_exponent_n", "track_exponent_w", "track_memory_exponent", "track_share_of_peak"):
        assert name in listed
    assert "track_vs_dense" in listed
    assert "time_banded" in listed


@needs_browser
@pytest.mark.parametrize("pattern", ["banded", "dense"])
def test_a_graph_shows_the_exponent_of_every_commit(page, pattern):
    seen = read(page, GRAPH, f"%23scaling.Exponent.track_exponent_n%3Fp-pattern%3D'{pattern}'")
    print(seen)
    assert 0
