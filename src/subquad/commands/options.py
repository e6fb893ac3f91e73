"""What the subcommands share: reading options, refusing bad outputs early, a progress bar, writing results."""

import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

PICTURES = (".png", ".svg", ".pdf")
#: As a file's name: standard output.
STDOUT = "-"
#: Wider than any table: asks a table for the width it would like.
UNBOUNDED = 10_000

Progress = Callable[[int, int, str], None]


def default_json(args: list[str]) -> list[str]:
    """Give a bare ``--json`` its value, standard output: typer knows no options with an optional value."""
    completed = []
    for arg, following in itertools.zip_longest(args, args[1:]):
        completed.append(arg)
        bare = following is None or (following.startswith("-") and following != STDOUT)
        if arg == "--json" and bare:
            completed.append(STDOUT)
    return completed


def whole(option: str, text: str, least: int = 1) -> int:
    """The number that an option was given; typer's own message would leave out what it was given."""
    if not re.fullmatch(r"[0-9]{1,30}", text) or int(text) < least:
        raise ValueError(f"{option}: must be a whole number of at least {least}; got {text!r}")
    return int(text)


def number(option: str, text: str) -> float:
    """A decimal number above 0."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text) or float(text) == 0:
        raise ValueError(f"{option}: must be a number above 0; got {text!r}")
    return float(text)


def split(texts: list[str], separator: str) -> list[str]:
    return [part.strip() for text in texts for part in text.split(separator)]


def check_outputs(json: str | None, plot: Path | None) -> None:
    """Refuse now what would fail after the long work."""
    from subquad.files import check_writable

    if json and json != STDOUT:
        check_writable(Path(json))
    if plot:
        if plot.suffix.lower() not in PICTURES:
            raise ValueError(f"--plot: {plot} must end in {', '.join(PICTURES)}")
        if importlib.util.find_spec("matplotlib") is None:
            raise ModuleNotFoundError('--plot: matplotlib is not installed; it needs: pip install "subquad[plot]"')
        check_writable(plot)


def write(json: str | None, as_json: Callable[[], str], plot: Path | None, draw: Callable[[str], bytes]) -> bool:
    """Write picture and JSON where they were asked for; False where the JSON took the place of the table."""
    from subquad.files import write_whole

    if plot:
        write_whole(plot, draw(plot.suffix[1:].lower()))
    if json:
        text = as_json() + "\n"
        if json == STDOUT:
            sys.stdout.write(text)
            return False
        write_whole(Path(json), text.encode())
    return True


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house style; columns named in `right` hold numbers."""
    made = Table(box=box.SIMPLE, pad_edge=False)
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left")
    return made


def print_parts(*parts: str | Table, wrap: bool = False) -> None:
    """Print texts and tables; a terminal that is too narrow wraps the lines of a table, or with `wrap` its cells."""
    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    if not wrap:
        unbounded = console.options.update(width=UNBOUNDED)
        widths = [console.measure(part, options=unbounded).maximum for part in parts if isinstance(part, Table)]
        console.width = max([console.width, *widths])
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Shows how far the work is, on standard error and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
