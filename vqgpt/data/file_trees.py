"""Files by name, wherever they lie: in a folder, or unpacked nowhere, in a zip or tar file. Nothing is ever written.

A name is a relative path with `/`, as it is stored. What is hidden (`.git`, `._1.png`), and the folders in which other
programs keep thumbnails and deleted files, are left out, and so is what leads to no file. Reading is safe in several
threads. A file, or an archive, that no longer has the size and the time of its last change that it had when it was
listed is not read: what was decided about it is not about what is there now.
"""

import os
import posixpath
import stat
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from vqgpt.data.decoding import BrokenImageError, is_image_name
from vqgpt.data.tar_members import BLOCK, LONGEST_PATH, DamagedTarError, is_tar, tar_members
from vqgpt.errors import InputError, MissingDataError, printable
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import open_regular

ENCRYPTED = 1  # flag of a member of a zip file
LARGEST_FILE = 2**29  # bytes; a larger one is not an image, or a bomb
OF_OTHER_PROGRAMS = {  # in lower case; the systems that make them do not tell cases apart
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "@__thumb",
    "@eadir",
    "@recently-snapshot",
    "@recycle",
    "@sharebin",
    "@sharesnap",
    "@synoresource",
    "@tmp",
    "__macosx",
    "__pycache__",
    "found.000",
    "lost+found",
    "lost.dir",
    "network trash folder",
    "recycled",
    "recycler",
    "system volume information",
    "temporary items",
    "thevolumesettingsfolder",
    "~snapshot",
}
HIDDEN = "hidden, or of another program"
CIRCLE = "links to a folder that they lie in"
NOWHERE = "links that lead to nothing that can be read"
NO_FILE = "links that lead to no file in the archive"
SPECIAL = "neither files nor folders"
MOST_LINKS = 40  # from one to the next, as Linux has it
DEEPEST = 64  # folders inside one another in an archive: each of them has a name of its own, as long as the path to it
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\0\0\x80")  # how files of gzip, bzip2, xz and lzma begin
UNPACKED_IN_PARTS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python unpacks 4 kB of bzip2 to gigabytes at once

MemberT = TypeVar("MemberT")


class Link(NamedTuple):
    """A member of an archive that stands for another: for what `target`, from the top of the archive, names."""

    target: str


class FileTree(Protocol):
    """Files below one path."""

    path: Path
    sizes: dict[str, int]  # bytes of each file by name, names in order
    folders: set[str]  # names of all folders, with files in them or without
    left_out: dict[str, str]  # why, by name: of images, and of folders as a whole

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises BrokenImageError for an archive's damaged or an enormous one, and OSError.

        Raises InputError if it has changed since it was listed, and MissingDataError if it is gone.
        """
        ...


def open_tree(path: Path) -> FileTree:
    """The files below a folder, or in a zip or tar file. Raises MissingDataError, or InputError if it is neither."""
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise MissingDataError(f"there is no {path}", "give the folder, zip or tar file of the images")
    with open_regular(path) as file:
        beginning = file.read(BLOCK)
    try:
        if zipfile.is_zipfile(path):
            return ZipFile(path)
        if is_tar(beginning) or beginning.startswith(COMPRESSED):
            return TarFile(path)
    except InputError:
        raise
    except Exception as error:  # a damaged archive can make Python raise anything
        raise InputError(
            f"{path} is damaged ({str(error) or type(error).__name__})", "fetch or pack it again"
        ) from None
    raise InputError(f"{path} is neither a folder nor a zip or tar file", "give one of these")


def report_left_out(tree: FileTree, report: Report) -> None:
    """A notice for each reason why something of a tree is left out: how many, and the first."""
    for reason in sorted(set(tree.left_out.values())):
        names = sorted(name for name, why in tree.left_out.items() if why == reason)
        number = f"{len(names):,} files or folders are" if len(names) > 1 else "1 file or folder is"
        first = printable(str(tree.path / names[0]))
        report(Notice(text=f"{number} left out: {reason} (the first: {first})"))


def is_hidden(part: str) -> bool:
    """True for a file or folder that nobody means by its folder's images."""
    return part.startswith(".") or part.lower() in OF_OTHER_PROGRAMS


