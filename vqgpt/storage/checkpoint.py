"""Checkpoints of both networks: one file that explains itself, written atomically, loaded without running code.

A checkpoint is a dict of tensors and plain values: `format`, `version`, `kind` ("vqgan", "gpt", or one of these
and " training" while it is unfinished), and what its kind needs. A finished one can also be a safetensors file: its
network's tensors by name, tensors beside the network under names without a dot, and all else, with a digest, as JSON in
the metadata `vqgpt`. Knows neither images nor tokens.

Files come from strangers. Nothing is allocated before names and shapes are those of the network that a file describes,
and before all that it claims to store can be in it.
"""

import hashlib
import io
import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vqgpt.errors import InputError
from vqgpt.storage.files import canonical_json, check_plain, write_atomically
from vqgpt.storage.stored_tensor import StoredTensor, check_is_file, check_stored, parse_json, read_safetensors
from vqgpt.storage.torch_files import read_torch_file

FORMAT = "vqgpt checkpoint"
VERSION = 1
SAFETENSORS = ".safetensors"
METADATA = "vqgpt"
SHOWN_FAULTS = 3

Shapes = Mapping[str, tuple[int, ...]]


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
    content = _read_safetensors(path) if path.suffix == SAFETENSORS else read_torch_file(path)
    try:
        check_plain(content)
    except ValueError as error:
        raise InputError(f"{path} has no VQ-GAN or GPT in it, but {error}", "give another file") from None
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    metadata, tensors = read_safetensors(path)
    if METADATA not in metadata:
        return dict(tensors)
    try:
        about = dict(parse_json(metadata[METADATA]))
    except (ValueError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged (its metadata)", "get the file again") from None
    beside = {name: stored for name, stored in tensors.items() if "." not in name}
    return {**about, **beside, "model": {name: stored for name, stored in tensors.items() if name not in beside}}


def is_ours(content: Any) -> bool:
    """True if a file says that it is a checkpoint of vqgpt."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_kind(content: Any, kind: str, path: Path, how_to_make_one: str) -> None:
    """Raise InputError unless what a file holds is a checkpoint of ours, of this version and kind."""
    if not is_ours(content):
        raise InputError(f"{path} is not a checkpoint of vqgpt", how_to_make_one)
    if content.get("version") != VERSION:
        found = reprlib.repr(content.get("version"))
        raise InputError(
            f"{path} has version {found}; this vqgpt reads version {VERSION}", "use another version of vqgpt"
        )
    if content.get("kind") == f"{kind} training":
        raise InputError(f"{path} is an unfinished training", "finish it with the same command, then use its result")
    if content.get("kind") != kind:
        found = content.get("kind") if isinstance(content.get("kind"), str) else "thing without a name"
        raise InputError(f"{path} is a checkpoint of a {found}, not of a {kind}", how_to_make_one)


def check_parts(
    content: dict[str, Any], kind: str, parts: Mapping[str, type], path: Path, how_to_make_one: str
) -> dict[str, Any]:
    """What a finished checkpoint of ours holds, tensors not yet loaded, and all else as JSON gives it back.

    Raises InputError unless it is of this version and kind, and has these parts, beside the tensors of `model`.
    """
    check_kind(content, kind, path, how_to_make_one)
    kinds = {"model": dict, "figures": dict, **parts}
    wrong = [name for name, expected in kinds.items() if not isinstance(content.get(name), expected)]
    if not wrong and not all(isinstance(stored, StoredTensor) for stored in content["model"].values()):
        wrong = ["model"]
    about = {name: value for name, value in content.items() if name != "model" and not isinstance(value, StoredTensor)}
    try:
        about = json.loads(canonical_json(about))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} holds values that no {kind} has ({error})", how_to_make_one) from None
    if not wrong and not _are_numbers(about["figures"].values()):
        wrong = ["figures"]
    if wrong:
        raise InputError(f"{path} lacks parts of a {kind} ({', '.join(wrong)})", how_to_make_one)
    return {**content, **about}


def check_fits(shapes: Shapes, build: Callable[[], nn.Module], at_least: int, source: str, remedy: str) -> None:
    """Raise InputError, naming `source`, unless weights are just those of the network that `build` makes.

    It is made without memory for its weights; `at_least` as many weights as that it must have, before even that.
    """
    if at_least > len(shapes):
        raise InputError(f"{source}: {at_least} weights or more are expected, and there are {len(shapes)}", remedy)
    try:
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{source}: there can be no network of these sizes ({reason})", remedy) from None
    faults = [f"{name} is missing" for name in expected if name not in shapes]
    faults += [f"{name} has no place in it" for name in shapes if name not in expected]
    faults += [
        f"{name} is {shape_text(shapes[name])} where {shape_text(shape)} is due"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if faults:
        more = f", and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise InputError(f"{source}: the weights do not fit together: {'; '.join(faults[:SHOWN_FAULTS])}{more}", remedy)


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as a user reads it."""
    return " x ".join(map(str, shape)) or "a single number"


def read_tensors(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same content, its tensors loaded onto the CPU; the digest of a safetensors file of ours is checked.

    Raises InputError if they are damaged, or claim to be more than the file can hold.
    """
    check_stored(_stored_in(content), path)
    loaded = _loaded(content, "", path)
    if path.suffix == SAFETENSORS:
        tensors = {**loaded["model"], **{name: value for name, value in loaded.items() if isinstance(value, Tensor)}}
        about = {name: value for name, value in loaded.items() if name != "model" and name not in tensors}
        if about.pop("sha256", None) != tensors_sha256(about, tensors):
            raise InputError(f"{path} is damaged (its digest)", "export it again")
    return loaded


def _stored_in(value: Any, place: str = "") -> Iterator[tuple[str, StoredTensor]]:
    """Each stored tensor, as often as it is there, with its place; keys with dots give several one place."""
    if isinstance(value, StoredTensor):
        yield place, value
    elif isinstance(value, dict):
        for key, element in value.items():
            yield from _stored_in(element, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for index, element in enumerate(value):
            yield from _stored_in(element, f"{place}.{index}")


def _loaded(value: Any, place: str, path: Path) -> Any:
    if isinstance(value, StoredTensor):
        return read_tensor(value, place, path)
    if isinstance(value, dict):
        return {key: _loaded(element, f"{place}.{key}" if place else str(key), path) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_loaded(element, f"{place}.{index}", path) for index, element in enumerate(value))
    return value


def read_tensor(stored: StoredTensor, name: str, path: Path) -> Tensor:
    """A tensor of a file, on the CPU. Raises InputError, with the file and its name there, if it is damaged."""
    try:
        return stored.read()
    except InputError as error:
        said = error.message.removeprefix(f"{path} ")
        raise InputError(f"{path}: {name}: {said}", error.hint) from None


def load_checkpoint(path: Path, kind: str, how_to_make_one: str) -> dict[str, Any]:
    """An unfinished training of this kind, on the CPU: its `identity`, and the `state` after so many steps.

    Raises MissingDataError if it is not there, with `how_to_make_one` as the remedy, and InputError if it is damaged,
    of another kind, or not ours.
    """
    check_is_file(path, how_to_make_one)
    try:
        content = read_checkpoint_file(path)
        check_kind(content, kind, path, how_to_make_one)
        wrong = [name for name in ("identity", "state") if not isinstance(content.get(name), dict)]
        wrong = wrong or _wrong_in_state(content["state"])
        if wrong:
            raise InputError(f"{path} lacks parts of a {kind} ({', '.join(wrong)})", how_to_make_one)
        return read_tensors(content, path)
    except InputError as error:
        raise InputError(error.message, how_to_make_one) from None


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _wrong_in_state(state: dict[str, Any]) -> list[str]:
    """Names of what cannot be in the state of a training, or is needed and not there; before a step, its number is."""
    kinds = {"step": int, "ended": bool, "losses": list, "best": float, "worse": int, "training": dict}
    needed = kinds if state.get("step") else ("step",)
    wrong = [
        name for name, kind in kinds.items() if name in (*needed, *state) and not isinstance(state.get(name), kind)
    ]
    if not wrong and state["step"] < 0:
        wrong = ["step"]
    if not wrong and not _are_numbers(state.get("losses", [])):
        wrong = ["losses"]
    record = state.get("unvalidated")  # of the epoch that ended with this step
    if record and not (
        isinstance(record, dict) and record.get("step") == state.get("step") and _are_numbers(record.values())
    ):
        wrong.append("unvalidated")
    return wrong


def load_weights(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Put a state dict into a model. Raises InputError if names, shapes or types differ, or if one is not finite."""
    for name, tensor in model.state_dict().items():
        if name in weights and weights[name].is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{path}: {name} has numbers of type {weights[name].dtype}", "get the file again")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit their own configuration ({str(error).splitlines()[0]})", "make it again"
        ) from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            remedy = "give another checkpoint: weights that are not finite compute nothing"
            raise InputError(f"{path}: the weights {name} are not all finite", remedy)


def weights_sha256(model: nn.Module, architecture: dict[str, Any]) -> str:
    """The identity of a network: SHA-256 over its architecture and all its tensors, by name."""
    return tensors_sha256(architecture, model.state_dict())


def tensors_sha256(about: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over values that JSON can hold, and tensors by name."""
    digest = hashlib.sha256(canonical_json(about))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
