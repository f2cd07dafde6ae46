"""Getting a dataset's files below the data root: fetched to a temporary name, checked by digest, unpacked safely.

A download that was cut off goes on where it stopped. An archive is unpacked beside its place and renamed, so that
there is never a half of it. Must not import torch.
"""

import errno
import gzip
import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from vqgpt.data.table import FILES, Dataset, RemoteFile
from vqgpt.errors import InputError, MissingFilesError
from vqgpt.progress import Notice, Progress, Report
from vqgpt.storage.files import (
    check_is_not_special,
    fsync_folder,
    is_vacant,
    open_regular,
    partial_path,
    place_of,
    remove,
)
from vqgpt.storage.write_lock import WriteLock

BLOCK = 2**20
SECONDS_WITHOUT_AN_ANSWER = 30
NOT_THE_NETWORK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LARGEST_EXPANSION = 100  # times the size of the archive: more is a bomb


def is_here(dataset: Dataset, root: Path) -> bool:
    """True if what the reader needs is below `root`."""
    if dataset.reader == "medmnist":
        return bool(existing_files(dataset, root))
    files = FILES.get(dataset.name, ())[: 2 if dataset.name == "imagenet" else None]  # class folders need no devkit
    places = [root, root / dataset.name]
    return bool(files) and any(all(is_present(file, place) for file in files) for place in places)


def ensure_files(dataset: Dataset, files: tuple[RemoteFile, ...], root: Path, report: Report) -> None:
    """Have every file below `root`, unpacked where it must be, and nothing in its place that is no file.

    Raises MissingFilesError, naming all that is missing, if one cannot be had, and InputError for a damaged archive, or
    if another run is fetching them.
    """
    for file in files:
        check_is_not_special(root / file.path)
        check_is_not_special(root / file.content)
    missing = [file for file in files if not is_present(file, root)]
    by_hand = [file for file in missing if dataset.source == "by hand" and not (root / file.path).exists()]
    if by_hand:
        raise missing_files(dataset, by_hand, root, "it has to be asked for by hand")
    if missing:
        with WriteLock(root / dataset.name, elsewhere="give another --data-root") as lock:
            lock.take()
            _make_present(dataset, [file for file in missing if not is_present(file, root)], root, report)


def _make_present(dataset: Dataset, missing: list[RemoteFile], root: Path, report: Report) -> None:
    to_fetch = [file for file in missing if not (root / file.path).exists()]
    if to_fetch:
        size = "" if dataset.reader == "medmnist" else f"about {dataset.megabytes:,} MB in all; "
        report(Notice(text=f"downloading {dataset.name} to {root} ({size}licence: {dataset.licence})"))
    for file in to_fetch:
        try:
            fetch(file, root, report)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in NOT_THE_NETWORK:
                raise
            left = [other for other in to_fetch if not is_present(other, root)]
            raise missing_files(dataset, left, root, f"{file.url} could not be fetched: {_reason(error)}") from None
    for file in missing:
        if file.content and not file.in_place:
            check_digest(file, root, report)
            unpack(file, root)


def is_present(file: RemoteFile, root: Path) -> bool:
    """True if the file is there, in the form in which it is read."""
    as_it_is = (root / file.path).exists() and (file.in_place or not file.content)
    return as_it_is or (bool(file.content) and not is_vacant(root / file.content))


def missing_files(dataset: Dataset, files: list[RemoteFile], root: Path, reason: str) -> MissingFilesError:
    """The one error for files that are not there: what, why, and where each has to go."""
    places = "; ".join(f"{file.url} (md5 {file.md5}) as {root / file.path}" for file in files)
    note = f" ({dataset.note})" if dataset.source == "by hand" else ""
    return MissingFilesError(
        f"{dataset.name} is not in {root}; {reason}", f"fetch it yourself and put it there{note}: {places}"
    )


def remedy(dataset: Dataset, root: Path, *damaged: Path) -> str:
    """What to do about a dataset that is damaged or not whole, for which these files and folders stand.

    Never to delete anything, nor to move what the same command could not fetch again.
    """
    if dataset.source == "by hand":
        sources = dict.fromkeys(file.url for file in FILES[dataset.name])
        return f"keep what is there, and get what is missing or damaged from {' '.join(sources)}"
    if not damaged or root in damaged:
        return "give another --data-root, to which the same command fetches it, or put there what is missing"
    return f"move {' '.join(map(str, damaged))} away, and run the same command, which fetches it again"


