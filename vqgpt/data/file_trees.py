"""Files by name, wherever they lie: in a folder, or unpacked nowhere, in a zip or tar file. Nothing is ever written.

A name is a relative path with `/`. Hidden files and folders (`.git`, `.ipynb_checkpoints`, `__MACOSX`) do not exist
here. Reading is safe in several threads.
"""

import os
import tarfile
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from vqgpt.errors import InputError, MissingDataError

LARGEST_FILE = 2**29  # bytes; a larger one is not an image, or a bomb


class FileTree(Protocol):
    """Files below one path."""

    path: Path
    sizes: dict[str, int]  # bytes of each file by name, names in order

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises OSError, also for an archive's damaged, encrypted or enormous member."""
        ...


def open_tree(path: Path) -> FileTree:
    """The files below a folder, or in a zip or tar file. Raises MissingDataError or InputError if it is neither."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise MissingDataError(f"there is no {path}", "give the folder, zip or tar file of the images")
    try:
        if zipfile.is_zipfile(path):
            return ZipFile(path)
        if tarfile.is_tarfile(path):
            return TarFile(path)
    except (zipfile.BadZipFile, tarfile.TarError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error})", "fetch or pack it again") from None
    raise InputError(f"{path} is neither a folder nor a zip or tar file", "give one of these")


class Folder:
    """The files below a folder. Links are followed, but not to a folder that they lie in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sizes = _in_order(_walk(path, "", ()))

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        check_size(self, name)
        return (self.path / name).read_bytes()


def _walk(folder: Path, prefix: str, ancestors: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Name and size of each file. Raises OSError for a folder that cannot be read."""
    real = os.path.realpath(folder)
    if real in ancestors:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, real))
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size


class ZipFile:
    """The members of a zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = zipfile.ZipFile(path)
        files = (info for info in self.zip.infolist() if not info.is_dir())
        self.members = {info.filename.replace("\\", "/").removeprefix("./"): info for info in files}
        self.sizes = _in_order((name, info.file_size) for name, info in self.members.items())

    def read(self, name: str) -> bytes:
        """A member's bytes, as many as the directory of the archive says, at most."""
        check_size(self, name)
        try:
            return self.zip.read(self.members[name])
        except Exception as error:  # each kind of compression has errors of its own
            raise OSError(f"it cannot be unpacked: {error}") from None


class TarFile:
    """The members of an uncompressed tar file, and of tar files inside it: `a.tar` with `b.jpg` in it is `a/b.jpg`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.places = dict(self._index(file, 0, ""))
        self.descriptor = os.open(path, os.O_RDONLY)  # for reads from several threads, each at its own place
        weakref.finalize(self, os.close, self.descriptor)
        self.sizes = _in_order((name, size) for name, (_, size) in self.places.items())

    def _index(self, file: BinaryIO, start: int, prefix: str) -> Iterator[tuple[str, tuple[int, int]]]:
        file.seek(start)
        try:
            members = list(tarfile.TarFile(fileobj=file))
        except tarfile.ReadError:
            compressed = f"{self.path / prefix} is compressed or damaged"
            raise InputError(compressed, "unpack it, and give the folder") from None
        for member in members:
            if member.isfile() and member.name.endswith(".tar") and not prefix:
                yield from self._index(file, member.offset_data, member.name.removesuffix(".tar") + "/")
            elif member.isfile():
                yield prefix + member.name.removeprefix("./"), (member.offset_data, member.size)

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        check_size(self, name)
        start, size = self.places[name]
        data = os.pread(self.descriptor, size, start)
        if len(data) < size:
            raise OSError("the archive ends in the middle of it")
        return data


def check_size(tree: FileTree, name: str) -> None:
    """Raise OSError if a file is too large to be an image."""
    if tree.sizes[name] > LARGEST_FILE:
        raise OSError(f"it would take {tree.sizes[name] / 1e9:.1f} GB")


def _in_order(sizes: Iterator[tuple[str, int]]) -> dict[str, int]:
    return {name: size for name, size in sorted(sizes) if not any(map(_is_hidden, name.split("/")))}


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
