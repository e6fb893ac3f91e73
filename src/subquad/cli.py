"""The command `subquad`: what holds for every subcommand, which is how it ends.

Exit codes: 0 fine; 1 a result was wrong; 2 bad usage or input, one line on standard error; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

BAD_INPUT = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv
        Arguments after the command's name, default those of this process.
    """
    try:
        from subquad import commands
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        return _fail(f'{package} is not installed; the command needs: pip install "subquad[cli]"')
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show ² still gets its table
    try:
        code = commands.run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()  # a full disk or a reader gone must show here, not when the interpreter ends
        return code
    except KeyboardInterrupt:
        print("subquad: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away, as `head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (commands.UsageError, ValueError, OSError, MemoryError, RuntimeError, ModuleNotFoundError) as error:
        return _fail(_one_line(error))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(message.split()) or type(error).__name__


def _fail(message: str) -> int:
    print(f"subquad: {message}", file=sys.stderr)
    return BAD_INPUT
