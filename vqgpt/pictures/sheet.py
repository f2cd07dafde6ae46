"""Pictures of images (N, C, H, W) uint8: contact sheets and panels as one PNG, and folders of a PNG file per row.

A folder is filled by one run at a time, can be interrupted at any instant, and is continued: `.unfinished.json` says
what is being rendered, and becomes `about.json` when all files are there. The folder may be a link; nothing in it may.
Imports numpy and PIL; must not import torch.
"""

import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from vqgpt.errors import InputError, UsageError
from vqgpt.progress import Notice, Progress, Report
from vqgpt.runtime.process import stop_on_signals
from vqgpt.storage.files import (
    canonical_json,
    check_writable,
    fsync_folder,
    links_below,
    make_folder,
    partial_path,
    place_of,
    tidy_after_a_kill,
    write_atomically,
)
from vqgpt.storage.write_lock import WriteLock
from vqgpt.tokens.arrays import statistics_of_counts
from vqgpt.tokens.reader import Part

MARGIN = 4
TEXT_HEIGHT = 14
HISTOGRAM_HEIGHT = 80
SHORTEST_SIDE = 64  # pixels on the sheet; smaller images are enlarged by a whole factor
PICTURE = re.compile(r"\d{6,}\.png|\.\d{6,}\.png\.partial")
THREADS = 8  # more than cores: each waits for the disk most of the time
SECONDS_TO_LEAVE = 4.0  # after a signal
UNFINISHED, FINISHED = ".unfinished.json", "about.json"

Decode = Callable[[NDArray[Any]], NDArray[np.uint8]]  # codes -> images (n, C, H, W)