class Folder:
    """The files below a folder. Links are followed, but not to a folder that they lie in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: set[str] = set()
        self.left_out: dict[str, str] = {}
        self._times: dict[str, int] = {}  # of the last change of each file, in nanoseconds
        self.sizes = dict(sorted(self._walk(path, "", ())))

    def _walk(self, folder: Path, prefix: str, ancestors: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        """Name and size of each file, whose times are kept. Raises OSError for a folder that cannot be read."""
        real = os.path.realpath(folder)
        if real in ancestors:
            self.left_out[prefix.rstrip("/")] = CIRCLE
            return
        if prefix:
            self.folders.add(prefix.rstrip("/"))
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                try:
                    is_folder, is_file = entry.is_dir(), entry.is_file()
                except OSError:
                    if not entry.is_symlink():
                        raise
                    self.left_out[name] = NOWHERE
                    continue
                if is_hidden(entry.name):
                    if is_folder or is_image_name(name):
                        self.left_out[name] = HIDDEN
                elif is_folder:
                    yield from self._walk(Path(entry.path), f"{name}/", (*ancestors, real))
                elif is_file:
                    status = entry.stat()
                    self._times[name] = status.st_mtime_ns
                    yield name, status.st_size
                else:
                    self.left_out[name] = NOWHERE if not os.path.exists(entry) else SPECIAL

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        check_size(self, name)
        path = self.path / name
        try:
            with open_regular(path) as file:
                data = file.read(self.sizes[name])
                _check_unchanged(path, os.fstat(file.fileno()), (self.sizes[name], self._times[name]))
                return data
        except FileNotFoundError:
            raise MissingDataError(
                f"{path} is gone since the images were listed", "put it back, or run the command again without it"
            ) from None


class ZipFile:
    """The members of a zip file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = zipfile.ZipFile(path)
        self._stamp = _stamp(self._status())
        if any(info.flag_bits & ENCRYPTED for info in self.zip.infolist()):
            raise InputError(f"{path} is encrypted", "unpack it, and give the folder")
        if any(info.compress_type not in UNPACKED_IN_PARTS for info in self.zip.infolist()):
            raise InputError(f"{path} is not compressed by deflate, as zip files are", "unpack it, and give the folder")
        self.members, self.folders, self.left_out = _members(self._index())
        self.sizes = {name: info.file_size for name, info in self.members.items()}

    def _index(self) -> Iterator[tuple[str, zipfile.ZipInfo | Link | str]]:
        """Name of each member, with what it is; that of a folder ends in /."""
        for info in self.zip.infolist():
            name = info.filename.replace("\\", "/")
            if not stat.S_ISLNK(info.external_attr >> 16):
                yield name, info
                continue
            try:
                target = self._unpacked(info).decode() if info.file_size <= LONGEST_PATH else ""
            except Exception:  # a damaged archive can make Python raise anything
                target = ""
            yield name, _link(name, target)

    def _status(self) -> os.stat_result:
        assert self.zip.fp is not None
        return os.fstat(self.zip.fp.fileno())

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        check_size(self, name)
        _check_unchanged(self.path, self._status(), self._stamp)
        try:
            data = self._unpacked(self.members[name])
        except Exception as error:  # a damaged archive can make Python raise anything
            raise BrokenImageError(f"it cannot be unpacked: {error}") from None
        if len(data) < self.sizes[name]:
            raise BrokenImageError(f"it unpacks to {len(data)} bytes instead of {self.sizes[name]}")
        return data

    def _unpacked(self, info: zipfile.ZipInfo) -> bytes:
        """As many bytes as the directory says, at most: no more are unpacked, whatever is packed there."""
        with self.zip.open(info) as file:
            return file.read(info.file_size)


