"""The committed results of asv, published as HTML and opened in Chromium: what a graph shows is read from the page."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import importlib
import json
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import numpy as np
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
def publish():
    sys.path.insert(0, str(ASV_BENCH))
    try:
        return importlib.import_module("publish")
    finally:
        sys.path.remove(str(ASV_BENCH))


@pytest.fixture(scope="module")
def page(publish, tmp_path_factory):
    """The published directory."""
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
@pytest.mark.parametrize(("pattern", "order"), [("banded", 1), ("dense", 2)])
def test_a_graph_shows_the_exponent_of_every_commit(page, pattern, order):
    where = f"#scaling.Exponent.track_exponent_n?p-pattern='{pattern}'"
    seen = read(page, GRAPH, urllib.parse.quote(where))
    assert seen["drawn"]
    assert seen["unit"] == "exponent"
    (series,) = (one for one in seen["series"] if pattern in one["label"])
    expected = stored("scaling.Exponent.track_exponent_n", pattern)
    assert len(series["values"]) == len(expected) >= 5
    np.testing.assert_allclose(series["values"], expected)
    assert all(abs(value - order) < 0.3 for value in series["values"])


def test_results_are_anonymous_and_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 300_000
    assert len({json.loads(path.read_text(encoding="utf-8")).get("commit_hash") for path in files} - {None}) >= 5
    for path in files:
        assert not re.search(r"/(home|root|tmp|work|Users)/", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("jquery-3.3.1.min.js", "jquery.js"),
        ("jquery.flot.min.js", "jquery.flot.js"),
        ("md5.min.js", "md5.js"),
        ("jquery.flot.orderBars.js", "jquery.flot.orderBars.js"),
        ("bootstrap.min.css", "bootstrap.css"),
    ],
)
def test_names_of_scripts_are_compared_without_version(publish, name, bare):
    assert publish.bare(name) == bare


def test_the_page_needs_no_network(page):
    text = (page / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link)[^>]*?(?:src|href)="([^"]+)"', text)
    assert len(loaded) > 15
    assert not [url for url in loaded if ":" in url]
    assert all((page / url).exists() for url in loaded)


def test_commits_between_two(publish, tmp_path):
    """The page of regressions asks for them."""
    recorded = publish.Recorded(f"{publish.PREFIX}{RESULTS}", "")
    first, *between, last = recorded.oldest_first
    assert recorded.get_hashes_from_range(recorded.get_range_spec(first, last)) == [last, *between[::-1]]
    assert recorded.get_branch_commits("main")[0] == last
    assert recorded.get_revisions(set())[first] == 0
