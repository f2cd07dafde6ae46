"""`python -m vqgpt`, which is also how torchrun starts it."""

import os
import sys

from vqgpt.cli.app import main


def leave_at_once(code: int) -> None:
    """End the process without tearing the interpreter down: threads of gloo that outlive it abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        main()
    except SystemExit as leaving:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            leave_at_once(int(leaving.code or 0))
        raise
