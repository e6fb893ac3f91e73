"""``subquad cache``: the machine code that is kept on disk, and how to be rid of it."""

import json as json_module
from typing import Annotated, Any

import typer

from subquad.commands.options import check_outputs, print_parts, table, write


def command(
    show: Annotated[bool, typer.Option("--show", help="List it (what happens by default).")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Delete it: the library's own files, and only those.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the table where none is.")
    ] = None,
) -> None:
    """Compiled kernels that are kept between processes: where, how many, which are of this build."""
    if show and clear:
        raise ValueError("--show and --clear: ask for one of them")
    check_outputs(json, None)
    found = cleared() if clear else state()
    if write(json, lambda: json_module.dumps(found, indent=2), None, lambda kind: b""):
        _print(found, clear)


def state() -> dict[str, Any]:
    """The cache directory (None where nothing is kept, and why), and what it holds; `stale` entries are of no use."""
    from subquad.kernels import build, cache

    try:
        with cache.opened(create=False) as folder:
            found, entries, problem = folder.path, folder.entries(), None
    except FileNotFoundError:
        found, entries, problem = cache.directory(), [], None  # made by the first call
    except OSError as error:
        return {"directory": None, "problem": str(error), "entries": [], "bytes": 0, "stale": 0}
    key = build.source_digest()
    rows = [{"name": entry.name, "bytes": entry.n_bytes, "current": _is_current(entry, key)} for entry in entries]
    return {
        "directory": found,
        "problem": problem,
        "entries": rows,
        "bytes": sum(entry.n_bytes for entry in entries),
        "stale": sum(not row["current"] for row in rows),
    }


def cleared() -> dict[str, Any]:
    """What was deleted."""
    from subquad.kernels import cache

    try:
        gone = cache.clear()
    except FileNotFoundError:
        gone = []
    rows = [{"name": entry.name, "bytes": entry.n_bytes} for entry in gone]
    return {"directory": cache.directory(), "deleted": rows, "bytes": sum(entry.n_bytes for entry in gone)}


def _is_current(entry: Any, key: str) -> bool:
    return bool(entry.key == key and entry.name.endswith(".o"))


def _print(found: dict[str, Any], clear: bool) -> None:
    from subquad.checks import size_text

    if clear:
        print(f"{found['directory']}: {len(found['deleted'])} files deleted, {size_text(found['bytes'])}")
        return
    if found["directory"] is None:
        print(f"no kernels are kept: {found['problem']}")
        return
    entries = found["entries"]
    made = table("kernel", "element type", "size", "", right=("size",))
    for row in entries:
        kernel, _, rest = row["name"].removeprefix("subquad_").rpartition("_")
        state = "of this build" if row["current"] else "stale"
        made.add_row(kernel, rest.partition("-")[0], size_text(row["bytes"]), state)
    total = f"{len(entries)} kernels, {size_text(found['bytes'])}, {found['stale']} stale"
    print_parts(found["directory"], *([made] if entries else []), total)