def to_pil(image: NDArray[np.uint8]) -> Image.Image:
    """(C, H, W) uint8, grey or RGB -> a PIL image."""
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def to_displayable(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """(N, C, H, W) -> (N, 3, H, W) where C is above 3, through a random projection that the seed fixes; else as is.

    Brought to 0..255 over all the images, as taming-transformers shows segmentation maps.
    """
    channels = images.shape[1]
    if channels <= 3:
        return images
    projection = np.random.default_rng(seed).standard_normal((3, channels))
    mixed = np.einsum("oc,nchw->nohw", projection, images.astype(np.float64))
    low, high = mixed.min(), mixed.max()
    return ((mixed - low) / max(1e-9, high - low) * 255).round().astype(np.uint8)


def to_rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, C, H, W), grey or RGB -> (N, H, W, 3), as most tools hold images."""
    return np.ascontiguousarray(np.broadcast_to(images, (len(images), 3, *images.shape[2:])).transpose(0, 2, 3, 1))


def png_bytes(picture: Image.Image, configuration: Mapping[str, Any]) -> bytes:
    """The picture as a PNG file that carries the configuration that made it, as JSON, in the text field `vqgpt`."""
    about = PngInfo()
    about.add_text("vqgpt", json.dumps(configuration))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=about)
    return buffer.getvalue()


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str], columns: int) -> Image.Image:
    """A grid of (N, C, H, W) uint8 images, row by row, each with its caption above it ("" for none)."""
    scale = max(1, math.ceil(SHORTEST_SIDE / min(images.shape[2:])))
    height, width = images.shape[2] * scale, images.shape[3] * scale
    text_height = TEXT_HEIGHT if any(captions) else 0
    cell = (width + MARGIN, height + text_height + MARGIN)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_HEIGHT - 3)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + (index % columns) * cell[0]
        top = MARGIN + (index // columns) * cell[1]
        pen.text((left, top - 2), _fitted(caption, font, width), fill="black", font=font)
        sheet.paste(to_pil(image).resize((width, height), Image.Resampling.NEAREST), (left, top + text_height))
    return sheet


def _fitted(caption: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    while caption and font.getlength(caption) > width:
        caption = caption[:-1]
    return caption


def comparison_sheet(
    originals: NDArray[np.uint8], reconstructions: NDArray[np.uint8], captions: Sequence[str], columns: int = 8
) -> Image.Image:
    """Originals (N, C, H, W) uint8, each row of them above their reconstructions, which have the captions."""
    columns = min(columns, len(originals))
    images, texts = [], []
    for start in range(0, len(originals), columns):
        blanks = columns - len(originals[start : start + columns])
        for group, names in ((originals, [""] * len(originals)), (reconstructions, list(captions))):
            images += [*group[start : start + columns], *[np.full_like(originals[0], 255)] * blanks]
            texts += names[start : start + columns] + [""] * blanks
    return contact_sheet(np.stack(images), texts, columns)


def histogram(counts: NDArray[np.integer[Any]], title: str, width: int) -> Image.Image:
    """A bar for each of `counts` (K,), in their order, under a title; neighbours share a bar where they must."""
    chart = Image.new("RGB", (width, HISTOGRAM_HEIGHT + TEXT_HEIGHT + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(chart)
    pen.text((MARGIN, 0), title, fill="black", font=ImageFont.load_default(TEXT_HEIGHT - 3))
    bars = np.array_split(counts, min(len(counts), width - 2 * MARGIN))
    heights = np.array([bar.mean() for bar in bars])
    heights = heights / max(1e-9, heights.max()) * HISTOGRAM_HEIGHT
    edges = MARGIN + np.linspace(0, width - 2 * MARGIN, len(bars) + 1)
    bottom = chart.height - MARGIN
    for height, left, right in zip(heights, edges[:-1], edges[1:], strict=True):
        if height > 0:
            pen.rectangle((left, bottom - max(1, height), max(left, right - 1), bottom), fill="steelblue")
    return chart


def reconstruction_panel(
    originals: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    captions: Sequence[str],
    code_counts: NDArray[np.integer[Any]],
    seed: int,
    configuration: Mapping[str, Any],
) -> bytes:
    """A VQ-GAN's quality as a PNG file: originals above reconstructions with a caption each, and the codes' use.

    Images (n, C, H, W) uint8; `code_counts` (K,) over all held-out images; `seed` fixes the projection of images of
    more than 3 channels.
    """
    shown, decoded = (to_displayable(images, seed) for images in (originals, reconstructions))
    sheet = comparison_sheet(shown, decoded, captions)
    usage = statistics_of_counts(code_counts)
    title = f"{usage.used_codes} of {len(code_counts)} codes in use, perplexity {usage.perplexity:.1f}; most used first"
    chart = histogram(np.sort(code_counts)[::-1], title, sheet.width)
    both = Image.new("RGB", (sheet.width, sheet.height + chart.height))
    both.paste(sheet, (0, 0))
    both.paste(chart, (0, sheet.height))
    return png_bytes(both, configuration)


class PictureFolder:
    """The folder at `path`; `identity` is what must be equal for it to be continued."""

    def __init__(self, path: Path, identity: dict[str, Any], folders: Sequence[str] | None, overwrite: bool) -> None:
        """`folders` has a folder's name for each class, and last one for images without, where there is one per class.

        Raises what `_look` raises.
        """
        self.given = path
        self.path = place_of(path)
        self.identity = canonical_json(identity)
        self.folders = folders
        self.overwrite = overwrite
        self._look()

    def _look(self) -> None:
        """See whether the folder is complete, continued, new, or holds what is to be replaced.

        Raises UsageError if something else was rendered there and is not to be replaced, InputError if there are links,
        or files that no rendering wrote.
        """
        there = [path.name for path in self.path.iterdir()] if self.path.exists() else []
        self.complete = self._holds(FINISHED) and not self.overwrite
        self.continues = self._holds(UNFINISHED) and FINISHED not in there
        self.is_new = set(there) <= {partial_path(self.path / UNFINISHED).name}
        for link in [] if self.complete else links_below(self.path):
            raise InputError(
                f"{link} is a link: in a folder of pictures, nothing is written or deleted through one",
                "delete it, or give another --out",
            )
        if not (self.is_new or self.complete or self.continues):
            if not self.overwrite:
                raise UsageError(
                    f"{self.given} exists", "give --overwrite to replace what was rendered there, or another --out"
                )
            self._check_ours()

    def _holds(self, name: str) -> bool:
        file = self.path / name
        return file.is_file() and file.read_bytes() == self.identity

    def _check_ours(self) -> None:
        """Raise InputError if there is a file that no rendering wrote, or a folder below one of a class."""
        known = any((self.path / name).is_file() for name in (UNFINISHED, FINISHED))
        names = {UNFINISHED, FINISHED, f".{UNFINISHED}.partial"}
        inner = (path for path in self.path.rglob("*") if not path.is_dir() or path.parent != self.path)
        files = (file for file in inner if file.name not in names)
        others = sorted(str(file) for file in files if not (known and PICTURE.fullmatch(file.name)))
        if others:
            raise InputError(f"{others[0]} was not rendered by vqgpt", "move it elsewhere, or give another --out")

    def _remove_old(self) -> None:
        """Delete the pictures of another rendering; an empty marker stands for them until they are gone."""
        write_atomically(self.path / UNFINISHED, b"{}")
        (self.path / FINISHED).unlink(missing_ok=True)
        for picture in [file for file in self.path.rglob("*") if PICTURE.fullmatch(file.name)]:
            picture.unlink()
        for folder in [folder for folder in self.path.iterdir() if folder.is_dir()]:
            folder.rmdir()

    def file_of(self, row: int, label: NDArray[Any]) -> Path:
        """Where the picture of a row is."""
        folder = self.path if self.folders is None else self.path / self.folders[int(label)]
        return folder / f"{row:06d}.png"

    def fill(self, parts: Iterator[Part], total: int, decode: Decode, about: dict[str, Any], report: Report) -> None:
        """Write the pictures that are not there.

        A part is decoded while the pictures of the one before it are written. Raises InterruptedRun when a signal asks
        to stop, and InputError if another run is writing the folder, or if nothing can be written there.
        """
        with WriteLock(self.given, elsewhere="give another --out") as lock:
            lock.take()
            self._look()  # another run may have just ended
            if self.complete:
                report(Notice(text=f"{self.given} is complete; nothing to do"))
                return
            check_writable(self.path)
            if not (self.continues or self.is_new):
                self._remove_old()
            if not self.continues:
                write_atomically(self.path / UNFINISHED, self.identity)
            tidy_after_a_kill(self.path)
            for name in (self.folders or ())[:-1]:  # also without pictures: a class is numbered by its place
                make_folder(self.path / name)
            self._write_missing(parts, total, decode, about, report)
            os.replace(self.path / UNFINISHED, self.path / FINISHED)
            fsync_folder(self.path)

    def _write_missing(
        self, parts: Iterator[Part], total: int, decode: Decode, about: dict[str, Any], report: Report
    ) -> None:
        saved = f"the pictures that are done are in {self.given}"
        done = 0

        def write(file: Path, image: NDArray[np.uint8]) -> None:
            write_atomically(file, png_bytes(to_pil(image), about))

        with stop_on_signals(SECONDS_TO_LEAVE, saved) as stop, ThreadPoolExecutor(THREADS) as pool:
            writing: list[Future[None]] = []
            for part in parts:
                files = [self.file_of(row, label) for row, label in zip(part.rows, part.labels, strict=True)]
                missing = [index for index, file in enumerate(files) if not file.exists()]
                images = decode(part.codes) if missing else np.empty(0, np.uint8)
                for written in writing:
                    written.result()
                writing = [pool.submit(write, files[index], images[index]) for index in missing]
                done += len(files)
                report(Progress(task="render", done=done, total=total, unit="images"))
                if stop:
                    raise stop.as_error(saved)
            for written in writing:
                written.result()
