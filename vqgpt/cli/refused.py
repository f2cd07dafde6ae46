"""Flags that users of GenerativeZoo know and that vqgpt does not have: refused with the reason, never ignored."""

from collections.abc import Iterable

from vqgpt.errors import UsageError
from vqgpt.options.command import Command

REFUSED = {
    "--sane-index-shape": (
        "it would change nothing: codes are grids (B, h, w) everywhere, in the network and in token caches",
        "leave it out",
    ),
    "--colorize-nlabels": (
        "it shows segmentation maps of more than 3 channels in colours, and every dataset here has 1 or 3 channels",
        "leave it out: images are shown as they are",
    ),
}


def check_not_refused(arguments: list[str], commands: Iterable[Command]) -> None:
    """Raise UsageError, with the reason, if a command is given a flag that vqgpt is known not to have."""
    words = next((each.words for each in commands if arguments[: each.words.count(" ") + 1] == each.words.split()), "")
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-").replace("--no-", "--")
        if flag in REFUSED:
            reason, remedy = REFUSED[flag]
            raise UsageError(f"{' '.join(['vqgpt', *words.split()])} has no {flag}: {reason}", remedy)
