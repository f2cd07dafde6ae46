"""FIFOs, sockets, folders and endless devices in place of a cache's files: refused at once, and never waited for."""

import os
import shutil
import socket
import stat

import pytest

from tests.conftest import TINY_GPT, assert_refused, description, run_here, write_cache
from vqgpt.errors import InputError
from vqgpt.storage.files import SpecialFileError, open_regular
from vqgpt.tokens import TokenCache, find_faults
from vqgpt.tokens.third_party import read_llamagen
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.options import VQGANOptions
from vqgpt.vqgan.yaml_beside import with_yaml

ROOT, SHARD, METADATA = "zarr.json", "train/codes/c/0/0/0/0", "train/codes/zarr.json"


def put_fifo(path):
    os.mkfifo(path)


def put_device(path):
    path.symlink_to("/dev/zero")


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def read_all(cache):
    opened = TokenCache(cache)
    opened.codebook()
    opened.read_split("train")


PUT = {"a FIFO": put_fifo, "an endless device": put_device, "a socket": put_socket}


@pytest.fixture
def cache(here):
    (here / "cache").mkdir()
    write_cache(here / "cache/good.zarr", description((40, 5)))
    return write_cache(here / "cache/c.zarr", description((40, 5)))


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
@pytest.mark.parametrize("key", [ROOT, SHARD, METADATA, "codebook/c/0/0", "train/zarr.json"])
def test_in_place_of_any_file_every_command_refuses_it(cache, put, key):
    (cache / key).unlink()
    put(cache / key)
    with pytest.raises(InputError, match="pipe, a device or a socket"):
        read_all(cache)
    assert_refused(run_here("cache", "verify", str(cache)), 3, "pipe, a device or a socket", key)


def test_a_training_does_not_wait_for_it(cache):
    (cache / SHARD).unlink()
    put_fifo(cache / SHARD)
    assert_refused(run_here("train", *TINY_GPT, "-q", "--cache", str(cache)), 3, "pipe, a device or a socket", SHARD)


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_the_listing_of_a_folder_shows_it_and_goes_on(cache, put):
    (cache / ROOT).unlink()
    put(cache / ROOT)
    listed = run_here("cache", "list", "--json")
    assert listed.code == 0, listed.err
    assert listed.json["good.zarr"]["status"] == "complete"
    assert "pipe, a device or a socket" in listed.json["c.zarr"]["status"]


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_in_place_of_the_folder_itself(cache, put):
    shutil.rmtree(cache)
    put(cache)
    assert_refused(run_here("cache", "verify", str(cache)), 3, "is not a token cache")
    assert_refused(run_here("cache", "info", str(cache)), 3, "is not a token cache")
    assert run_here("cache", "list").code == 0
    assert cache.exists()
    assert not stat.S_ISREG(cache.stat().st_mode)


def test_a_stranger_among_the_files_is_told_and_not_read(cache):
    put_fifo(cache / "train/more")
    assert find_faults(cache) == ["train/more does not belong to this cache"]


@pytest.mark.parametrize("put", PUT.values(), ids=PUT)
def test_open_regular_opens_files_and_links_to_them_alone(tmp_path, put):
    put(tmp_path / "x")
    with pytest.raises(SpecialFileError):
        open_regular(tmp_path / "x")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"


def test_a_repair_writes_through_no_link_inside_a_cache(cache):
    outside = cache.parent / "outside"
    (cache / "train").rename(outside)
    (cache / "train").symlink_to(outside)
    (outside / "codes/c/0/0/0/0").unlink()
    with pytest.raises(InputError, match="is a link: inside a cache, nothing is written"):
        write_cache(cache, description((40, 5)))  # as a repair does, once it has what made the cache
    assert not (outside / "codes/c/0/0/0/0").exists()


def test_codes_and_yaml_of_strangers(tmp_path):
    for folder in ("digits_codes", "digits_labels"):
        (tmp_path / folder).mkdir()
        put_fifo(tmp_path / folder / "0.npy")
    with pytest.raises(SpecialFileError):
        read_llamagen(tmp_path / "digits_codes", 16, lambda _: None)
    put_fifo(tmp_path / "x.yaml")
    with pytest.raises(SpecialFileError):
        with_yaml(VQGANConfig.of(VQGANOptions(), image_channels=1, size=32), tmp_path / "x.yaml")
