"""What a stage of `vqgpt run` made, and of what: a small JSON file, runs/DATASET/STAGE.made.json, compared by content.

    options, digests of inputs, digests of results  <->  Made  ->  what changed since, in words

File times say nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.data.file_trees import open_tree
from vqgpt.data.options import ImageOptions
from vqgpt.data.reading import check_options
from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import flat, from_json, to_json
from vqgpt.options.definition import options_of
from vqgpt.options.paths import CachePath, CacheURL
from vqgpt.storage.checkpoint import is_ours, read_checkpoint_file
from vqgpt.storage.files import canonical_json, open_regular, read_regular, sha256, write_atomically
from vqgpt.tokens.reader import read_manifest

LARGEST_RECORD = 2**20  # bytes
LEAVE_THE_RESULT_ALIKE = {  # where files lie is not what is in them, which is an input of its own
    *("dataset", "data_root", "out", "cache", "checkpoint_vae", "checkpoint_gpt"),
    *("device", "num_workers", "wandb", "tensorboard", "keep_last", "shard", "show", "samples", "seconds"),
}
ALIKE_IN_STAGE = {"tokenize": {"batch_size"}, "vqgan-train": {"stream"}}


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a stage made: the digests of its results, by path, of which options and of which inputs, by their digests.

    It is not `finished` while the stage runs. `seconds` is how long that took, None if it is not known.
    """

    options: dict[str, Any]
    inputs: dict[str, str]
    results: dict[str, str]
    finished: bool = True
    seconds: float | None = None


def read_record(path: Path) -> Made | None:
    """The record at `path`; None if there is none, or none that can be read."""
    try:
        return from_json(Made, json.loads(read_regular(path, LARGEST_RECORD)), str(path))
    except (FileNotFoundError, InputError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def write_record(path: Path, made: Made) -> None:
    """Write a record in one step."""
    write_atomically(path, canonical_json(to_json(made)))


def options_that_count(table: str, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration in JSON form, the options that the stage's result depends on, by name."""
    alike = LEAVE_THE_RESULT_ALIKE | ALIKE_IN_STAGE.get(table, set())
    return {name: value for name, value in flat(configuration).items() if name not in alike}


def what_changed(table: str, config_class: type, now: Made, before: Made) -> str:
    """What differs between two records of one stage, as a user reads it; "" if nothing does.

    An option that the earlier one does not know, from another version of vqgpt, had its default.
    """
    changes = []
    for item in options_of(config_class):
        if item.name in now.options:
            default = list(item.default) if isinstance(item.default, tuple) else item.default
            old, new = before.options.get(item.name, default), now.options[item.name]
            if old != new:
                changes.append(f"{item.key} was {_shown(old)}, is {_shown(new)}")
    settings = [f"[{table}] {'; '.join(changes)}"] if changes else []
    names = [name for name in now.inputs if now.inputs[name] != before.inputs.get(name)]
    return "; ".join([*settings, *(f"the {name} changed" for name in names)])


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def images_digest(options: ImageOptions) -> str | None:
    """Of a published dataset its name, whose files are checked as they are fetched; of one's own, all names and files.

    None if they are not here. Raises UsageError for a folder that was not named, OSError for an unreadable file.
    """
    dataset = find_dataset(options.dataset)
    if dataset.reader != "folder":
        return dataset.name
    if options.data_root is not None and not options.root.exists():
        return None
    check_options(dataset, options)
    tree = open_tree(options.root)
    return sha256(canonical_json({ascii(name): sha256(tree.read(name)) for name in tree.sizes}))


def content_digest(path: CachePath) -> str | None:
    """SHA-256 of a file, or the digest of a token cache; None if it is not there, not finished, or cannot be read."""
    if isinstance(path, CacheURL) or path.suffix == ".zarr":
        try:
            manifest = read_manifest(path)
        except (MissingDataError, InputError):
            return None
        return manifest.digest if manifest.complete else None
    if not path.exists():
        return None
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made_by_command(table: str, path: Path, inputs: Mapping[str, str]) -> Made | None:
    """What a trained network says itself of how it was made; None for an imported one, which does not say."""
    content = read_checkpoint_file(path)
    configuration = content["configuration"] if is_ours(content) else {}
    if not configuration or "family" in configuration:
        return None
    known = {"token cache": content["cache_digest"]} if "cache_digest" in content else {}
    return Made(options=options_that_count(table, configuration), inputs={**inputs, **known}, results={})
