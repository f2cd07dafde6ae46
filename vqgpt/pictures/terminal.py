"""Pictures on a terminal that can show them: which protocol it speaks, and what to write to it.

    kitty     https://sw.kovidgoyal.net/kitty/graphics-protocol
    iterm2    https://iterm2.com/documentation-images.html
    sixel     DEC STD 070, chapter 9: six rows of pixels in a character, one colour after the other

Must not import torch; PIL and numpy only when a picture is shown.
"""

import base64
import fcntl
import io
import os
import re
import select
import struct
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

Protocol = Literal["kitty", "iterm2", "sixel"]

SECONDS_TO_ANSWER = 1.0  # nearly all terminals do, at once
KITTY_CHUNK = 4096  # characters of base64 in one command
PIXELS_PER_COLUMN = 8  # where the terminal does not report it
SIXEL_COLORS = 256


def protocol_here() -> Protocol | None:
    """What the terminal of stderr speaks; None if it is no terminal, or one that cannot show images."""
    if not sys.stderr.isatty():
        return None
    return protocol_by_name(os.environ) or ("sixel" if answers_with_sixel() else None)


def protocol_by_name(environment: Mapping[str, str]) -> Protocol | None:
    """What a terminal is known to speak by its environment; None for one that has to be asked.

    tmux and screen show the names of the terminal around them, and pass neither kitty's nor iTerm2's commands on.
    """
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("screen", "tmux")):
        return None
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return None


def answers_with_sixel() -> bool:
    """Ask the terminal for its attributes (DA1); True if it answers in time, and has sixel graphics (4)."""
    with suppress(OSError, termios.error), open("/dev/tty", "r+b", buffering=0) as terminal:  # or it has hung up
        return attributes_have_sixel(attributes_of(terminal))
    return False


def attributes_of(terminal: io.FileIO) -> bytes:
    """What a terminal answers to DA1 in the time it has. Raises OSError or termios.error if there is no terminal."""
    before = termios.tcgetattr(terminal)
    answer, deadline = b"", time.monotonic() + SECONDS_TO_ANSWER
    try:
        tty.setcbreak(terminal.fileno())
        terminal.write(b"\x1b[c")
        while not answer.endswith(b"c") and select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            answer += terminal.read(64)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    return answer


def attributes_have_sixel(answer: bytes) -> bool:
    """Whether an answer to DA1, as ESC [ ? 62 ; 4 ; 22 c, lists sixel graphics."""
    found = re.search(rb"\x1b\[\?([\d;]+)c", answer)
    return found is not None and b"4" in found[1].split(b";")[1:]


def escape_sequence(protocol: Protocol, path: Path) -> str:
    """What shows a .png file on the terminal, made narrower if it does not fit."""
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB")
    width = terminal_width()
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    if protocol == "sixel":
        return sixel(picture)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return kitty(buffer.getvalue()) if protocol == "kitty" else iterm2(buffer.getvalue())


def terminal_width() -> int:
    """Pixels across the terminal of stderr, or a guess."""
    try:
        size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return 80 * PIXELS_PER_COLUMN
    _, columns, pixels, _ = struct.unpack("HHHH", size)
    return int(pixels or (columns or 80) * PIXELS_PER_COLUMN)


def kitty(png: bytes) -> str:
    """A PNG file as graphics commands: a=T to show it, f=100 for PNG, m=1 while more follows, q=2 for no answer."""
    data = base64.b64encode(png).decode()
    chunks = [data[start : start + KITTY_CHUNK] for start in range(0, len(data), KITTY_CHUNK)]
    first = "a=T,f=100,q=2,"
    return "".join(
        f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def iterm2(png: bytes) -> str:
    """A PNG file as an inline file."""
    return f"\x1b]1337;File=inline=1;size={len(png)}:{base64.b64encode(png).decode()}\x07"


def sixel(picture: "Image") -> str:
    """A picture in at most 256 colours of its own, whose shares of red, green and blue are in percent."""
    quantised = picture.quantize(SIXEL_COLORS)
    colors = (quantised.getpalette() or [])[: 3 * SIXEL_COLORS]
    header = f'\x1bPq"1;1;{picture.width};{picture.height}'
    palette = "".join(
        f"#{index};2;" + ";".join(str(round(value / 2.55)) for value in colors[3 * index : 3 * index + 3])
        for index in range(len(colors) // 3)
    )
    return header + palette + "-".join(_bands(quantised)) + "\x1b\\"


def _bands(picture: "Image") -> Iterator[str]:
    """Each six rows: for every colour in them a line of characters, and $ to go back to its start."""
    import numpy as np

    pixels = np.asarray(picture)
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        weights = 1 << np.arange(len(band))
        lines = []
        for color in np.unique(band):
            sixels = weights @ (band == color) + 63
            starts = np.flatnonzero(np.diff(sixels, prepend=-1))
            lengths = np.diff(starts, append=len(sixels))
            runs = zip(lengths.tolist(), sixels[starts].tolist(), strict=True)
            lines.append(f"#{color}" + "".join(f"!{n}{chr(code)}" if n > 3 else chr(code) * n for n, code in runs))
        yield "$".join(lines)
