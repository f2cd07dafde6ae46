"""A VQ-GAN on arrays: images (N, C, H, W) uint8 <-> codes (N, h, w); and sheets of images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from vqgpt.api.library import Generator
from vqgpt.errors import InputError, UsageError
from vqgpt.options.codec import num_parameters
from vqgpt.pictures import sheet
from vqgpt.progress import silent
from vqgpt.runtime.device import select_device
from vqgpt.vqgan import checkpoint
from vqgpt.vqgan.coding import decode_in_passes, encode_images
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.pixels import images_per_pass


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A VQ-GAN: images (N, C, H, W) uint8 <-> codes (N, h, w)."""

    model: VQGAN
    device: torch.device

    def __repr__(self) -> str:
        config = self.model.config
        network = f"VQ-GAN of {num_parameters(self.model):,} parameters on {self.device}"
        images = f"images of {config.image_channels} channel{'s'[: config.image_channels != 1]}"
        side = config.downsampling
        return f"Tokenizer({network}, {images}, {config.codebook_size} codes of {side} x {side} pixels)"

    @property
    def sha256(self) -> str:
        """Its identity, which token caches and GPTs record."""
        return checkpoint.tokenizer_sha256(self.model)

    def encode(self, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.int64]:
        """The codes of images that have the size of its training, or another that its grid divides.

        Raises UsageError for other arrays.
        """
        channels, side = self.model.config.image_channels, self.model.config.downsampling
        suits = images.ndim == 4 and images.shape[1] == channels and images.dtype == np.uint8 and images.size
        if not suits or images.shape[2] % side or images.shape[3] % side:
            raise UsageError(
                f"images of shape {images.shape} and type {images.dtype} cannot be encoded",
                f"give (N, {channels}, H, W) uint8, H and W multiples of {side}",
            )
        at_once = images_per_pass(*images.shape[2:])
        parts = (images[start : start + at_once, None] for start in range(0, len(images), at_once))
        codes = [encode_images(self.model, part, precision)[:, 0] for part in parts]
        return np.concatenate(codes).astype(np.int64)

    def decode(self, codes: NDArray[np.integer[Any]], precision: str = "fp32") -> NDArray[np.uint8]:
        """The images that codes stand for. Raises UsageError for codes that it does not have."""
        size = self.model.config.codebook_size
        if codes.ndim != 3 or not codes.size or not 0 <= codes.min() <= codes.max() < size:
            raise UsageError(
                f"codes of shape {codes.shape} cannot be decoded", f"give (N, h, w) codes of 0 to {size - 1}"
            )
        return decode_in_passes(self.model, codes, precision, silent)


def load_vqgan(path: str | Path, device: str = "auto", tokens_of: Generator | None = None) -> Tokenizer:
    """A VQ-GAN in a file, ours or of taming-transformers, LlamaGen or GenerativeZoo.

    With `tokens_of`, raises InputError if it is not the one that a GPT was trained with. Raises MissingDataError if
    there is none, InputError if it is not one.
    """
    chosen = select_device(device)
    tokenizer = Tokenizer(model=checkpoint.load_vqgan(Path(path), "NAME", chosen), device=chosen)
    if tokens_of is not None and tokens_of.description is not None:
        ours, theirs = tokenizer.sha256, tokens_of.description.tokenizer_sha256
        if ours != theirs:
            raise InputError(
                f"the GPT was trained with another VQ-GAN ({theirs[:12]}) than {path} ({ours[:12]})",
                "load the VQ-GAN that encoded its training images",
            )
    return tokenizer


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str] | None = None, columns: int = 10) -> Image:
    """A picture of images (N, C, H, W), as `vqgpt render` makes it; `save` writes it to a file."""
    texts = [""] * len(images) if captions is None else captions
    return sheet.contact_sheet(sheet.to_displayable(images, 0), texts, columns)
