"""A VQModel of diffusers, which is a folder: where its weights lie, and its config.json, which must agree with them.

The config.json is needed: the number of groups of a normalisation, the activation and the kind of normalisation change
the codes, and the weights tell none of them. Knows no tensors.
"""

import reprlib
from pathlib import Path
from typing import Any

from vqgpt.errors import InputError, MissingDataError
from vqgpt.storage.files import read_regular
from vqgpt.storage.stored_tensor import parse_json
from vqgpt.vqgan.architecture import VQGANConfig

CONFIG = "config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first that there is
PLACES = (".", "vqvae", "movq")  # of a VQModel in its own folder, in a pipeline's, and in one of Kandinsky
LARGEST_CONFIG = 2**20  # bytes
COMPUTABLE: dict[str, tuple[Any, ...]] = {  # of what the weights do not tell; diffusers' default is the first
    "norm_type": ("group",),  # not "spatial", with which the decoder of MoVQ normalises by the codes
    "norm_num_groups": (VQGANConfig.norm_groups,),
    "act_fn": ("silu", "swish"),
}
REMEDY = f"get the folder again, with the {CONFIG} of these weights"


def weights_in(folder: Path) -> Path:
    """The file of weights in the folder of a VQModel, or of a pipeline that has one.

    Raises InputError if it is neither, MissingDataError if it has no weights.
    """
    for place in (folder / name for name in PLACES):
        found = [place / name for name in WEIGHTS if (place / name).exists()]
        if found:
            return found[0]
        if (place / CONFIG).exists():
            raise MissingDataError(
                f"{place} has a {CONFIG} and no weights: neither {' nor '.join(WEIGHTS)}",
                "download the rest of the folder",
            )
    raise InputError(
        f"{folder} is a folder, not a checkpoint",
        f"give the path of the file itself, or a folder of diffusers with {CONFIG} and {WEIGHTS[0]}",
    )


def read_description(weights: Path) -> dict[str, Any]:
    """What the config.json beside a file of weights says.

    Raises MissingDataError if there is none, InputError if it is damaged, of another class, or of a network that is not
    computed here.
    """
    path = weights.parent / CONFIG
    try:
        description = parse_json(read_regular(path, LARGEST_CONFIG))
    except FileNotFoundError:
        remedy = f"put the {CONFIG} of these weights beside them"
        raise MissingDataError(
            f"there is no {path}, which says of {weights.name} what weights do not", remedy
        ) from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise InputError(f"{path} is not JSON ({error})", REMEDY) from None
    if not isinstance(description, dict) or description.get("_class_name", "VQModel") != "VQModel":
        found = description.get("_class_name") if isinstance(description, dict) else description
        raise InputError(f"{path} describes {reprlib.repr(found)}, not a VQModel", REMEDY)
    for name, values in COMPUTABLE.items():
        value = description.get(name, values[0])
        if value not in values:
            raise InputError(
                f"{path}: {name} is {reprlib.repr(value)}, which vqgpt does not compute",
                f"give a VQModel whose {name} is {' or '.join(map(str, values))}",
            )
    return description


def check_agrees(description: dict[str, Any], config: VQGANConfig, weights: Path) -> None:
    """Raise InputError unless what config.json says is what the weights are."""
    levels = range(len(config.ch_mult))
    attention = ["Attn" if level in config.attn_levels else "" for level in levels]
    in_weights: dict[str, Any] = {
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "block_out_channels": [config.channels * mult for mult in config.ch_mult],
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "num_vq_embeddings": config.n_embed,
        "vq_embed_dim": config.embed_dim,
        "mid_block_add_attention": config.mid_attention,
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in attention],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(attention)],
    }
    said = {name: description[name] for name in in_weights if name in description}
    if said.get("vq_embed_dim", 0) is None:
        said["vq_embed_dim"] = said.get("latent_channels", config.z_channels)
    contradictions = [
        f"{name}: {reprlib.repr(value)} in {CONFIG}, {in_weights[name]} in the weights"
        for name, value in said.items()
        if value != in_weights[name]
    ]
    if contradictions:
        raise InputError(f"{weights.parent / CONFIG} contradicts the weights ({'; '.join(contradictions)})", REMEDY)
