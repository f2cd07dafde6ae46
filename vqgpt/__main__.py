"""The program: the `vqgpt` command, and `python -m vqgpt`, which is how torchrun starts it."""

import os
import sys
from contextlib import suppress

from vqgpt.cli.app import main
from vqgpt.runtime import process


def run(arguments: list[str] | None = None) -> None:
    """Run a command, by default that of the command line.

    One of several processes then leaves at once, and so does one with threads at work that nobody waits for.
    """
    try:
        main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
        if os.environ.get("WORLD_SIZE", "1") != "1" or process.leaves_threads:
            leave_at_once(code)
        raise


def leave_at_once(code: int) -> None:
    """End the process without tearing the interpreter down: a thread of gloo or torch that outlives it aborts it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
