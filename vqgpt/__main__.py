"""`python -m vqgpt`, which is also how torchrun starts it."""

import os
import sys

from vqgpt.cli.app import main


def run(arguments: list[str] | None = None) -> None:
    """Run a command, by default that of the command line; one of several processes then leaves at once."""
    try:
        main(arguments)
    except SystemExit as leaving:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            leave_at_once(int(leaving.code or 0))
        raise


def leave_at_once(code: int) -> None:
    """End the process without tearing the interpreter down: a thread of gloo that outlives it aborts the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