def existing_files(dataset: Dataset, root: Path) -> list[Path]:
    """What there is below `root` of the files of a dataset, packed and unpacked."""
    if dataset.reader == "medmnist":
        return sorted(root.glob(f"{dataset.name}*.npz"))
    paths = (root / name for file in FILES.get(dataset.name, ()) for name in (file.path, file.content) if name)
    return [path for path in paths if path.exists()]


def fetch(file: RemoteFile, root: Path, report: Report) -> None:
    """Download one file. Raises OSError or HTTPException; what has arrived is kept for the next time."""
    target = place_of(root / file.path)
    partial = partial_path(target)
    check_is_not_special(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(file.url, headers={"User-Agent": "vqgpt"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_WITHOUT_AN_ANSWER) as answer:
            continued = answer.status == http.client.PARTIAL_CONTENT
            _receive(answer, partial, have if continued else 0, file, report)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # then all of it is here already
            raise
    found = md5_of(partial)
    if found != file.md5:
        partial.unlink()
        if have:  # the part that we had may have been of another file
            fetch(file, root, report)
            return
        raise OSError(f"what came has md5 {found}, not {file.md5}")
    os.replace(partial, target)
    fsync_folder(target.parent)


def _receive(answer: http.client.HTTPResponse, partial: Path, have: int, file: RemoteFile, report: Report) -> None:
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length else 0
    task, done = f"download {Path(file.path).name}", have
    with open(partial, "ab" if have else "wb") as out:
        while block := answer.read1(BLOCK):
            out.write(block)
            done += len(block)
            report(Progress(task=task, done=done // BLOCK, total=max(total, done) // BLOCK, unit="MiB"))
        out.flush()
        os.fsync(out.fileno())
    if done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def md5_of(path: Path) -> str:
    """The MD5 digest of a file, in which publishers give them; it guards against damage, not against malice."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def check_digest(file: RemoteFile, root: Path, report: Report) -> None:
    """Raise InputError if an archive that was put there is not the published one.

    A single packed file may have been packed again: a notice says so, and its reader judges its content.
    """
    found = md5_of(root / file.path)
    difference = f"{root / file.path} is not the published file (md5 {found}, not {file.md5})"
    if found != file.md5 and not file.path.endswith(".tar.gz"):
        report(Notice(text=difference))
    elif found != file.md5:
        raise InputError(
            difference,
            f"move it away, and run the same command, which fetches it from {file.url}; or, if you trust it, unpack it "
            f"yourself to {root / file.content}",
        )


def unpack(file: RemoteFile, root: Path) -> None:
    """Unpack an archive to its place, all or nothing. Raises InputError if it is damaged, unsafe or a bomb."""
    archive, place = root / file.path, place_of(root / file.content)
    partial = partial_path(place)
    limit = LARGEST_EXPANSION * archive.stat().st_size
    remove(partial)
    try:
        if file.path.endswith(".tar.gz"):
            _unpack_tar(archive, partial, limit)
            os.replace(partial / Path(file.content).name, place)
        else:
            _unpack_gzip(archive, partial, limit)
            os.replace(partial, place)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno in NOT_THE_NETWORK:
            raise
        raise InputError(
            f"{archive} cannot be unpacked ({error})", "move it away, and run the same command, which fetches it again"
        ) from None
    finally:
        remove(partial)
    fsync_folder(place.parent)


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
    with open_regular(archive) as file, tarfile.open(fileobj=file) as tar:
        members, total = [], 0
        for member in tar:
            total += member.size
            if total > limit:
                raise tarfile.TarError(f"it would take more than {limit:,} bytes")
            members.append(member)
        tar.extractall(folder, members, filter="data")


def _unpack_gzip(archive: Path, target: Path, limit: int) -> None:
    with open_regular(archive) as file, gzip.open(file) as packed, open(target, "wb") as out:
        total = 0
        while block := packed.read(BLOCK):
            total += len(block)
            if total > limit:
                raise EOFError(f"it would take more than {limit:,} bytes")
            out.write(block)
        out.flush()
        os.fsync(out.fileno())


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return (str(reason).strip().splitlines() or [type(error).__name__])[0]
