"""``subquad doctor``: whether this installation computes rightly on this machine, and what to do if not."""

import dataclasses
import json as json_module
from typing import Annotated, Any

import typer
from rich.console import Console

from subquad.commands.options import check_outputs, print_parts, table, write

#: Exit code where something is wrong.
WRONG = 1


def command(
    json: Annotated[
        str | None, typer.Option(metavar="[FILE]", help="Write JSON to FILE, or instead of the table where none is.")
    ] = None,
) -> None:
    """Processor, versions, threads and cache, and a test of the kernels; exit code 1 where something is wrong."""
    from subquad.doctor import examine

    check_outputs(json, None)
    with Console(stderr=True).status("looking") as status:
        report = examine(status.update)
    found = dataclasses.asdict(report)
    if write(json, lambda: json_module.dumps(found, indent=2), None, lambda kind: b""):
        _print(found)
    if report.problems:
        raise typer.Exit(WRONG)


def _print(found: dict[str, Any]) -> None:
    from subquad.doctor import platform_text

    made = table("", "")
    made.show_header = False
    cpu, threads, cache, checks = found["processor"], found["threads"], found["cache"], found["checks"]
    made.add_row("system", platform_text())
    made.add_row("processor", f"{cpu.get('name', 'unknown')}, {cpu['architecture']}, {cpu.get('cores')} cores")
    width = cpu.get("vector_bytes", 0)
    made.add_row("vectors", f"{width} bytes ({width // 4} float32): {' '.join(cpu.get('features', []))}")
    made.add_row("threads", f"{threads['used']}, SUBQUAD_NUM_THREADS is {threads['SUBQUAD_NUM_THREADS'] or 'not set'}")
    made.add_row("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    kept = cache.get("problem") or f"{cache['directory']}: {cache['kernels']} kernels, {cache['stale']} stale"
    made.add_row("cache", kept)
    right = sum(check["correct"] for check in checks)
    made.add_row("kernels", f"had in {found['loading_seconds']} s; what is not in the cache is compiled, once")
    agreed = f"{right} of {len(checks)} results agree with the float64 reference"
    made.add_row("self-test", f"{agreed}, in {found['testing_seconds']} s")
    last = f"nothing is wrong ({found['seconds']} s)" if not found["problems"] else "something is wrong:"
    print_parts(made, last, *(f"- {problem['what']}\n  {problem['way_out']}" for problem in found["problems"]))
