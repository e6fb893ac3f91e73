"""The comparison as text."""

from typing import Any

from .throughput import TOLERANCE

CORE_SHARE = 0.97  # below it, the machine was not quiet enough

COLUMNS = ("", "ms", "GF/s", "of peak", "/ subquad", "differs", "rounds")
WIDTHS = (16, 10, 8, 8, 10, 9, 7)


def render(comparison: dict[str, Any]) -> str:
    threads = comparison["settings"]["threads"]
    blocks = [header(comparison)]
    blocks += [case_table(result, threads) for result in comparison["throughput"]]
    blocks += [section(name, content) for name, content in comparison["sections"].items()]
    blocks.append(targets_table(comparison))
    return "\n\n".join(blocks)


def header(comparison: dict[str, Any]) -> str:
    machine, threads = comparison["machine"], comparison["settings"]["threads"]
    packages = ", ".join(f"{name} {release}" for name, release in machine["packages"].items() if release)
    lines = [
        f"{machine['processor']}, {machine['system']}, Python {machine['python']}, {packages}",
        f"{threads} pinned thread(s), float32; medians of interleaved rounds",
        "useful GF/s = k d x pairs / time, k = 4 forward, 10 backward, 14 both",
        "'/ subquad': time over subquad's; 'differs': largest difference from subquad's output (gradients)",
    ]
    for name, contender in comparison["contenders"].items():
        state = f"absent ({contender['absent']})" if contender["absent"] else "present"
        lines.append(f"  {name:<16} {state if contender['chosen'] else 'not chosen'}: {contender['about']}")
    return "\n".join(lines)


def case_table(result: dict[str, Any], threads: int) -> str:
    lines = [
        f"{result['case']}: {result['work']} of {result['pattern']}, n = {result['n']}, {result['heads']} head(s),"
        f" d = {result['d']}, {result['pairs']:,} pairs"
    ]
    if result["peak_gflops"] is not None:  # else no contender could do it
        lines.append(f"FMA peak {result['peak_gflops']:.1f} GF/s" + (core_share(result) if threads == 1 else ""))
        lines.append(row(COLUMNS))
    return "\n".join(lines + [entry_row(entry) for entry in result["entries"]])


def core_share(result: dict[str, Any]) -> str:
    share = result["core_share"]
    warning = "" if share > CORE_SHARE else " (!): others were using it, the figures are too low"
    return f"; the core was ours {share:.0%} of the time{warning}"


def entry_row(entry: dict[str, Any]) -> str:
    if entry["status"] != "ok":
        return f"{entry['contender']:<{WIDTHS[0]}} {entry['status']}: {entry['note']}"
    return row(
        (
            entry["contender"],
            f"{entry['seconds'] * 1e3:.2f}",
            f"{entry['gflops']:.2f}",
            f"{entry['share_of_peak']:.1%}",
            "" if entry["times_subquad"] is None else f"{entry['times_subquad']:.2f} x",
            difference(entry),
            str(entry["rounds"]),
        )
    )


def difference(entry: dict[str, Any]) -> str:
    if not entry["same_work"]:
        return "all pairs"
    value = entry["max_difference"]
    if value is None:
        return ""
    return f"{value:.0e}" + ("" if value <= TOLERANCE else " (!)")


def row(cells: tuple[str, ...]) -> str:
    first, *others = (f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
    return " ".join([f"{first.strip():<{WIDTHS[0]}}", *others]).rstrip()


def section(name: str, content: dict[str, Any]) -> str:
    if content["status"] != "ok":
        return f"{name}: {content['status']}: {content['note']}"
    return "\n".join([f"{name}:"] + [f"  {what:<20} {value:.4g}" for what, value in content["figures"].items()])


def targets_table(comparison: dict[str, Any]) -> str:
    lines = ["Targets"]
    if comparison["settings"]["quick"]:
        lines[0] += " (a quick run is not judged: they are for the full sizes)"
    if any((result["core_share"] or 1) <= CORE_SHARE for result in comparison["throughput"]):
        lines[0] += " (!): the core was shared with others, repeat on a quiet machine"
    for target in comparison["targets"]:
        value = "-" if target["value"] is None else f"{target['value']:.3g}"
        what = f"{target['case']}: {target['what']}"
        lines.append(f"  {what:<42} {target['bound']:>8} {value:>8}  {target['verdict']}")
    return "\n".join(lines)
