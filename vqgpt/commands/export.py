"""`vqgpt export`: a GPT as a model of Hugging Face transformers, or a GPT or VQ-GAN as a safetensors file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqgpt.errors import UsageError
from vqgpt.options.codec import to_json
from vqgpt.options.definition import DATA, DATASET_OF_GPT, Command, Flags, argument, check, option
from vqgpt.progress import Report
from vqgpt.storage.files import check_can_be_written, folder_atomically, write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

FLAG = "OUT"  # what the help calls the place


@dataclass(frozen=True, kw_only=True)
class ModelExportConfig:
    """`vqgpt export`."""

    out: Path = argument("The folder to write, or the file NAME.safetensors.")
    to: Literal["transformers", "safetensors"] = option(
        "transformers",
        "What to write. transformers: a folder that Hugging Face transformers loads, of a GPT with --arch gpt2; "
        "safetensors: one file of any GPT or VQ-GAN, which vqgpt reads wherever it reads a checkpoint.",
        group=DATA,
    )
    dataset: str | None = DATASET_OF_GPT
    checkpoint_gpt: Path | None = option(None, "The GPT to export, trained by vqgpt.", group=DATA)
    checkpoint_vae: Path | None = option(
        None, "Export this VQ-GAN instead, ours or someone else's; --to safetensors only.", group=DATA
    )

    def __post_init__(self) -> None:
        is_file = self.to == "safetensors"
        named = (self.out.suffix == ".safetensors") == is_file
        check(named, "out", self.out, "a name that ends in .safetensors for --to safetensors, and a folder otherwise")
        check(
            self.checkpoint_vae is None or is_file,
            "to",
            self.to,
            "safetensors for a VQ-GAN: transformers has no such model",
        )
        both = self.checkpoint_vae is not None and (self.checkpoint_gpt or self.dataset) is not None
        check(not both, "checkpoint_vae", self.checkpoint_vae, "given without --checkpoint-gpt and --dataset")


def run(config: ModelExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a network in a format that others read: Hugging Face transformers, safetensors."""
    if not flags.dry_run:
        check_can_be_written(config.out)
    return _to_transformers(config, flags) if config.to == "transformers" else _to_safetensors(config, flags)


def _to_safetensors(config: ModelExportConfig, flags: Flags) -> dict[str, Any]:
    from vqgpt.api.sources import find_gpt
    from vqgpt.gpt.checkpoint import KIND, read_gpt
    from vqgpt.storage.checkpoint import save_checkpoint

    check_place(config.out, config, flags.overwrite, flag=FLAG)
    if config.checkpoint_vae:
        kind, content = _vqgan(config.checkpoint_vae)
    else:
        kind, (_, content) = KIND, read_gpt(find_gpt(config.checkpoint_gpt, config.dataset))
    if not flags.dry_run:
        with sole_writer(config.out, config, flags.overwrite, flag=FLAG):
            save_checkpoint(config.out, kind, content)
    return {"out": config.out, "kind": kind, "tensors": len(content["model"])}


def _vqgan(path: Path) -> tuple[str, dict[str, Any]]:
    """What our checkpoint of a VQ-GAN would hold, of anybody's."""
    import torch

    from vqgpt.vqgan.checkpoint import KIND, build_vqgan, open_vqgan, vqgan_content

    file = open_vqgan(path, "NAME")
    model = build_vqgan(file, torch.device("cpu"))
    recorded = {name: file.content.get(name, {}) for name in ("configuration", "figures")}
    return KIND, vqgan_content(model, model.state_dict(), file.content.get("dataset", ""), **recorded)


def _to_transformers(config: ModelExportConfig, flags: Flags) -> dict[str, Any]:
    """Raises UsageError for a GPT of which transformers has no model."""
    from vqgpt.api.sources import find_gpt
    from vqgpt.gpt.checkpoint import read_gpt
    from vqgpt.gpt.transformers_format import transformers_files
    from vqgpt.storage.checkpoint import weights_sha256

    path = find_gpt(config.checkpoint_gpt, config.dataset)
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
    check_place(config.out, config, flags.overwrite, files, FLAG)
    if not flags.dry_run:
        with sole_writer(config.out, config, flags.overwrite, files, FLAG), folder_atomically(config.out) as folder:
            for name, data in files.items():
                write_atomically(folder / name, data)
    return {"out": config.out, "files": sorted(files), "bytes": sum(map(len, files.values()))}


COMMAND = Command(words="export", config=ModelExportConfig, run=run)
