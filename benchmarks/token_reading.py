"""How fast a split of a token cache becomes one array in memory, beside simpler ways that check nothing.

Writes made-up codes (zipf-distributed) as a token cache, as one .npy, as one .npy per image and raw, and reads each
into one array; the page cache is warm. Beside them what no reader of this format can avoid: to hash the bytes of the
shards and to unpack them. Then how much of the start of a `vqgpt train` on this cache the checks take.
Prints medians of interleaved rounds, and their ratio to the copy of an array.

    python benchmarks/token_reading.py --rows 100000 --grid 16 --codebook-size 1024
"""

import argparse
import hashlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vqgpt.tokens import CacheWriter, Description, Split, TokenCache
from vqgpt.tokens.arrays import code_dtype, decode_shard, default_shard_rows

FILES = 20_000  # of one image each; their time is scaled up to all rows
CODES_MADE = 2**22


def make_cache(path: Path, rows: int, grid: int, codebook_size: int) -> None:
    """A token cache with one split."""
    row_bytes = grid * grid * np.dtype(code_dtype(codebook_size)).itemsize
    description = Description(
        origin="encoded",
        dataset="benchmark",
        class_names=("a",),
        label_kind="class",
        source_sha256="0" * 64,
        splits=(Split(name="train", rows=rows), Split(name="test", rows=1)),
        limit=None,
        val_split=None,
        image_size=(16 * grid, 16 * grid),
        image_channels=3,
        preprocessing={"rule": "none"},
        skipped=(),
        views=("identity",),
        grid=(grid, grid),
        codebook_size=codebook_size,
        code_dimension=8,
        tokenizer_sha256="0" * 64,
        precision="fp32",
        sampling={},
        shard_rows=default_shard_rows(row_bytes),
    )
    codes = np.random.default_rng(0).zipf(1.2, CODES_MADE) % codebook_size
    writer = CacheWriter.create_or_resume(path, description, np.zeros((codebook_size, 8), np.float32), {})
    for shard in writer.missing():
        index = np.arange(shard.start, shard.stop)
        shifted = np.roll(codes, 7919 * shard.index)
        writer.write(shard, np.resize(shifted, (len(index), 1, grid, grid)), np.zeros(len(index), np.int64), index)


def medians(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each way, the rounds interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            result = way()
            seconds[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def hash_and_unpack(cache: TokenCache, contents: list[bytes]) -> np.ndarray:
    """The codes of split `train` from the bytes of its shards, in as many threads as the reader has."""
    layout = cache.description.layouts("train")["codes"]
    codes = np.empty(layout.shape, layout.dtype)

    def unpack(index: int) -> None:
        hashlib.sha256(contents[index]).hexdigest()
        decode_shard(layout, contents[index], codes[layout.shard_slice(index)])

    with ThreadPoolExecutor(cache.store.threads) as pool:
        list(pool.map(unpack, range(layout.num_shards)))
    return codes


def training_start(cache: Path) -> tuple[float, float]:
    """Seconds from the start of `vqgpt train` to its first step, and of its checks alone, in as many threads."""
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from vqgpt.cli.app import main; from vqgpt.gpt.training import GPTTraining\n"
        "GPTTraining.take_step = lambda *_: (print('seconds', time.perf_counter() - start, flush=True), sys.exit(0))\n"
        "main(sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, "train", "--cache", str(cache), "--out", f"{folder}/gpt.pt", "-q"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    start = float(output.split("seconds")[1])
    tokens = TokenCache(cache)
    layouts, codes = tokens.description.layouts("train"), tokens.read_split("train").codes

    def check(index: int) -> None:
        for name, layout in layouts.items():
            hashlib.sha256((cache / "train" / name / layout.shard_key(index)).read_bytes()).hexdigest()
        codes[layouts["codes"].shard_slice(index)].max()

    began = time.perf_counter()
    with ThreadPoolExecutor(tokens.store.threads) as pool:
        list(pool.map(check, range(layouts["codes"].num_shards)))
    return start, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_cache(root / "c.zarr", options.rows, options.grid, options.codebook_size)
        cache = TokenCache(root / "c.zarr")
        codes = cache.read_split("train").codes
        layout = cache.description.layouts("train")["codes"]
        files = [root / "c.zarr/train/codes" / layout.shard_key(index) for index in range(layout.num_shards)]
        contents = [file.read_bytes() for file in files]
        np.save(root / "codes.npy", codes)
        codes.tofile(root / "codes.raw")
        single = min(FILES, len(codes))
        (root / "files").mkdir()
        for row in range(single):
            np.save(root / "files" / f"{row}.npy", codes[row])

        def one_file_per_image() -> None:
            np.stack([np.load(root / "files" / f"{row}.npy") for row in range(single)])

        seconds = medians(
            {
                "copy of the array": codes.copy,
                "token cache, checked": lambda: cache.read_split("train").codes,
                "sha256 and lz4 alone": lambda: hash_and_unpack(cache, contents),
                "np.load": lambda: np.load(root / "codes.npy"),
                "raw memmap, copied": lambda: np.array(np.memmap(root / "codes.raw", codes.dtype, shape=codes.shape)),
            },
            options.rounds,
        )
        alone = medians({"one .npy per image": one_file_per_image}, rounds=1)  # its small objects slow the others down
        seconds["one .npy per image"] = alone["one .npy per image"] * len(codes) / single
        stored = sum(map(len, contents))
        print(f"{len(codes)} x {options.grid} x {options.grid} {codes.dtype}: {codes.nbytes / 1e6:.1f} MB,", end=" ")
        print(f"{stored / 1e6:.1f} MB in the cache")
        for name, value in seconds.items():
            ratio = value / seconds["copy of the array"]
            print(f"{name:<22} {value * 1e3:9.1f} ms {codes.nbytes / value / 1e6:8.0f} MB/s  {ratio:6.1f} x the copy")
        start, checks = training_start(root / "c.zarr")
        print(f"start of vqgpt train   {start:9.2f} s, of which checks {checks:.3f} s: {checks / start:.1%}")


if __name__ == "__main__":
    main()
