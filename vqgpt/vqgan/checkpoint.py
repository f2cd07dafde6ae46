"""A VQ-GAN as a file, ours or someone else's, and its identity.

The weights say what the network is, and for what they do not tell there is what lies beside them: `yaml_beside.py`,
`diffusers_folder.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import from_json, one_line, to_json
from vqgpt.storage.checkpoint import (
    check_parts,
    is_ours,
    load_weights,
    read_checkpoint_file,
    read_tensor,
    read_tensors,
    tensors_sha256,
    weights_sha256,
)
from vqgpt.storage.stored_tensor import StoredTensor, check_is_file
from vqgpt.tokens.third_party import read_npy
from vqgpt.vqgan.architecture import Lookup, VQGANConfig
from vqgpt.vqgan.diffusers_folder import weights_in
from vqgpt.vqgan.layouts import check_fits, is_like_ibq
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.third_party import ThirdPartyVQGAN, WhichWeights, open_third_party
from vqgpt.vqgan.yaml_beside import with_yaml

KIND = "vqgan"
PARTS = {"architecture": dict, "dataset": str}
DECODER = ("decoder.", "post_quant_conv.")
OUR_FAMILY = "vqgpt"
LARGEST_REMAP = 2**20  # bytes, of some ten thousand ids


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """What a file says it is, before its weights are read. `content` is of ours, `third_party` of someone else's.

    Without `lookup_is_known`, the lookup in `config` is a guess, and nothing may be computed with it.
    """

    path: Path
    family: str
    config: VQGANConfig
    content: Mapping[str, Any]
    third_party: ThirdPartyVQGAN | None
    lookup_is_known: bool = True

    __repr__ = one_line

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The weights by the names of our network, not yet read."""
        return self.third_party.tensors if self.third_party else self.content["model"]


def vqgan_content(
    model: VQGAN, weights: Mapping[str, Tensor], dataset: str, configuration: dict[str, Any], figures: dict[str, float]
) -> dict[str, Any]:
    """What a VQ-GAN checkpoint holds. `configuration` is the resolved configuration of the command that made it."""
    return {
        "architecture": to_json(model.config),
        "model": {name: tensor.contiguous() for name, tensor in weights.items()},
        "dataset": dataset,
        "configuration": configuration,
        "figures": figures,
    }


def open_vqgan(
    path: Path,
    dataset: str,
    which: WhichWeights | None = None,
    yaml: Path | None = None,
    lookup: Lookup | None = None,
) -> CheckpointFile:
    """Look into a checkpoint: whose it is, and its architecture, held against the YAML if there is one.

    `path` is a file, or a folder of diffusers: then the result has the path of its weights.
    `lookup` is how its codes are found, for files that do not tell.

    Raises MissingDataError if there is none at `path`, InputError if it is not a VQ-GAN.
    """
    path = weights_in(path) if path.is_dir() else path
    check_is_file(path, how_to_make(path, dataset))
    content = read_checkpoint_file(path)
    if is_ours(content):
        content = check_parts(content, KIND, PARTS, path, how_to_make(path, dataset))
        if yaml or which or lookup:
            remedy = "leave --config, --weights and --lookup out: it already says what they say"
            raise InputError(f"{path} is a checkpoint of vqgpt", remedy)
        config = from_json(VQGANConfig, content["architecture"], str(path))
        check_fits({name: stored.shape for name, stored in content["model"].items()}, config, str(path))
        return CheckpointFile(path=path, family=OUR_FAMILY, config=config, content=content, third_party=None)
    third_party = open_third_party(path, content, which)
    config, told = with_yaml(third_party.config, yaml) if yaml else (third_party.config, None)
    if lookup is not None:
        config = _with_lookup(config, told, lookup, path)
    if config.lookup == "dot" and which is None and third_party.has_average:
        raise InputError(
            f"{path} has the weights and their moving average, and IBQ's own code encodes with the average",
            "give --weights ema, or --weights model for the others",
        )
    known = (told or lookup) is not None or not is_like_ibq(config)
    file = CheckpointFile(path=path, family=third_party.family, config=config, content={}, third_party=third_party)
    return replace(file, lookup_is_known=known)


def _with_lookup(config: VQGANConfig, told: Lookup | None, lookup: Lookup, path: Path) -> VQGANConfig:
    """The architecture with the `lookup` that a user says it has. `told` is what the YAML says."""
    if told is not None and told != lookup:
        raise InputError(f"--lookup {lookup} contradicts the YAML, which says {told}", "leave --lookup out")
    if lookup != config.lookup and (config.lookup != "nearest" or lookup == "logits"):
        raise InputError(
            f"--lookup {lookup} contradicts the weights in {path}, whose lookup is {config.lookup}",
            "leave --lookup out",
        )
    return replace(config, lookup=lookup)


