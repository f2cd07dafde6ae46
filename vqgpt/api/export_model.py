"""`vqgpt export`: a GPT as a model of Hugging Face transformers, or a GPT or VQ-GAN as a safetensors file."""

from pathlib import Path
from typing import Any

import torch

from vqgpt.api.find import find_gpt
from vqgpt.api.output_options import ModelExportConfig
from vqgpt.errors import UsageError
from vqgpt.gpt.checkpoint import KIND, read_gpt
from vqgpt.gpt.transformers_format import transformers_files
from vqgpt.options.codec import to_json
from vqgpt.storage.checkpoint import save_checkpoint, weights_sha256
from vqgpt.storage.files import check_can_be_written, folder_atomically, write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

FLAG = "OUT"  # what the help calls the place


def run(config: ModelExportConfig, overwrite: bool, dry_run: bool) -> dict[str, Any]:
    """Export as configured; the result names what was written.

    Raises UsageError if it exists, or if the format cannot hold the model.
    """
    if not dry_run:
        check_can_be_written(config.out)
    if config.to == "transformers":
        return _export_to_transformers(config, overwrite, dry_run)
    check_place(config.out, config, overwrite, flag=FLAG)
    if config.checkpoint_vae:
        kind, content = _vqgan(config.checkpoint_vae)
    else:
        kind, (_, content) = KIND, read_gpt(_gpt_path(config))
    if not dry_run:
        with sole_writer(config.out, config, overwrite, flag=FLAG):
            save_checkpoint(config.out, kind, content)
    return {"out": config.out, "kind": kind, "tensors": len(content["model"])}


def _gpt_path(config: ModelExportConfig) -> Path:
    return find_gpt(config.checkpoint_gpt, config.dataset)


def _vqgan(path: Path) -> tuple[str, dict[str, Any]]:
    """What our checkpoint of a VQ-GAN would hold, of anybody's."""
    from vqgpt.vqgan import checkpoint as vqgan_checkpoint

    file = vqgan_checkpoint.open_vqgan(path, "NAME")
    model = vqgan_checkpoint.build_vqgan(file, torch.device("cpu"))
    told = {name: file.content.get(name, {}) for name in ("configuration", "figures")}
    dataset = file.content.get("dataset", "")
    return vqgan_checkpoint.KIND, vqgan_checkpoint.vqgan_content(model, model.state_dict(), dataset, **told)


def _export_to_transformers(config: ModelExportConfig, overwrite: bool, dry_run: bool) -> dict[str, Any]:
    path = _gpt_path(config)
    model, content = read_gpt(path)
    architecture = model.config
    if architecture.options.arch != "gpt2":
        raise UsageError(
            f"{path} has the architecture {architecture.options.arch}, which no model of transformers has",
            "export it with --to safetensors, or train one with --arch gpt2",
        )
    if architecture.options.condition == "bits":
        raise UsageError(
            f"{path} is conditioned on bits, whose embeddings are added to the start token: transformers takes a token",
            "export it with --to safetensors, or train one with --condition class",
        )
    files = transformers_files(
        model.state_dict(),
        architecture,
        content["cache_description"],
        content["cache_digest"],
        weights_sha256(model, to_json(architecture)),
        content["figures"],
    )
    check_place(config.out, config, overwrite, files, FLAG)
    if not dry_run:
        with sole_writer(config.out, config, overwrite, files, FLAG), folder_atomically(config.out) as folder:
            for name, data in files.items():
                write_atomically(folder / name, data)
    return {"out": config.out, "files": sorted(files), "bytes": sum(map(len, files.values()))}
