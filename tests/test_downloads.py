"""Getting files over a real HTTP connection, from servers that behave and that do not, and unpacking them."""

import gzip
import io
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.conftest import TINY_VQGAN, assert_refused, run_here
from tests.dataset_files import md5, tar_bytes, write_mnist
from vqgpt.data.downloads import ensure_files, fetch, unpack
from vqgpt.data.table import FILES, RemoteFile, find_dataset
from vqgpt.errors import InputError, MissingFilesError
from vqgpt.progress import silent

DATASET = find_dataset("svhn")
CONTENT = bytes(range(256)) * 5000


@contextmanager
def server(content, behaviour="good"):
    """A web server on the loopback; gives its address and the list of the byte ranges that it was asked for."""
    ranges = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            ranges.append(asked)
            start = int(asked.split("=")[1].rstrip("-")) if asked and behaviour != "no ranges" else 0
            body = content[start:]
            if behaviour == "missing":
                self.send_error(404)
                return
            if asked and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if behaviour == "cut off" else body)

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}", ranges
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def remote(url, content=CONTENT):
    return RemoteFile(path="some/file.bin", url=f"{url}/file.bin", md5=md5(content))


def test_a_file_is_fetched_whole_and_only_then_named(tmp_path):
    events = []
    with server(CONTENT) as (url, _):
        fetch(remote(url), tmp_path, events.append)
    assert (tmp_path / "some/file.bin").read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["file.bin"]
    assert events[-1].done == events[-1].total


@pytest.mark.parametrize("behaviour", ["good", "no ranges"])
def test_a_download_that_was_cut_off_goes_on(tmp_path, behaviour):
    with server(CONTENT, "cut off") as (url, _), pytest.raises(OSError, match="connection"):
        fetch(remote(url), tmp_path, silent)
    assert not (tmp_path / "some/file.bin").exists()
    with server(CONTENT, behaviour) as (url, ranges):
        fetch(remote(url), tmp_path, silent)
    assert ranges == [f"bytes={len(CONTENT) // 2}-"]
    assert (tmp_path / "some/file.bin").read_bytes() == CONTENT


def test_a_whole_file_that_was_not_named_yet_is_not_fetched_again(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some/.file.bin.partial").write_bytes(CONTENT)
    with server(CONTENT) as (url, _):
        fetch(remote(url), tmp_path, silent)
    assert (tmp_path / "some/file.bin").read_bytes() == CONTENT


def test_what_was_left_of_another_file_is_thrown_away(tmp_path):
    (tmp_path / "some").mkdir()
    (tmp_path / "some/.file.bin.partial").write_bytes(b"another file")
    with server(CONTENT) as (url, ranges):
        fetch(remote(url), tmp_path, silent)
    assert ranges == ["bytes=12-", None]
    assert (tmp_path / "some/file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("behaviour", ["missing", "cut off", "wrong", "gone"])
def test_what_cannot_be_had_is_one_error_that_says_all(tmp_path, behaviour):
    with server(b"<html>quota</html>" if behaviour == "wrong" else CONTENT, behaviour) as (url, _):
        file = remote("http://127.0.0.1:9" if behaviour == "gone" else url)
        with pytest.raises(MissingFilesError) as caught:
            ensure_files(DATASET, (file,), tmp_path, silent)
    for word in (file.url, file.md5, str(tmp_path / file.path)):
        assert word in caught.value.hint
    assert file.url in caught.value.message
    assert not (tmp_path / file.path).exists()


def test_the_command_line_fetches_what_is_missing_and_says_what_to_do_if_it_cannot(here, monkeypatch):
    write_mnist(here / "source", packed=True)
    packed = {file.path: (here / "source" / file.path).read_bytes() for file in FILES["mnist"]}
    flags = ["--dataset", "mnist", "--data-root", "data", *TINY_VQGAN]
    dead = tuple(replace(file, url="http://127.0.0.1:9/x") for file in FILES["mnist"])
    monkeypatch.setitem(FILES, "mnist", dead)
    outcome = run_here("vqgan", "train", *flags)
    assert_refused(outcome, 4, *(word for file in dead for word in (file.url, file.md5, f"data/{file.path}")))
    assert "then run again: vqgpt vqgan train --dataset mnist --data-root data" in outcome.err
    addresses = {}
    for path, content in packed.items():
        with server(content) as (url, _):
            file = next(file for file in FILES["mnist"] if file.path == path)
            addresses[path] = replace(file, url=url, md5=md5(content))
            fetch(addresses[path], here / "data", silent)
    monkeypatch.setitem(FILES, "mnist", tuple(addresses.values()))
    assert run_here("vqgan", "train", *flags).code == 0


def archive_with(member, data=b""):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tar_member(name, kind=tarfile.REGTYPE, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


HOSTILE = {
    "outside": archive_with(tar_member("../evil", size=1), b"x"),
    "absolute": archive_with(tar_member("/tmp/vqgpt-evil/x", size=1), b"x"),
    "link": archive_with(tar_member("folder/x", tarfile.SYMTYPE, "/etc/passwd")),
    "device": archive_with(tar_member("folder/x", tarfile.CHRTYPE)),
    "bomb": tar_bytes({"folder/x": bytes(10**7)}, "w:gz"),
    "truncated": tar_bytes({"folder/x": CONTENT}, "w:gz")[:200],
    "another": tar_bytes({"other/x": b"x"}, "w:gz"),
    "no archive": b"<html>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path, name):
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.tar.gz").write_bytes(HOSTILE[name])
    with pytest.raises(InputError, match=r"a\.tar\.gz cannot be unpacked"):
        unpack(RemoteFile(path="a.tar.gz", url="", md5="", content="folder"), root)
    assert [path.name for path in tmp_path.rglob("*")] == ["root", "a.tar.gz"]


def test_a_gzip_bomb_is_refused(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10**7)))
    with pytest.raises(InputError, match="more than"):
        unpack(RemoteFile(path="x.gz", url="", md5="", content="x"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.gz"]


def test_an_archive_that_was_put_there_is_checked_before_it_is_unpacked(tmp_path):
    archive = tar_bytes({"folder/x": b"x"}, "w:gz")
    (tmp_path / "a.tar.gz").write_bytes(archive)
    file = RemoteFile(path="a.tar.gz", url="http://127.0.0.1:9/a", md5="0" * 32, content="folder")
    with pytest.raises(InputError, match=md5(archive)):
        ensure_files(DATASET, (file,), tmp_path, silent)
    ensure_files(DATASET, (replace(file, md5=md5(archive)),), tmp_path, silent)
    assert (tmp_path / "folder/x").read_bytes() == b"x"