def check_lookup_is_known(file: CheckpointFile) -> None:
    """Raise InputError if a file does not tell how its codes are found, and nobody else did."""
    if not file.lookup_is_known:
        raise InputError(
            f"{file.path} has the layers of IBQ's tokenizers and the weights of any VQModel: it does not tell whether "
            "its codes are found by dot product, as IBQ does, or by distance",
            "say so: vqgpt vqgan import FILE --lookup dot (or nearest), or --config with its YAML",
        )


def how_to_make(path: Path, dataset: str) -> str:
    """The command that makes a VQ-GAN for a dataset at `path`."""
    return f"train one with: vqgpt vqgan train --dataset {dataset} --out {path}"


def build_vqgan(file: CheckpointFile, device: torch.device, remap: Path | None = None) -> VQGAN:
    """The VQ-GAN of a file in eval mode, restricted to the codes that the list `remap` names, if there is one.

    Raises InputError if the weights are damaged or do not fit, or if the list does not fit the codebook.
    """
    check_lookup_is_known(file)
    if file.third_party:
        weights = file.third_party.read(file.path)
    else:
        weights = read_tensors(dict(file.content), file.path)["model"]
    model = VQGAN(file.config)
    load_weights(model, weights, file.path)
    used = model.quantize.used
    if used is not None and not 0 <= int(used.min()) <= int(used.max()) < file.config.n_embed:
        raise InputError(f"{file.path}: quantize.used has ids beyond the codebook", "get the file again")
    if remap is not None:
        weights = model.state_dict() | {"quantize.used": read_remap(remap, file.config.n_embed)}
        model = VQGAN(replace(file.config, used_codes=len(weights["quantize.used"])))
        model.load_state_dict(weights)
    return model.to(device).eval()


def read_codebook(file: CheckpointFile) -> NDArray[np.float32]:
    """The codebook of a file alone, (K, D). Raises InputError if it is damaged."""
    name = "quantize.embedding.weight"
    return read_tensor(file.tensors[name], name, file.path).float().numpy()


def load_vqgan(path: Path, dataset: str, device: torch.device, remap: Path | None = None) -> VQGAN:
    """A VQ-GAN in eval mode, ours or someone else's. Raises what `open_vqgan` and `build_vqgan` raise."""
    return build_vqgan(open_vqgan(path, dataset), device, remap)


def check_channels(config: VQGANConfig, channels: int, images: str, path: Path) -> None:
    """Raise InputError if the VQ-GAN at `path` takes other images than `images`, which have `channels`."""
    if config.image_channels != channels:
        remedy = "give a VQ-GAN that was trained on such images"
        if config.image_channels in (1, 3):
            remedy += f", or convert them with --image-channels {config.image_channels}"
        taken = f"{path} takes images of {config.image_channels} channels"
        raise InputError(f"{taken}, {images} has {channels}", remedy)


def read_remap(path: Path, n_embed: int) -> Tensor:
    """The used codes in a .npy file, (R,) int64. Raises InputError if they are no list of different codebook ids."""
    hint = "give a .npy file with a list of different codebook ids"
    if not path.exists():
        raise MissingDataError(f"there is no file {path}", hint)
    ids = read_npy(path, LARGEST_REMAP, hint)
    if ids.ndim != 1 or len(ids) < 2:
        raise InputError(f"{path} is not a list of two or more whole numbers", hint)
    if len(np.unique(ids)) < len(ids) or ids.min() < 0 or ids.max() >= n_embed:
        raise InputError(f"{path} has ids twice, or not between 0 and {n_embed - 1}", hint)
    return torch.from_numpy(ids.astype(np.int64))


def tokenizer_sha256(model: VQGAN) -> str:
    """The identity that token caches record: over encoder and codebook, all that the codes of an image depend on."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(DECODER)}
    return tensors_sha256({"codes": model.config.what_codes_depend_on}, weights)


def decoder_sha256(model: VQGAN) -> str:
    """The identity of the decoder: over all that, with the codebook, the images of codes depend on."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(DECODER)}
    return tensors_sha256({"images": model.config.what_codes_depend_on}, weights)


def vqgan_sha256(model: VQGAN) -> str:
    """The identity of the whole network. Token caches recorded it before 29 November 2026."""
    return weights_sha256(model, model.config.what_codes_depend_on)


def tokenizer_identities(model: VQGAN) -> tuple[str, str]:
    """By which token caches may know this encoder and codebook: as they record it now, and as they did before."""
    return tokenizer_sha256(model), vqgan_sha256(model)


def describe_file(file: CheckpointFile) -> dict[str, Any]:
    """Family, architecture and size of a VQ-GAN, as a user reads them."""
    return {
        "family": file.family,
        **{name: value for name, value in asdict(file.config).items() if value is not None},
        **({} if file.lookup_is_known else {"lookup": "dot (IBQ) or nearest: the file does not say"}),
        "downsampling": file.config.downsampling,
        "codebook_size": file.config.codebook_size,
        "parameters": sum(math.prod(stored.shape) for stored in file.tensors.values()),
        **({"other_tensors_in_the_file": file.third_party.extra} if file.third_party else {}),
    }
