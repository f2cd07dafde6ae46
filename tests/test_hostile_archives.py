"""Archives made to harm, small as files: refused or read in little time and memory, and no exception but ours."""

import io
import struct
import tarfile
import tracemalloc
import zipfile

import pytest

from tests.dataset_files import image_bytes, tar_bytes, zip_bytes
from tests.test_fuzzed_archives import ARCHIVES, TAR_FIELDS, read_everything, signed_header
from vqgpt.data.decoding import BrokenImageError
from vqgpt.data.file_trees import open_tree
from vqgpt.data.tar_members import tar_members
from vqgpt.errors import InputError

IMAGE = image_bytes((1, 2, 3))
SMALL = 20e6  # bytes


def header(name=b"cat/1.png", kind=b"0", size=b"0", **fields):
    """The header of a member of a tar file, with a checksum that holds."""
    block = bytearray(512)
    values = {"name": name, "kind": kind, "size": size, "magic": b"ustar\x0000", **fields}
    for field, value in values.items():
        start, length = TAR_FIELDS[field]
        block[start : start + length] = value[:length].ljust(length, b"\0")
    return signed_header(bytes(block))


def extension(kind, data):
    """What comes before a header: a long name, or pax records."""
    return header(kind=kind, size=b"%o" % len(data)) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def base_256(number):
    return number.to_bytes(12, "big", signed=number < 0) if number < 0 else b"\x80" + number.to_bytes(11, "big")


def with_fields(data, mark, **fields):
    """A zip archive with other numbers at some bytes of its first record that begins with `mark`."""
    start = data.index(mark)
    places = {"version": (6, "<H"), "method": (10, "<H"), "size": (24, "<L")}
    changed = bytearray(data)
    for name, value in fields.items():
        place, layout = places[name]
        struct.pack_into(layout, changed, start + place, value)
    return bytes(changed)


def bomb(method, claimed):
    """A member of 50 MB of zeros, which are to be as many as `claimed`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, archive.open("cat/1.png", "w") as file:
        for _ in range(50):
            file.write(bytes(10**6))
    return with_fields(buffer.getvalue(), b"PK\x01\x02", size=claimed)


REFUSED = {
    "a version of zip that is none": lambda: with_fields(zip_bytes({"cat/1.png": IMAGE}), b"PK\x01\x02", version=255),
    "a name of 30,000 folders": lambda: zip_bytes({"a/" * 30_000 + "1.png": IMAGE}),
    "many deep names": lambda: zip_bytes({f"{n}/" + "a/" * 2_000 + "1.png": b"" for n in range(200)}),
    "a size below zero": lambda: header() + header(b"cat/2.png", size=base_256(-1024)),
    "a size below zero of what comes before": lambda: header(kind=b"x", size=base_256(-512)) + header(),
    "an extension as large as no file": lambda: header(kind=b"L", size=base_256(2**60)) + header(),
    "a size that no file has": lambda: header(size=base_256(2**80)) + header(b"cat/2.png"),
    "a long run of digits": lambda: extension(b"x", b"1" * 10**6) + header(),
    "records inside one another": lambda: extension(b"x", b"2 " * 10**5 + b"=\n") + header(),
    "a record without length": lambda: extension(b"x", b"0 path=a\n") + header(),
    "a long name of a megabyte": lambda: extension(b"L", b"a/" * 2**19) + header(),
    "a megabyte of name for all": lambda: extension(b"g", b"1000009 path=" + b"a" * 999_995 + b"\n") + header() * 999,
    "a negative size in a record": lambda: extension(b"x", b"11 size=-9\n") + header(),
    "a damaged tar inside": lambda: tar_bytes({"cat.tar": b"x" * 600, "dog/1.png": IMAGE}),
}
READ = {
    "a long chain of long names": lambda: extension(b"L", b"x\0") * 5_000 + header() + bytes(1024),
    "a thousand tars in one place": lambda: b"".join(header(b"%d.tar" % n) for n in range(5_000)) + bytes(1024),
    "links in a circle": lambda: (
        b"".join(header(b"%d.png" % n, b"1", target=b"%d.png" % (n + 1)) for n in range(3_000))
        + header(b"3000.png", b"1", target=b"0.png")
        + bytes(1024)
    ),
    "a file that ends early": lambda: header(size=base_256(2**62)),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_in_little_time_and_memory(tmp_path, what):
    (tmp_path / "x").write_bytes(REFUSED[what]())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=str(tmp_path / "x")):
            open_tree(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", READ)
def test_what_is_odd_is_read_in_little_time(tmp_path, what):
    (tmp_path / "x").write_bytes(READ[what]())
    read_everything(tmp_path / "x")


def test_no_more_is_unpacked_than_the_directory_claims(tmp_path):
    (tmp_path / "x.zip").write_bytes(bomb(zipfile.ZIP_DEFLATED, 1_000))
    tree = open_tree(tmp_path / "x.zip")
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImageError, match="cannot be unpacked: Bad CRC-32"):
            tree.read("cat/1.png")
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_in_parts_is_refused(tmp_path, method):
    (tmp_path / "x.zip").write_bytes(bomb(method, 1_000))
    with pytest.raises(InputError, match="x.zip is not compressed by deflate"):
        open_tree(tmp_path / "x.zip")


def test_a_member_shorter_than_the_directory_claims_is_broken(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", IMAGE)
    (tmp_path / "x.zip").write_bytes(with_fields(packed.getvalue(), b"PK\x01\x02", size=10**6))
    with pytest.raises(BrokenImageError, match=f"unpacks to {len(IMAGE)} bytes instead of 1000000"):
        open_tree(tmp_path / "x.zip").read("cat/1.png")


@pytest.mark.parametrize("name", ["ustar.tar", "gnu.tar", "pax.tar"])
def test_tar_files_are_read_as_python_reads_them(name):
    data = ARCHIVES[name]()
    found = {member.name: member for member in tar_members(io.BytesIO(data), 0, len(data))}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = archive.getmembers()
        assert set(found) == {member.name for member in expected}
        for member in expected:
            ours = found[member.name]
            assert (ours.kind == "file") == (member.isfile() and not member.issparse()), member.name
            assert (ours.kind == "folder", ours.kind == "link") == (member.isdir(), member.issym())
            assert ours.target == member.linkname
            if ours.kind == "file":
                assert data[ours.start : ours.start + ours.size] == archive.extractfile(member).read()
