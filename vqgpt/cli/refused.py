"""Flags that users of GenerativeZoo know and that vqgpt does not have: refused with the reason, never ignored."""

from vqgpt.errors import UsageError

REFUSED = {
    "tokenize": {
        "--sane-index-shape": "the cache stores grids always; leave the flag out",
    },
}


def check_not_refused(arguments: list[str]) -> None:
    """Raise UsageError if a command is given a flag that it is known not to have."""
    words = " ".join(arguments[:2]) if arguments[:1] in (["vqgan"], ["cache"]) else "".join(arguments[:1])
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag in REFUSED.get(words, {}):
            raise UsageError(f"vqgpt {words} has no {flag}", REFUSED[words][flag])
