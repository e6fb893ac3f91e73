"""Publishes results as HTML, from the results alone.

    cd asv_bench && python publish.py                       # writes .asv/html; see it with: asv preview
    cd asv_bench && python publish.py --html graphs

`asv publish` does the same where git knows every measured commit on the branches of asv.conf.json. Here commits are put
in order by the dates in the results, so any copy of this directory will do: a shallow clone, an archive, a branch whose
commits were rewritten since. And the page needs no network: its scripts, which asv leaves on the servers of others, are
those of `vendor/`.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from asv.commands.publish import Publish
from asv.config import Config
from asv.repo import Repo
from asv.results import iter_results

HERE = Path(__file__).resolve().parent
VENDOR = HERE / "vendor"
PREFIX = "results:"


class Recorded(Repo):
    """What publishing asks of a repository, answered by the results: one branch of all measured commits."""

    dvcs = "recorded"

    def __init__(self, url: str, mirror_path: str) -> None:
        self.dates = {found.commit_hash: found.date for found in iter_results(url.removeprefix(PREFIX))}
        self.oldest_first = sorted(self.dates, key=self.dates.__getitem__)

    @classmethod
    def url_match(cls, url: str) -> bool:
        return url.startswith(PREFIX)

    def get_tags(self) -> dict[str, str]:
        return {}

    def get_date(self, commit: str) -> int:
        return self.dates[commit]

    def get_branch_commits(self, branch: str) -> list[str]:
        return self.oldest_first[::-1]

    def get_revisions(self, commits: set[str]) -> dict[str, int]:
        return {commit: number for number, commit in enumerate(self.oldest_first)}

    # the page of regressions asks which commits lie between two
    def get_hash_from_name(self, name: str) -> str:
        return name

    def get_range_spec(self, commit_a: str, commit_b: str) -> tuple[str, str]:
        return commit_a, commit_b

    def get_new_range_spec(self, latest_result: str, branch: str | None = None) -> tuple[str, str]:
        return latest_result, self.oldest_first[-1]

    def get_hashes_from_range(self, spec: tuple[str, str]) -> list[str]:
        after, last = (self.oldest_first.index(commit) for commit in spec)
        return self.oldest_first[after + 1 : last + 1][::-1]


def publish(html: Path, results: Path = HERE / "results") -> None:
    """Write the page of these results into a directory that is emptied first."""
    config = Config.load(str(HERE / "asv.conf.json"))
    config.repo, config.dvcs, config.branches = f"{PREFIX}{results}", None, ["main"]
    config.results_dir, config.html_dir = str(results), str(html)
    Publish.run(config, pull=False)
    with_local_scripts(html)


def with_local_scripts(html: Path) -> None:
    """Let the page load from beside itself what `vendor/` has, whatever version and host it names."""
    shutil.copytree(VENDOR, html / "vendor")
    have = {bare(path.name): path.name for path in VENDOR.iterdir()}

    def local(tag: re.Match[str]) -> str:
        name = have.get(bare(tag["url"].rpartition("/")[2]))
        return f'{tag["attribute"]}="vendor/{name}"{tag["close"]}' if name else tag[0]

    pattern = r'(?P<attribute>src|href)="(?P<url>https://[^"]+)"[^>]*?(?P<close>/?>)'
    page = html / "index.html"
    page.write_text(re.sub(pattern, local, page.read_text(encoding="utf-8")), encoding="utf-8")


def bare(name: str) -> str:
    """A file's name without version and ``.min``."""
    return re.sub(r"(-\d[\d.]*\d)?(\.min)?(?=\.(js|css)$)", "", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=HERE / ".asv" / "html", help="where to write the page")
    publish(parser.parse_args().html)


if __name__ == "__main__":
    main()