class TarFile:
    """The members of an uncompressed tar file, and of tar files inside it: `a.tar` with `b.jpg` in it is `a/b.jpg`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            self._stamp = _stamp(os.fstat(file.fileno()))
            self.length = file.seek(0, os.SEEK_END)
            self.places, self.folders, self.left_out = _members(self._index(file, 0, self.length, ""))
        self.descriptor = os.open(path, os.O_RDONLY)  # for reads from several threads, each at its own place
        weakref.finalize(self, os.close, self.descriptor)
        self.sizes = {name: size for name, (_, size) in self.places.items()}

    def _index(
        self, file: BinaryIO, start: int, stop: int, prefix: str
    ) -> Iterator[tuple[str, tuple[int, int] | Link | str]]:
        """Name of each member, with place and size, or the reason why it is left out; that of a folder ends in /."""
        try:
            for name, kind, target, place, size in tar_members(file, start, stop):
                hidden = any(map(is_hidden, _plain(name).split("/")))
                if kind == "file" and name.endswith(".tar") and not prefix and not hidden:
                    inner = name.removesuffix(".tar") + "/"
                    yield inner, ""
                    yield from self._index(file, place, min(place + size, stop), inner)
                elif kind == "folder":
                    yield f"{prefix}{name}/", ""
                elif kind == "link":
                    yield prefix + name, _link(prefix + name, target)
                elif kind == "hard link":
                    yield prefix + name, Link(prefix + target)
                else:
                    yield prefix + name, (place, size) if kind == "file" else SPECIAL
        except DamagedTarError as error:
            fault = f"{self.path / prefix} is compressed or damaged ({error})"
            raise InputError(fault, "unpack it, and give the folder") from None

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        check_size(self, name)
        _check_unchanged(self.path, os.fstat(self.descriptor), self._stamp)
        start, size = self.places[name]
        if start + size > self.length:
            raise BrokenImageError("the archive ends in the middle of it")
        return os.pread(self.descriptor, size, start)


def check_size(tree: FileTree, name: str) -> None:
    """Raise BrokenImageError if a file is too large to be an image."""
    if tree.sizes[name] > LARGEST_FILE:
        raise BrokenImageError(f"it would take {tree.sizes[name] / 1e9:.1f} GB")


def _stamp(status: os.stat_result) -> tuple[int, int]:
    """By what a file is known again, at no cost: its bytes, and when it was last changed, in nanoseconds."""
    return status.st_size, status.st_mtime_ns


def _check_unchanged(path: Path, status: os.stat_result, listed: tuple[int, int]) -> None:
    """Raise InputError if an open file is not what was listed. Reading it again gives the same bytes otherwise."""
    if _stamp(status) != listed:
        raise InputError(f"{path} has changed since the images were listed", "put the old one back, or run again")


def _link(name: str, target: str) -> Link | str:
    """A symbolic link in an archive, or why it is left out: it leads out of the archive."""
    return NO_FILE if not target or target.startswith("/") else Link(posixpath.join(posixpath.dirname(name), target))


def _members(found: Iterable[tuple[str, MemberT | Link | str]]) -> tuple[dict[str, MemberT], set[str], dict[str, str]]:
    """Of an archive: its files in the order of their names, its folders, and what is left out, with the reason.

    Raises ValueError for a name that is too long, or too deep.
    """
    everything: dict[str, MemberT | Link | str] = {}
    shown: set[str] = set()
    folders: set[str] = set()
    left_out: dict[str, str] = {}
    for stored_name, member in found:
        if len(stored_name) > LONGEST_PATH or stored_name.count("/") > DEEPEST:
            raise ValueError(f"there is a name of {len(stored_name)} characters, {DEEPEST} folders deep or more")
        name, is_folder = _plain(stored_name), stored_name.endswith("/")
        if not name:
            continue
        if not is_folder:
            everything[name] = member
        parts = name.split("/")
        hidden = next((place for place, part in enumerate(parts) if is_hidden(part)), None)
        if hidden is not None:
            if is_folder or hidden < len(parts) - 1 or is_image_name(name):
                left_out["/".join(parts[: hidden + 1])] = HIDDEN
            continue
        folder = name if is_folder else posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
        if not is_folder:
            shown.add(name)
    members: dict[str, MemberT] = {}
    for name in sorted(shown):
        member = _linked(name, everything)
        if isinstance(member, str):
            left_out[name] = member
        else:
            members[name] = member
    return members, folders, left_out


def _linked(name: str, everything: dict[str, MemberT | Link | str]) -> MemberT | str:
    """The member that a name means in the end, or the reason why there is none."""
    for _ in range(MOST_LINKS):
        member = everything.get(name, NO_FILE)
        if not isinstance(member, Link):
            return member
        name = _plain(posixpath.normpath(member.target))
    return NO_FILE


def _plain(name: str) -> str:
    """A member's name without the parts of it that say nothing."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
