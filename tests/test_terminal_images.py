"""Pictures on a terminal: what is written is decoded again, and a real pseudo-terminal is asked what it can do."""

import base64
import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import run_here
from vqgpt.pictures.terminal import (
    attributes_have_sixel,
    escape_sequence,
    iterm2,
    kitty,
    protocol_by_name,
    protocol_here,
    sixel,
)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "/tmp/x"}, None),
        ({"TERM": "screen", "LC_TERMINAL": "iTerm2"}, None),
        ({}, None),
    ],
)
def test_terminals_that_are_known_by_name(environment, protocol):
    assert protocol_by_name(environment) == protocol


@pytest.mark.parametrize(
    ("answer", "has_it"),
    [
        (b"\x1b[?62;4;6;22c", True),
        (b"\x1b[?64;1;2;4c", True),
        (b"\x1b[?4c", False),  # a VT132: the first number is the kind of terminal
        (b"\x1b[?1;2c", False),
        (b"\x1b[?62;14;22;44c", False),
        (b"", False),
    ],
)
def test_answers_to_the_question_for_sixel(answer, has_it):
    assert attributes_have_sixel(answer) is has_it


def test_what_is_no_terminal_shows_no_pictures():
    assert protocol_here() is None


@pytest.mark.parametrize("size", [1, 3000, 3072, 3073, 20000])
def test_kitty_gets_the_file_in_chunks(size):
    data = np.random.default_rng(size).bytes(size)
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(data))
    assert "".join(f"\x1b_G{keys};{chunk}\x1b\\" for keys, chunk in commands) == kitty(data)
    assert base64.b64decode("".join(chunk for _, chunk in commands)) == data
    assert commands[0][0].startswith("a=T,f=100,q=2,")
    assert [keys.split(",")[-1] for keys, _ in commands] == ["m=1"] * (len(commands) - 1) + ["m=0"]
    assert all(len(chunk) == 4096 for _, chunk in commands[:-1])
    assert len(commands[-1][1]) <= 4096


def test_iterm2_gets_the_file():
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;size=(\d+):(.*)\x07", iterm2(b"data"))
    assert int(found[1]) == 4
    assert base64.b64decode(found[2]) == b"data"


def decode_sixel(text: str) -> np.ndarray:
    """A sixel picture as a plain reader of the standard draws it: (H, W, 3), -1 where nothing is drawn."""
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    width, height, body = int(found[1]), int(found[2]), found[3]
    canvas, colors = np.full((height + 6, width, 3), -1.0), {}
    x = top = 0
    color = None
    for item in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([?-~])|(\$)|(-)", body):
        if item[1]:
            colors[int(item[1])] = [int(item[number]) for number in (2, 3, 4)]
        elif item[5]:
            color = colors[int(item[5])]
        elif item[9]:
            x = 0
        elif item[10]:
            x, top = 0, top + 6
        else:
            count, char = (int(item[6]), item[7]) if item[6] else (1, item[8])
            for bit in range(6):
                if (ord(char) - 63) >> bit & 1:
                    assert (canvas[top + bit, x : x + count] == -1).all()
                    canvas[top + bit, x : x + count] = color
            x += count
    return canvas[:height]


@pytest.mark.parametrize("shape", [(6, 4), (1, 1), (13, 30), (12, 7)])
@pytest.mark.parametrize("colors", [1, 7, 200])
def test_sixel_draws_every_pixel_once_in_its_color(shape, colors):
    generator = np.random.default_rng(colors)
    palette = generator.integers(0, 256, (colors, 3), dtype=np.uint8)
    pixels = palette[generator.integers(0, colors, shape)]
    drawn = decode_sixel(sixel(Image.fromarray(pixels)))
    assert (drawn >= 0).all()
    assert np.abs(drawn / 100 * 255 - pixels).max() <= (2 if colors < 10 else 40)


def test_wide_pictures_are_made_to_fit(tmp_path):
    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "wide.png")
    found = re.search(r":(.*)\x07", escape_sequence("iterm2", tmp_path / "wide.png"))
    with Image.open(io.BytesIO(base64.b64decode(found[1]))) as picture:
        assert picture.width <= 1000
        assert picture.width == pytest.approx(4 * picture.height, abs=4)


def run_in_a_terminal(words, answer: bytes, **environment) -> bytes:
    """Run vqgpt on a pseudo-terminal that answers a DA1 question; everything that it wrote there."""
    main, other = pty.openpty()
    before = {name: value for name, value in os.environ.items() if name not in ("TMUX", "STY", "TERM_PROGRAM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "vqgpt", *words],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
        env={**before, "TERM": "xterm-256color", **environment},
        preexec_fn=lambda: os.close(os.open(os.ttyname(2), os.O_RDWR)),  # which makes it the controlling terminal
    )
    os.close(other)
    written, asked, deadline = b"", False, time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 1)[0]:
            continue
        data = b""
        with contextlib.suppress(OSError):  # the other end is closed
            data = os.read(main, 65536)
        if not data:
            break
        written += data
        if b"\x1b[c" in written and not asked:
            asked = True
            os.write(main, answer)
    process.wait(timeout=60)
    os.close(main)
    assert process.returncode == 0, written
    return written


def test_a_sheet_is_shown_on_a_kitty(pipeline):
    words = ["render", "runs/digits/samples.zarr", "--out", "s.png", "--show"]
    written = run_in_a_terminal(words, b"", KITTY_WINDOW_ID="1")
    data = b"".join(re.findall(rb"\x1b_G[^;]*;([^\x1b]*)\x1b\\", written))
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown, Image.open("s.png") as sheet:
        fits = shown.width / sheet.width
        assert fits <= 1
        assert shown.height == pytest.approx(sheet.height * fits, abs=1)


def test_a_terminal_is_asked_for_sixel(pipeline):
    words = ["sample", "--num-samples", "3", "--out", "three.zarr", "--show"]
    written = run_in_a_terminal(words, b"\x1b[?62;4;22c")
    found = re.search(rb"\x1bPq.*?\x1b\\", written, re.DOTALL)
    drawn = decode_sixel(found[0].decode().replace("\r\n", "\n"))
    with Image.open("three.png") as sheet:
        assert drawn.shape[1] <= sheet.width
    assert (drawn >= 0).all()


def test_elsewhere_the_path_is_told(pipeline):
    words = ["render", "runs/digits/samples.zarr", "--out", "s.png", "--show"]
    outcome = run_here(*words)
    assert outcome.code == 0, outcome.err
    assert "shows no images; the picture is s.png" in outcome.err
    assert "s.png" in outcome.out
    outcome = run_here(*words, "--overwrite", "--json")
    assert outcome.json["picture"] == "s.png"
    assert "\x1b_G" not in outcome.err + outcome.out
    assert Path("s.png").exists()
