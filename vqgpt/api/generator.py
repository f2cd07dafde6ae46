"""What the commands do, on arrays: `vqgpt.load_gpt`, `vqgpt.load_vqgan`, `vqgpt.contact_sheet`.

    Generator.sample -> codes (N, h, w) int64  --Tokenizer.decode-->  images (N, C, H, W) uint8  --encode-->  codes

A Generator works where the VQ-GAN's code cannot be imported. Errors are those of `vqgpt.errors`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.api.options import SampleConfig
from vqgpt.api.sample import check_can_guide, check_knows_untold
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt import trained as trained_gpt
from vqgpt.gpt.checkpoint import LoadedGPT
from vqgpt.gpt.labels import KnownLabels, number_word, untold
from vqgpt.gpt.options import SamplingOptions
from vqgpt.gpt.sampling import sample_codes
from vqgpt.gpt.scoring import nats_of_images
from vqgpt.options.shared import RunOptions
from vqgpt.progress import silent
from vqgpt.runtime.device import resolve_precision, select_device
from vqgpt.runtime.one_line import num_parameters
from vqgpt.tokens import Description

if TYPE_CHECKING:
    from PIL.Image import Image

    from vqgpt.vqgan.model import VQGAN


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A GPT: `sample` draws codes, `score` tells how likely it finds some.

    `description` is that of the token cache it was trained on; None for a GPT of GenerativeZoo, which does not tell.
    """

    path: Path
    gpt: LoadedGPT
    description: Description | None
    device: torch.device

    def __repr__(self) -> str:
        config = self.gpt.model.config
        labels = f"{config.num_classes or 'no'} {'attributes' if config.options.condition == 'bits' else 'classes'}"
        network = f"GPT of {num_parameters(self.gpt.model):,} parameters on {self.device}"
        tokens = f"grid {config.grid[0]} x {config.grid[1]} of {config.codebook_size} codes"
        return f"Generator({self.path}: {network}, {tokens}, {labels})"

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of codes of an image."""
        return self.gpt.model.config.grid

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, or the bits, that it knows, in the order of their numbers."""
        return self.description.class_names if self.description and self.gpt.model.config.num_classes else ()

    def sample(
        self,
        num_samples: int = 16,
        classes: Sequence[str | int] = (),
        seed: int = 0,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        **options: Any,
    ) -> NDArray[np.int64]:
        """Codes (N, h, w): those that `vqgpt sample` draws with the same options (`temperature`, `cfg_scale`, ...).

        `classes`, as of --class, are generated in turn; a number is one, whatever classes are called. Raises UsageError
        for an unknown class or an impossible value.
        """
        words = _words(classes)
        sampling = SamplingOptions(num_samples=num_samples, **options)
        config = SampleConfig(classes=words, sampling=sampling, run=RunOptions(seed=seed, precision=precision))
        if sampling.cfg_scale != 1:
            check_can_guide(self.gpt, self.path)
        turn = KnownLabels.of(self.gpt.model.config, self.class_names, self.gpt.labels_seen).turn(
            config.classes, silent
        )
        if untold(self.gpt.model.config) in turn:
            check_knows_untold(self.gpt, self.path, "tell the labels with `classes`")
        labels = torch.from_numpy(np.array(turn)[np.arange(num_samples) % len(turn)])
        passes = sample_codes(self.gpt.model, labels, seed, sampling, resolve_precision(precision, self.device))
        return torch.cat([codes for codes, _ in passes]).numpy()

    def score(
        self, codes: NDArray[np.integer[Any]], labels: NDArray[np.integer[Any]] | None = None, precision: str = "auto"
    ) -> NDArray[np.float64]:
        """Bits per token (N,) of codes (N, h, w), as `vqgpt score` tells them.

        `labels` are class numbers (N,), -1 for none, or bits (N, L): 1 for yes, -1 for no, 0 for not told. Raises
        UsageError for other arrays.
        """
        config = self.gpt.model.config
        shape = (len(codes), *np.shape(untold(config)))
        if labels is None:
            labels = np.broadcast_to(untold(config), shape)
        if labels.shape != shape or codes.shape[1:] != config.grid:
            raise UsageError(
                f"codes of shape {codes.shape} with labels of shape {labels.shape} cannot be scored",
                f"give codes (N, {config.grid[0]}, {config.grid[1]}), and labels of shape {shape}",
            )
        _check_range("codes", codes, 0, config.codebook_size - 1)
        _check_range("labels", labels, -1, 1 if len(shape) == 2 else config.num_classes - 1)
        grids, given = torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))
        exactly = resolve_precision(precision, self.device)
        nats = torch.cat(list(nats_of_images(self.gpt.model, grids, given, exactly))).numpy()
        return nats / (np.log(2) * config.block_size)


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A VQ-GAN: images (N, C, H, W) uint8 <-> codes (N, h, w)."""

    model: "VQGAN"
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
        from vqgpt.vqgan.checkpoint import tokenizer_sha256

        return tokenizer_sha256(self.model)

    def encode(self, images: NDArray[np.uint8], precision: str = "fp32") -> NDArray[np.int64]:
        """The codes of images that have the size of its training, or another that its grid divides.

        Raises UsageError for other arrays.
        """
        from vqgpt.api.tokenize import encode_batch
        from vqgpt.vqgan.pixels import images_per_pass

        channels, side = self.model.config.image_channels, self.model.config.downsampling
        suits = images.ndim == 4 and images.shape[1] == channels and images.dtype == np.uint8 and images.size
        if not suits or images.shape[2] % side or images.shape[3] % side:
            raise UsageError(
                f"images of shape {images.shape} and type {images.dtype} cannot be encoded",
                f"give (N, {channels}, H, W) uint8, H and W multiples of {side}",
            )
        at_once = images_per_pass(*images.shape[2:])
        parts = (images[start : start + at_once, None] for start in range(0, len(images), at_once))
        codes = [encode_batch(self.model, part, precision, self.device)[:, 0] for part in parts]
        return np.concatenate(codes).astype(np.int64)

    def decode(self, codes: NDArray[np.integer[Any]], precision: str = "fp32") -> NDArray[np.uint8]:
        """The images that codes stand for. Raises UsageError for codes that it does not have."""
        from vqgpt.api.render import decode

        size = self.model.config.codebook_size
        if codes.ndim != 3 or not codes.size or not 0 <= codes.min() <= codes.max() < size:
            raise UsageError(
                f"codes of shape {codes.shape} cannot be decoded", f"give (N, h, w) codes of 0 to {size - 1}"
            )
        return decode(self.model, codes, precision, silent)


def load_gpt(path: str | Path, device: str = "auto", n_head: int | None = None) -> Generator:
    """A GPT in a file, ours (.pt, .safetensors) or GenerativeZoo's, whose number of heads `n_head` tells.

    Raises MissingDataError if there is none, InputError if it is not one.
    """
    chosen = select_device(device)
    gpt, description = trained_gpt.load_gpt(Path(path), chosen, n_head)
    return Generator(path=Path(path), gpt=gpt, description=description, device=chosen)


def _words(classes: Any) -> tuple[str, ...]:
    """Classes as words of --class. Raises UsageError for what is no list of names and whole numbers."""
    words = []
    for one in classes if isinstance(classes, Iterable) and not isinstance(classes, str) else [None]:
        if not isinstance(one, (str, int, np.integer)) or isinstance(one, bool):
            raise UsageError(
                f"classes={classes!r} is not a list of classes", "give names and whole numbers, as [3, 'cat']"
            )
        words.append(one if isinstance(one, str) else number_word(int(one)))
    return tuple(words)


def _check_range(what: str, numbers: NDArray[np.integer[Any]], least: int, most: int) -> None:
    """Raise UsageError for codes or labels that the GPT does not have."""
    if numbers.size and not least <= numbers.min() <= numbers.max() <= most:
        raise UsageError(
            f"{what} of {numbers.min()} to {numbers.max()} cannot be scored", f"give {what} of {least} to {most}"
        )


def load_vqgan(path: str | Path, device: str = "auto", tokens_of: Generator | None = None) -> Tokenizer:
    """A VQ-GAN in a file, ours or of taming-transformers, LlamaGen or GenerativeZoo.

    With `tokens_of`, raises InputError if it is not the one that a GPT was trained with. Raises MissingDataError if
    there is none, InputError if it is not one.
    """
    from vqgpt.vqgan import checkpoint

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


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str] | None = None, columns: int = 10) -> "Image":
    """A picture of images (N, C, H, W), as `vqgpt render` makes it; `save` writes it to a file."""
    from vqgpt.pictures import sheet

    texts = [""] * len(images) if captions is None else captions
    return sheet.contact_sheet(sheet.to_displayable(images, 0), texts, columns)
