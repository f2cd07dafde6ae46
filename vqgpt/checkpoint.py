"""Checkpoints of both networks: one file that explains itself, written atomically, loaded without running code.

A checkpoint is a dict of tensors and plain values: `format`, `version`, `kind` ("vqgan", "gpt", or one of these
and " training" while it is unfinished), and what its kind needs. A finished one can also be a safetensors file: its
network's tensors by name, tensors beside the network under names without a dot, and all else, with a digest, as JSON in
the metadata `vqgpt`. Knows neither images nor tokens.
"""

import hashlib
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vqgpt.errors import InputError, ResourceError
from vqgpt.files import canonical_json, write_atomically
from vqgpt.safetensors_files import read_safetensors
from vqgpt.torch_files import StoredTensor, check_is_file, read_torch_file

FORMAT = "vqgpt checkpoint"
VERSION = 1
SAFETENSORS = ".safetensors"
METADATA = "vqgpt"


def save_checkpoint(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` (tensors, str, numbers, lists, dicts) to `path`, replacing what is there in one step.

    A path that ends in .safetensors becomes such a file: then the only tensors are those of `model`, and beside it.
    """
    content = {"format": FORMAT, "version": VERSION, "kind": kind, **content}
    if path.suffix == SAFETENSORS:
        write_atomically(path, _to_safetensors(content))
    else:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically(path, buffer.getvalue())


def _to_safetensors(content: dict[str, Any]) -> bytes:
    beside = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    assert not any("." in name for name in beside)
    tensors = {name: tensor.contiguous() for name, tensor in {**content["model"], **beside}.items()}
    about = {name: value for name, value in content.items() if name not in ("model", *beside)}
    about["sha256"] = tensors_sha256(about, tensors)
    return safetensors.torch.save(tensors, {METADATA: canonical_json(about).decode()})  # one key: it shuffles several


def read_checkpoint_file(path: Path) -> Any:
    """What a file of torch or safetensors holds, ours or someone else's, its tensors not yet loaded (StoredTensor).

    Raises MissingDataError if it is not there, InputError if it is neither, or damaged.
    """
    if path.suffix != SAFETENSORS:
        return read_torch_file(path)
    metadata, tensors = read_safetensors(path)
    if METADATA not in metadata:
        return tensors
    try:
        about = dict(json.loads(metadata[METADATA]))
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged (its metadata)", "get the file again") from None
    beside = {name: stored for name, stored in tensors.items() if "." not in name}
    return {**about, **beside, "model": {name: stored for name, stored in tensors.items() if name not in beside}}


def load_checkpoint(path: Path, kind: str, how_to_make_one: str) -> dict[str, Any]:
    """Read a checkpoint of this kind onto the CPU.

    Raises MissingDataError if it is not there, with `how_to_make_one` as the remedy, and InputError if it is damaged,
    of another kind, or not ours.
    """
    check_is_file(path, how_to_make_one)
    content = _load_safetensors(path) if path.suffix == SAFETENSORS else _load_torch(path, how_to_make_one)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint of vqgpt", how_to_make_one)
    check_kind(content, kind, path, how_to_make_one)
    return content


def _load_torch(path: Path, how_to_make_one: str) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load itself does not look at the checksums
        if damaged is not None:
            raise InputError(f"{path} is damaged (checksum of {damaged})", how_to_make_one)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        zlib.error,
    ) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(f"{path} is not a checkpoint of vqgpt, or is truncated", how_to_make_one) from None


def _load_safetensors(path: Path) -> Any:
    content = read_checkpoint_file(path)
    if "format" not in content:
        return None
    beside = {name: stored.read() for name, stored in content.items() if isinstance(stored, StoredTensor)}
    model = {name: stored.read() for name, stored in content.pop("model", {}).items()}
    about = {name: value for name, value in content.items() if name not in beside}
    if about.pop("sha256", None) != tensors_sha256(about, {**model, **beside}):
        raise InputError(f"{path} is damaged (its digest)", "export it again")
    return {**about, **beside, "model": model}


def check_kind(content: Mapping[str, Any], kind: str, path: Path, how_to_make_one: str) -> None:
    """Raise InputError unless a checkpoint of ours is of this version and kind."""
    if content.get("version") != VERSION:
        raise InputError(
            f"{path} has version {content.get('version')}; this vqgpt reads version {VERSION}",
            "use another version of vqgpt",
        )
    if content.get("kind") == f"{kind} training":
        raise InputError(f"{path} is an unfinished training", "finish it with the same command, then use its result")
    if content.get("kind") != kind:
        raise InputError(f"{path} is a checkpoint of a {content.get('kind')}, not of a {kind}", how_to_make_one)


def load_weights(model: torch.nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put a state dict into a model. Raises InputError if names or shapes differ, or if a weight is not finite."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit their own configuration ({str(error).splitlines()[0]})", "make it again"
        ) from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: the weights {name} are not all finite", "give another checkpoint")


def weights_sha256(model: torch.nn.Module, architecture: dict[str, Any]) -> str:
    """The identity of a network: SHA-256 over its architecture and all its tensors, by name."""
    return tensors_sha256(architecture, model.state_dict())


def tensors_sha256(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over values that JSON can hold, and tensors by name."""
    digest = hashlib.sha256(canonical_json(about))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def out_of_memory(error: BaseException) -> ResourceError | None:
    """The error that a failed allocation means to the user, or None if `error` is something else."""
    refused = any(words in str(error).lower() for words in ("not enough memory", "allocate memory"))
    if refused or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return ResourceError("out of memory", "use smaller settings (--batch-size, --size), or a larger machine")
    return None
