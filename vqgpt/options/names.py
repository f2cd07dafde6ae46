"""Names that users write, and what they may have meant. Must not import torch."""

import difflib
import unicodedata
from collections.abc import Iterable

MOST_NAMES = 50  # in a hint


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """A hint that names what is nearest to `name` among `known`, or the first 50 where nothing is near."""
    known = [composed(word) for word in known]
    near = difflib.get_close_matches(composed(name), known, n=1)
    more = f", and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known[:MOST_NAMES])}{more}"


def composed(name: str) -> str:
    """A name as names are compared: each letter and its marks in one (NFC), which some systems store apart."""
    return unicodedata.normalize("NFC", name)
