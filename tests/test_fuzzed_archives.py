"""Changed archives of images, zip and tar: each file in one is read, left out, or said to be broken; or all is refused.

FUZZ_SECONDS=600 pytest tests/test_fuzzed_archives.py changes each kind of archive for ten minutes.
"""

import io
import random
import stat
import tarfile
import zipfile

import pytest

from tests.dataset_files import image_bytes, tar_bytes
from tests.fuzzing import SECONDS, changed_bytes, changed_directory, fuzz
from vqgpt.data.decoding import BrokenImageError, decode, is_image_name, no_decoder_warnings
from vqgpt.data.file_trees import open_tree
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import resolve
from vqgpt.progress import silent

WHITE = (255, 255, 255)
LONG = "/".join(["a" * 60] * 3)  # longer than the header of a tar file has room for
IMAGES = {f"{kind}/{number}.png": image_bytes((number, 9, 0)) for kind in ("cat", "dog", "hö") for number in range(3)}


def packed_zip(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("dog/", b"")
        for name, data in IMAGES.items():
            archive.writestr(name, data)
        archive.writestr("notes.txt", bytes(9_999))
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "../dog/1.png")
        with archive.open("cat/large.png", "w", force_zip64=True) as file:
            file.write(IMAGES["cat/1.png"])
    return buffer.getvalue()


def packed_tar(layout: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
        names = [*IMAGES, *([f"{LONG}/{LONG}/1.png"] if layout != tarfile.USTAR_FORMAT else [f"{LONG}/1.png"])]
        for name in names:
            add(archive, tarfile.TarInfo(name), IMAGES.get(name, IMAGES["cat/1.png"]))
        add(archive, tarfile.TarInfo("more.tar"), tar_bytes({"inner/1.png": IMAGES["cat/1.png"]}))
        for name, kind, target in (
            ("empty", tarfile.DIRTYPE, ""),
            ("cat/soft.png", tarfile.SYMTYPE, "../dog/1.png"),
            ("cat/hard.png", tarfile.LNKTYPE, "dog/1.png"),
            ("cat/pipe.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        if layout == tarfile.PAX_FORMAT:
            member = tarfile.TarInfo("cat/sparse.png")
            member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9999"}
            add(archive, member, b"1\n0\n9\n".ljust(512, b"\0"))
            member = tarfile.TarInfo("cat/comment.png")
            member.pax_headers = {"comment": "ö" * 99, "mtime": "1.5"}
            add(archive, member, IMAGES["cat/1.png"])
    return buffer.getvalue()


def add(archive: tarfile.TarFile, member: tarfile.TarInfo, data: bytes) -> None:
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


TAR_FIELDS = {  # of a header: where each begins, and how many bytes it has
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "kind": (156, 1),
    "target": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
    "pieces": (386, 97),  # of a sparse file of GNU tar
}


def changed_headers(data: bytes, chance: random.Random) -> bytes:
    """A tar file with other fields in some headers, whose checksums hold, or with headers repeated or left out."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    for _ in range(chance.choice([1, 1, 2, 4])):
        headers = [place for place, block in enumerate(blocks) if block[257:262] == b"ustar"] or [0]
        place = chance.choice(headers)
        field = chance.choice(list(TAR_FIELDS))
        block = bytearray(blocks[place].ljust(512, b"\0"))
        start, length = TAR_FIELDS[field]
        block[start : start + length] = odd_field(field, length, chance)
        blocks[place] = signed_header(bytes(block))
        if chance.random() < 0.2:
            blocks[place : place + chance.choice([0, 1])] = [chance.choice(blocks)] * chance.choice([1, 2, 50])
    return b"".join(blocks)


def odd_field(field: str, length: int, chance: random.Random) -> bytes:
    """What can stand in a field of a header of tar, and hardly ever does."""
    if field == "kind":
        return chance.choice([bytes([chance.choice(b"\x000123456789xgXLKSDVMN")]), chance.randbytes(1)])
    if field in ("size", "mode", "mtime", "pieces"):
        number = chance.choice([0, 1, 511, 512, 513, 10**4, 2**29, 2**33 - 1])
        of_base_256 = [2**63, 2**64, 2**87, 10**9]
        found = chance.choice(
            [
                b"%o" % number,
                b"\x80" + chance.choice(of_base_256).to_bytes(11, "big"),
                (2**96 - chance.choice([1, 512, 1024, 2**64])).to_bytes(12, "big"),
                chance.randbytes(length),
                b"-1",
                b" 7 ",
            ]
        )
        return found[-length:].ljust(length, b"\0")
    texts = [
        b"",
        b"/",
        b"../../x.png",
        b"/etc/passwd",
        b"a/" * 99,
        b".",
        b"x.tar",
        b"dog/1.png",
        b"cat\0x",
        b"\xff" * 99,
    ]
    return chance.choice([*texts, chance.randbytes(length)])[:length].ljust(length, b"\0")


def signed_header(block: bytes) -> bytes:
    """A header with the checksum of what it holds."""
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


ARCHIVES = {
    "stored.zip": lambda: packed_zip(zipfile.ZIP_STORED),
    "deflated.zip": lambda: packed_zip(zipfile.ZIP_DEFLATED),
    "ustar.tar": lambda: packed_tar(tarfile.USTAR_FORMAT),
    "gnu.tar": lambda: packed_tar(tarfile.GNU_FORMAT),
    "pax.tar": lambda: packed_tar(tarfile.PAX_FORMAT),
}


def read_everything(path) -> None:
    """Every file of an archive as it is told, and every image as it is decoded, if it can be."""
    tree = open_tree(path)
    for name, size in tree.sizes.items():
        try:
            data = tree.read(name)
            assert len(data) == size, name
            if is_image_name(name):
                decode(data, WHITE)
        except BrokenImageError:
            pass


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("name", ARCHIVES)
def test_a_changed_archive_is_read_or_refused(name, tmp_path):
    bad = tmp_path / f"bad.{name.rpartition('.')[2]}"
    data = ARCHIVES[name]()
    bad.write_bytes(data)
    assert {"cat/1.png", "hö/2.png"} <= open_tree(bad).sizes.keys()
    of_directory = changed_directory if name.endswith(".zip") else changed_headers

    def outcome(change):
        read_everything(bad)
        read_dataset(find_dataset("folder"), resolve(ImageOptions, {"data_root": bad, "workers": 1}), 16, silent)
        return "read"

    with no_decoder_warnings():
        outcomes = fuzz(name, bad, data, [changed_bytes, of_directory, of_directory], outcome)
    assert len(outcomes) == 2
