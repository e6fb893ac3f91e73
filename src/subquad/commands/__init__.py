"""The subcommands, one module each, and the group that holds them. Needs the extra `cli`; entered by `subquad.cli`."""

from typing import Annotated, cast

import typer

import subquad
from subquad.commands import advise, cache, compare, doctor, heatmap, orders, scale
from subquad.commands.options import default_json

#: What typer raises for a wrong option, in whichever copy of click this version of it uses.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command("compare")(compare.command)
app.command("scale")(scale.command)
app.command("orders")(orders.command)
app.command("heatmap")(heatmap.command)
app.command("advise")(advise.command)
app.command("doctor")(doctor.command)
app.command("cache")(cache.command)


@app.callback(invoke_without_command=True)
def _group(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Sparse attention on the CPU."""
    if version:
        print(f"subquad {subquad.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())
    else:
        return
    raise typer.Exit


def run(args: list[str]) -> int:
    """Parse the arguments and run the subcommand they name; errors are raised, for `subquad.cli.main` to tell."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("subquad", default_json(args)) as context:
            command.invoke(context)
    except typer.Exit as exit:
        return exit.exit_code
    return 0
