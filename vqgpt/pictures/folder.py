"""A folder of PNG files, one per row of a token cache, that can be interrupted at any instant and continued.

`.unfinished.json` says what is being rendered, and becomes `about.json` when all files are there. Each file appears
whole or not at all, so what is there is kept. The folder may be a link; nothing in it may. Must not import torch.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqgpt.errors import InputError, UsageError
from vqgpt.pictures.sheet import png_bytes, to_pil
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
from vqgpt.tokens.reader import Part

UNFINISHED, FINISHED = ".unfinished.json", "about.json"
PICTURE = re.compile(r"\d{6,}\.png|\.\d{6,}\.png\.partial")
THREADS = 8  # more than cores: each waits for the disk most of the time
SECONDS_TO_LEAVE = 4.0  # after a signal


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
        if self.folders is None:
            return self.path / f"{row:06d}.png"
        return self.path / self.folders[int(label)] / f"{row:06d}.png"

    def fill(
        self,
        parts: Iterator[Part],
        total: int,
        decode: Callable[[NDArray[Any]], NDArray[np.uint8]],
        about: dict[str, Any],
        report: Report,
    ) -> None:
        """Write the pictures that are not there; `decode` makes images (n, C, H, W) of codes.

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
        self,
        parts: Iterator[Part],
        total: int,
        decode: Callable[[NDArray[Any]], NDArray[np.uint8]],
        about: dict[str, Any],
        report: Report,
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
