"""Caches that were committed with format version 1 open for ever, with what is in them.

`python -m tests.test_golden_caches` writes those that are not there yet; a committed one is never written again.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import description
from vqgpt.tokens import CacheWriter, Split, TokenCache, find_faults

FOLDER = Path(__file__).parent / "golden"
DESCRIPTIONS = {
    "v1-classes": description(splits=(Split(name="train", rows=40),), limit=40),
    "v1-bits": description(
        splits=(Split(name="train", rows=33),),
        label_kind="bits",
        class_names=("a", "b", "c"),
        views=("identity", "hflip"),
        codebook_size=1024,
    ),
    "v1-sampled": description(
        splits=(Split(name="samples", rows=32),),
        origin="sampled",
        sampling={"num_samples": 32, "temperature": 1.0, "top_k": None, "classes": [0, 1], "seed": 0},
    ),
    "v1-sampled-log-prob": description(
        splits=(Split(name="samples", rows=40),),
        origin="sampled",
        sampling={"num_samples": 40, "temperature": 1.0, "classes": [0, 1], "seed": 0, "log_prob": True},
    ),
}
DIGESTS = {
    "v1-classes": "79872864467dd27dfb9c43d6d0d1499a6fdb017f1eab2f86881d8d7187dde97b",
    "v1-bits": "f886b4fe71e581c2e370068eb63897ee1ea33734aea8e405800f3306ad36869d",
    "v1-sampled": "256a542e5217cf14c3eab6cc99bf0dac5ec838147c8822bb8b30201ce90c2b05",
    "v1-sampled-log-prob": "f04f41f4bacc4b3742b86598def32918c620d4f971075fe6eab76e6c9e75bb69",
}


def golden_rows(what, start, stop):
    """Codes, labels, source indices and, where there are some, log-probabilities of rows, by arithmetic alone."""
    shape = (stop - start, len(what.views), *what.grid)
    codes = (7 * np.arange(np.prod(shape)) + 31 * start).reshape(shape) % what.codebook_size
    rows = np.arange(start, stop)
    labels = np.stack([rows >> bit & 1 for bit in range(3)], axis=1) if what.label_kind == "bits" else rows % 2
    columns = codes, labels, 2 * rows
    return (*columns, -np.float32(rows + 1) / 8) if what.has_log_prob else columns


def golden_codebook(what):
    return np.arange(what.codebook_size * what.code_dimension, dtype=np.float32).reshape(what.codebook_size, -1) / 8


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_committed_cache_opens_with_what_was_written(name):
    what, path = DESCRIPTIONS[name], FOLDER / f"{name}.zarr"
    cache = TokenCache(path)
    assert cache.digest == DIGESTS[name]
    assert cache.description == what
    np.testing.assert_array_equal(cache.codebook(), golden_codebook(what))
    (split,) = what.splits
    tokens = cache.read_split(split.name)
    starts = range(0, split.rows, what.shard_rows)
    parts = [golden_rows(what, start, min(start + what.shard_rows, split.rows)) for start in starts]
    assert (tokens.log_prob is not None) == what.has_log_prob
    columns = [tokens.codes, tokens.labels, tokens.source_index]
    columns += [tokens.log_prob] if what.has_log_prob else []
    for found, expected in zip(columns, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(found, np.concatenate(expected))
    assert find_faults(path) == []


if __name__ == "__main__":
    for name, what in DESCRIPTIONS.items():
        path = FOLDER / f"{name}.zarr"
        if not path.exists():
            writer = CacheWriter.create_or_resume(path, what, golden_codebook(what), {"vqgpt": "0.1.0"})
            for shard in writer.missing():
                writer.write(shard, *golden_rows(what, shard.start, shard.stop))
        print(f'    "{name}": "{TokenCache(path).digest}",')
