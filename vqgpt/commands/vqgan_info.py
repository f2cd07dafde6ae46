"""`vqgpt vqgan info`: what a VQ-GAN checkpoint is, by its names and shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.options.definition import Command, Flags, argument
from vqgpt.progress import Report


@dataclass(frozen=True, kw_only=True)
class VQGANInfoConfig:
    """`vqgpt vqgan info`."""

    file: Path = argument("A VQ-GAN checkpoint, ours or someone else's; of diffusers, its folder.")


def run(config: VQGANInfoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show what a VQ-GAN checkpoint is; of its weights, the codebook alone is loaded."""
    import numpy as np

    from vqgpt.tokens.arrays import codebook_rank
    from vqgpt.vqgan.checkpoint import OUR_FAMILY, describe_file, open_vqgan, read_codebook

    file = open_vqgan(config.file, "NAME")
    result = {"file": config.file, "bytes": file.path.stat().st_size, **describe_file(file)}
    if file.family == OUR_FAMILY:
        result |= {"dataset": file.content["dataset"], **file.content["figures"]}
    if "codebook_rank" not in result:  # of all codes alike: which ones are in use is not known
        codebook = read_codebook(file)
        finite = codebook[np.isfinite(codebook).all(axis=1)]
        result["codebook_rank"] = codebook_rank(finite, np.ones(len(finite), np.int64))
    return result


COMMAND = Command(words="vqgan info", config=VQGANInfoConfig, run=run, takes_recipe=False)
