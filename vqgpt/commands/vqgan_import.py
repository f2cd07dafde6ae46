"""`vqgpt vqgan import`: someone else's VQ-GAN -> a checkpoint of ours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqgpt.data.table import find_dataset
from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import to_json
from vqgpt.options.definition import (
    DATA,
    REMAP,
    THIRD_PARTIES,
    Command,
    Flags,
    argument,
    check_positive,
    option,
    out_option,
)
from vqgpt.options.paths import vqgan_path
from vqgpt.progress import Report
from vqgpt.storage.files import check_can_be_written
from vqgpt.storage.write_lock import check_place, sole_writer

if TYPE_CHECKING:
    from vqgpt.vqgan.architecture import VQGANConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """`vqgpt vqgan import`."""

    file: Path = argument(f"A checkpoint of {THIRD_PARTIES}: .ckpt, .pt, .bin, .safetensors, or a folder.")
    config: Path | None = option(
        None,
        "The YAML beside it, for what weights do not tell, such as the image size; refused if it contradicts them.",
        group=DATA,
    )
    weights: Literal["model", "ema"] | None = option(
        None, "Which weights to take from a file that has both (default: model).", group=DATA
    )
    lookup: Literal["nearest", "cosine", "dot"] | None = option(
        None,
        "How its codes are found, where neither the file nor a YAML tells: by distance, by direction, or by dot "
        "product (IBQ).",
        group=DATA,
    )
    size: int | None = option(None, "Image size in pixels at which it was trained, where no YAML tells.", group=DATA)
    remap: Path | None = REMAP
    dataset: str | None = option(None, "Make it the VQ-GAN of this dataset: runs/DATASET/vqgan.pt.", group=DATA)
    out: Path | None = out_option("The checkpoint to write", "runs/NAME OF FILE/vqgan.pt")

    def __post_init__(self) -> None:
        check_positive(self, "size")

    @property
    def result(self) -> Path:
        """The checkpoint to write."""
        return self.out or vqgan_path(self.dataset or self.file.absolute().stem)


def run(config: ImportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Make a checkpoint of ours from someone else's."""
    import torch

    from vqgpt.storage.checkpoint import save_checkpoint
    from vqgpt.training.run import check_result
    from vqgpt.vqgan import checkpoint

    dataset = find_dataset(config.dataset) if config.dataset is not None else None
    check_result(config.result, overwrite=True)  # its name; what is there, `check_place` looks at
    check_place(config.result, config, flags.overwrite)
    file = checkpoint.open_vqgan(config.file, "NAME", config.weights, config.config, config.lookup)
    if file.third_party is None:
        raise UsageError(f"{config.file} is a checkpoint of vqgpt already", "use it as it is")
    if dataset is not None and dataset.reader != "folder":
        checkpoint.check_channels(file.config, dataset.channels, dataset.name, config.file)
    checkpoint.check_lookup_is_known(file)
    if config.size is not None:
        file = replace(file, config=_made_for(file.config, config.size))
    if flags.dry_run:
        return {**checkpoint.describe_file(file), "checkpoint": config.result}
    check_can_be_written(config.result)
    model = checkpoint.build_vqgan(file, torch.device("cpu"), config.remap)
    configuration = {**to_json(config), "family": file.family}
    content = checkpoint.vqgan_content(model, model.state_dict(), config.dataset or "", configuration, {})
    with sole_writer(config.result, config, flags.overwrite):
        save_checkpoint(config.result, checkpoint.KIND, content)
    return {
        **checkpoint.describe_file(replace(file, config=model.config)),
        "tokenizer_sha256": checkpoint.tokenizer_sha256(model),
        "decoder_sha256": checkpoint.decoder_sha256(model),
        "checkpoint": config.result,
    }


def _made_for(config: "VQGANConfig", size: int) -> "VQGANConfig":
    """The architecture, known to have been trained at `size`: what its attention levels are in pixels then."""
    if config.size not in (None, size):
        raise InputError(f"--size {size} contradicts the YAML, which says {config.size}", "leave --size out")
    return config.made_for(size)


COMMAND = Command(words="vqgan import", config=ImportConfig, run=run)
