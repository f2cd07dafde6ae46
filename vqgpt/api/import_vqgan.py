"""`vqgpt vqgan import` and `vqgpt vqgan info`: someone else's VQ-GAN -> a checkpoint of ours; what a checkpoint is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vqgpt.api.options import ImportConfig
from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import to_json
from vqgpt.storage.checkpoint import save_checkpoint
from vqgpt.storage.files import check_can_be_written
from vqgpt.storage.write_lock import check_place, sole_writer
from vqgpt.training.run import check_result
from vqgpt.vqgan.checkpoint import (
    KIND,
    OUR_FAMILY,
    CheckpointFile,
    build_vqgan,
    check_channels,
    describe_config,
    open_vqgan,
    tokenizer_sha256,
    vqgan_content,
)
from vqgpt.vqgan.options import VQGANConfig


def run(config: ImportConfig, overwrite: bool, dry_run: bool) -> dict[str, Any]:
    """Import as configured; the result tells what the VQ-GAN is, and names the checkpoint."""
    dataset = find_dataset(config.dataset) if config.dataset is not None else None
    check_result(config.result, overwrite=True)  # its name; what is there, `check_place` looks at
    check_place(config.result, config, overwrite)
    file = open_vqgan(config.file, "NAME", config.weights, config.config)
    if file.foreign is None:
        raise UsageError(f"{config.file} is a checkpoint of vqgpt already", "use it as it is")
    if dataset is not None and dataset.reader != "folder":
        check_channels(file.config, dataset.channels, dataset.name, config.file)
    if config.size is not None:
        file = replace(file, config=_made_for(file.config, config.size))
    if dry_run:
        return {**describe(file), "checkpoint": config.result}
    check_can_be_written(config.result)
    model = build_vqgan(file, torch.device("cpu"), config.remap)
    configuration = {**to_json(config), "family": file.family}
    content = vqgan_content(model, model.state_dict(), config.dataset or "", configuration, {})
    with sole_writer(config.result, config, overwrite):
        save_checkpoint(config.result, KIND, content)
    return {
        **describe(replace(file, config=model.config)),
        "tokenizer_sha256": tokenizer_sha256(model),
        "checkpoint": config.result,
    }


def info(path: Path) -> dict[str, Any]:
    """What a VQ-GAN checkpoint is. Reads names and shapes, not the weights."""
    file = open_vqgan(path, "NAME")
    result: dict[str, Any] = {"file": path, "bytes": path.stat().st_size, **describe(file)}
    if file.family == OUR_FAMILY:
        result |= {"dataset": file.content["dataset"], **file.content["figures"]}
    return result


def describe(file: CheckpointFile) -> dict[str, Any]:
    """Family, architecture and size of a VQ-GAN, as a user reads them."""
    result = {"family": file.family, **describe_config(file.config)}
    tensors = file.foreign.tensors if file.foreign else file.content["model"]
    result["parameters"] = sum(torch.Size(stored.shape).numel() for stored in tensors.values())
    if file.foreign:
        result["other_tensors_in_the_file"] = file.foreign.extra
    return result


def _made_for(config: VQGANConfig, size: int) -> VQGANConfig:
    """The architecture, known to have been trained at `size`: what its attention levels are in pixels then."""
    if config.size not in (None, size):
        raise InputError(f"--size {size} contradicts the YAML, which says {config.size}", "leave --size out")
    resolutions = tuple(size // 2**level for level in config.attn_levels)
    return replace(config, size=size, attn_resolutions=resolutions)
