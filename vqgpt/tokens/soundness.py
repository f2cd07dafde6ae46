"""Whether a manifest can be true: checked before anything that it claims is allocated, read, or used as a path.

A manifest is untrusted even if its digest holds: whoever made the cache made the digest. Imports numpy and zarr only.
"""

import math
import re
from typing import Any

from vqgpt.options.paths import can_be_a_dataset
from vqgpt.tokens.layout import ArrayLayout
from vqgpt.tokens.manifest import Description, Manifest, StoredFile

LARGEST_ARRAY = 2**40  # elements
LARGEST_SHARD = 2**30  # bytes, decoded
LARGEST_METADATA = 2**20  # bytes
LARGEST_SIDE = 2**16  # pixels, channels
LONGEST_TEXT = 2**12  # characters of a name
MOST_NAMES = 2**20
MOST_SPLITS = 100
DIGEST = re.compile("[0-9a-f]{64}")


def description_fault(description: Description) -> str:
    """What in a description cannot be, or ""."""
    sizes = (
        *description.image_size,
        description.image_channels,
        *description.grid,
        description.codebook_size,
        description.code_dimension,
        description.shard_rows,
        1 if description.limit is None else description.limit,
    )
    names = [split.name for split in description.splits]
    texts = (*description.class_names, *description.views, description.precision, description.tokenizer_sha256)
    if not can_be_a_dataset(description.dataset):
        return "a name of a dataset that cannot be"
    if description.label_kind == "bits" and not description.class_names:
        return "bits without names"
    if (
        min(sizes) <= 0
        or max(sizes) > LARGEST_ARRAY
        or max(*description.image_size, description.image_channels) > LARGEST_SIDE
        or description.codebook_size > 2**16
        or any(split.rows < 0 for split in description.splits)
    ):
        return "impossible sizes"
    if not description.views or len(set(names)) < len(names) or len(names) > MOST_SPLITS:
        return "no views, too many splits, or two of one name"
    if max(map(len, texts)) > LONGEST_TEXT or len(description.class_names) > MOST_NAMES:
        return "names that are too long, or too many"
    if description.val_split is not None and not 0 < description.val_split < 1:
        return "an impossible share of held-out images"
    fault = _preprocessing_fault(description) or _sampling_fault(description)
    if fault:
        return fault
    if not all(
        can_be_a_dataset(name) and name.isascii() and name.isidentifier() and name != "codebook" for name in names
    ):
        return "names of splits that cannot be"
    for layout in description.all_layouts().values():
        rows = max(layout.shape[0], layout.shard_rows)
        if rows * math.prod(layout.shape[1:]) > LARGEST_ARRAY:
            return "impossible sizes"
        if layout.shard_rows * layout.row_bytes > LARGEST_SHARD:
            return "shards of impossible sizes"
    return ""


def _preprocessing_fault(description: Description) -> str:
    """What of how images were prepared cannot be; each setting may be absent."""
    recorded = description.preprocessing
    texts = (recorded.get(name, "") for name in ("rule", "fit", "background"))
    unverified = recorded.get("unverified", [])
    if not all(isinstance(text, str) for text in texts) or not _is_list_of(str, unverified):
        return "a preprocessing that cannot be"
    return ""


def _sampling_fault(description: Description) -> str:
    """What in the labels and prompts that images were drawn for, in turn, cannot be; both may be absent."""
    if description.origin == "encoded":
        return "settings of sampling, and images that were encoded" if description.sampling else ""
    labels, prompts = description.sampling.get("classes"), description.sampling.get("prompts", [])
    number = len(description.class_names)
    if labels is None and description.label_kind == "bits":
        return "sampled images without the bits they were drawn for"
    if labels is not None:
        if not isinstance(labels, list) or not labels:
            return "sampled images of impossible labels"
        bits = description.label_kind == "bits"
        highest = number - 1 if description.label_kind == "class" else -1
        if not all(_is_array((number,) if bits else (), label, -1, 1 if bits else highest) for label in labels):
            return "sampled images of impossible labels"
    if not isinstance(prompts, list) or not all(
        _is_array(description.grid, prompt, -1, description.codebook_size - 1) for prompt in prompts
    ):
        return "impossible prompts"
    return ""


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(element) is kind for element in value)


def _is_array(shape: tuple[int, ...], value: Any, lowest: int, highest: int) -> bool:
    """Whether a value out of JSON is nested lists of this shape, of whole numbers in this range."""
    if not shape:
        return type(value) is int and lowest <= value <= highest
    is_list = isinstance(value, list) and len(value) == shape[0]
    return is_list and all(_is_array(shape[1:], element, lowest, highest) for element in value)


def manifest_fault(manifest: Manifest) -> str:
    """What in a manifest, whose description is sound, cannot be, or ""."""
    description = manifest.description
    names = [split.name for split in description.splits]
    if set(manifest.shards) != set(names) or not set(manifest.statistics) <= set(names):
        return "other splits than it describes"
    layouts = description.all_layouts()
    codebook = f"codebook/{layouts['codebook'].shard_key(0)}"
    metadata = {f"{folder}/zarr.json" for folder in (*names, *layouts)}
    if set(manifest.files) != {codebook, *metadata}:
        return "paths of files that are not of this format"
    limits = {**dict.fromkeys(metadata, LARGEST_METADATA), codebook: _largest_file(layouts["codebook"])}
    if not all(_can_be(file, limits[key]) for key, file in manifest.files.items()):
        return "impossible files"
    for split, shards in manifest.shards.items():
        for index, shard in shards.items():
            codes = layouts[f"{split}/codes"]
            within = 0 <= index < codes.num_shards and 0 <= shard.max_code < description.codebook_size
            if not within or shard.rows != codes.rows_in(index):
                return f"impossible shard {split}/{index}"
            files = {name: getattr(shard, name) for name in description.layouts(split)}
            sound = all(
                file and _can_be(file, _largest_file(layouts[f"{split}/{name}"])) for name, file in files.items()
            )
            if not sound or (shard.log_prob and not description.has_log_prob):
                return f"impossible files of shard {split}/{index}"
    for split, statistics in manifest.statistics.items():
        histogram, most = statistics.histogram, description.codebook_size
        if len(histogram) != most or min(histogram) < 0 or sum(histogram) > LARGEST_ARRAY:
            return f"a histogram of {split} that cannot be"
        if not 0 <= statistics.used_codes <= most or not 0 <= statistics.perplexity <= most + 1:
            return f"statistics of {split} that cannot be"
    return ""


def _largest_file(layout: ArrayLayout) -> int:
    """More bytes than the file of a shard can have, by far."""
    return 2 * layout.shard_rows * layout.row_bytes + 64 * layout.chunks_per_shard + LARGEST_METADATA


def _can_be(file: StoredFile, most: int) -> bool:
    return 0 <= file.bytes <= most and DIGEST.fullmatch(file.sha256) is not None
