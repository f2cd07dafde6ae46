"""The library for Python: a GPT on arrays, and the verbs of the pipeline, which take the options of their commands.

    vqgpt.train_vqgan(dataset="digits", n_epochs=3)  ->  Tokenizer
    vqgpt.tokenize(dataset="digits")                 ->  TokenCache
    vqgpt.train(dataset="digits", n_layer=2)         ->  Generator
    Generator.sample -> codes (N, h, w) int64  --Tokenizer.decode-->  images (N, C, H, W) uint8  --encode-->  codes

What a command refuses is refused here too, with the errors of `vqgpt.errors`: nothing that exists is replaced without
`overwrite=True`, and what was interrupted is continued. `progress` is called with the events of `vqgpt.progress`.
The Generator works where the VQ-GAN's code cannot be imported.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.api.options import SampleConfig, TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.api.sample import check_can_guide, check_knows_unlabelled
from vqgpt.api.sources import check_order
from vqgpt.errors import InputError, UsageError, nearest_hint
from vqgpt.gpt import checkpoint
from vqgpt.gpt.checkpoint import LoadedGPT
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.labels import KnownLabels, no_label, number_word
from vqgpt.gpt.options import SamplingOptions
from vqgpt.gpt.order import FixedOrder, Order, sequence_to_grid
from vqgpt.gpt.scoring import nats_of_images, nats_of_tokens, orders_to_score
from vqgpt.options.codec import num_parameters
from vqgpt.options.definition import RunOptions, options_of, resolve
from vqgpt.progress import PlainBar, Report, silent
from vqgpt.runtime.device import resolve_precision, select_device
from vqgpt.tokens import Description, TokenCache

if TYPE_CHECKING:
    from vqgpt.api.tokenize import Tokenizer

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A GPT: `sample` draws codes, `score` tells how likely it finds some."""

    path: Path
    gpt: LoadedGPT
    device: torch.device

    def __repr__(self) -> str:
        config = self.gpt.model.config
        labels = f"{config.num_classes or 'no'} {'attributes' if config.options.condition == 'bits' else 'classes'}"
        network = f"GPT of {num_parameters(self.gpt.model):,} parameters on {self.device}"
        tokens = f"grid {config.grid[0]} x {config.grid[1]} of {config.codebook_size} codes"
        return f"Generator({self.path}: {network}, {tokens}, {labels})"

    @property
    def description(self) -> Description | None:
        """That of the token cache it was trained on; None for a GPT of GenerativeZoo, which does not say."""
        return self.gpt.description

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

        Images cycle through `classes`, as of --class; a number is one, whatever classes are called. Raises UsageError
        for an unknown class or an impossible value.
        """
        sampling = SamplingOptions(num_samples=num_samples, **options)
        SampleConfig(sampling=sampling, run=RunOptions(seed=seed, precision=precision))  # which checks them
        asked = self.asked(range(num_samples), classes, seed, sampling)
        passes = sample_codes(self.gpt.model, asked, resolve_precision(precision, self.device))
        return torch.cat([codes for codes, _ in passes]).numpy()

    def asked(
        self,
        numbers: range,
        classes: Sequence[str | int],
        seed: int,
        sampling: SamplingOptions,
        known: NDArray[np.integer[Any]] | None = None,
    ) -> Asked:
        """Images of a seed by their numbers, for `Sampler.codes`; image i is of `classes[i % len(classes)]`.

        `known` (N, h, w) are codes that are not drawn, -1 where they are. Raises UsageError as `sample` does, but takes
        any seed.
        """
        architecture = self.gpt.model.config
        check_order(sampling.draw_order, architecture.options, self.path, "draw_order")
        if sampling.cfg_scale != 1:
            check_can_guide(self.gpt, self.path)
        labels = self.labels(numbers, classes)
        if known is not None:
            self._check_codes(known, -1, labels)
        return Asked(
            labels=labels,
            seeds=[seed] * len(numbers),
            numbers=numbers,
            settings=[sampling] * len(numbers),
            known=None if known is None else torch.from_numpy(known.astype(np.int64)),
        )

    def labels(self, numbers: range, classes: Sequence[str | int]) -> torch.Tensor:
        """The labels, as `GPT.start` takes them, of images that cycle through `classes`; of all where there are none.

        Raises UsageError for an unknown class, or no class where every training image had one.
        """
        architecture = self.gpt.model.config
        known_labels = KnownLabels.of(architecture, self.class_names, self.gpt.labels_seen)
        cycle = known_labels.cycle(_words(classes), silent)
        if no_label(architecture) in cycle:
            check_knows_unlabelled(self.gpt, self.path, "tell the labels with `classes`")
        return torch.from_numpy(np.array(cycle)[np.array(numbers, dtype=np.int64) % len(cycle)])

    def score(
        self,
        codes: NDArray[np.integer[Any]],
        labels: NDArray[np.integer[Any]] | None = None,
        precision: str = "auto",
        order: Order | None = None,
        num_orders: int = 1,
    ) -> NDArray[np.float64]:
        """Bits per token (N,) of codes (N, h, w), as `vqgpt score` gives them with the same `order` and `num_orders`.

        `labels` are class numbers (N,), -1 for none, or bits (N, L): 1 for yes, -1 for no, 0 for unspecified. Raises
        UsageError for other arrays.
        """
        config = self.gpt.model.config
        if labels is None:
            labels = np.broadcast_to(no_label(config), (len(codes), *np.shape(no_label(config))))
        given = torch.from_numpy(labels.astype(np.int64))
        grids = self._check_codes(codes, 0, given)
        exactly = resolve_precision(precision, self.device)
        check_order(order, config.options, self.path, "order")
        orders = orders_to_score(order or config.options.own_order, num_orders, config)
        nats = torch.cat(list(nats_of_images(self.gpt.model, grids, given, exactly, orders))).numpy()
        return nats / (np.log(2) * config.block_size)

    def score_tokens(
        self,
        codes: NDArray[np.integer[Any]],
        labels: torch.Tensor,
        precision: str = "auto",
        order: FixedOrder | None = None,
    ) -> NDArray[np.float64]:
        """Bits of each token (N, h, w) of codes (N, h, w), given those before it. Raises UsageError as `score` does."""
        config = self.gpt.model.config
        grids, exactly = self._check_codes(codes, 0, labels), resolve_precision(precision, self.device)
        check_order(order, config.options, self.path, "order")
        cells = orders_to_score(order or config.options.own_order, 1, config)[0]
        nats = torch.cat(list(nats_of_tokens(self.gpt.model, grids, labels, exactly, cells)))
        return sequence_to_grid(nats, cells, config.grid).numpy() / np.log(2)

    def _check_codes(self, codes: NDArray[np.integer[Any]], least: int, labels: torch.Tensor) -> torch.Tensor:
        """Codes (N, h, w) of `least` or more, and labels that go with them -> the codes. Raises UsageError."""
        config = self.gpt.model.config
        shape = (len(codes), *np.shape(no_label(config)))
        if labels.shape != shape or codes.shape[1:] != config.grid:
            raise UsageError(
                f"codes of shape {codes.shape} with labels of shape {tuple(labels.shape)} cannot be used",
                f"give codes (N, {config.grid[0]}, {config.grid[1]}), and labels of shape {shape}",
            )
        _check_range("codes", codes, least, config.codebook_size - 1)
        _check_range("labels", labels.numpy(), -1, 1 if len(shape) == 2 else config.num_classes - 1)
        return torch.from_numpy(codes.astype(np.int64))


def load_gpt(path: str | Path, device: str = "auto", n_head: int | None = None) -> Generator:
    """A GPT in a file, ours (.pt, .safetensors) or GenerativeZoo's, which has `n_head` heads.

    Raises MissingDataError if there is none, InputError if it is not one.
    """
    chosen = select_device(device)
    return Generator(path=Path(path), gpt=checkpoint.load_gpt(Path(path), chosen, n_head), device=chosen)


def load_vqgan(path: str | Path, device: str = "auto", tokens_of: Generator | None = None) -> "Tokenizer":
    """A VQ-GAN in a file, ours or of taming-transformers, LlamaGen or GenerativeZoo.

    With `tokens_of`, raises InputError if a GPT was trained on tokens of another encoder or codebook. Raises
    MissingDataError if there is none, InputError if it is not one.
    """
    from vqgpt.api.tokenize import Tokenizer
    from vqgpt.vqgan.checkpoint import tokenizer_identities

    tokenizer = Tokenizer.load(Path(path), device)
    if tokens_of is not None and tokens_of.description is not None:
        ours, theirs = tokenizer_identities(tokenizer.model), tokens_of.description.tokenizer_sha256
        if theirs not in ours:
            raise InputError(
                f"the GPT was trained with another VQ-GAN ({theirs[:12]}) than {path} ({ours[0][:12]})",
                "load the VQ-GAN that encoded its training images",
            )
    return tokenizer


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
            f"{what} of {numbers.min()} to {numbers.max()} cannot be used", f"give {what} of {least} to {most}"
        )


def train_vqgan(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> "Tokenizer":
    """Train a VQ-GAN as `vqgpt vqgan train` does; returns the Tokenizer. Raises UsageError for an unknown option."""
    from vqgpt.api import train_vqgan

    config = _configured(VQGANTrainConfig, options)
    result = train_vqgan.run(config, overwrite, False, progress or PlainBar())
    return load_vqgan(result["checkpoint"], config.run.device)


def tokenize(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> TokenCache:
    """Encode a dataset as `vqgpt tokenize` does; returns its token cache. Raises UsageError for an unknown option."""
    from vqgpt.api import tokenize

    config = _configured(TokenizeConfig, options)
    tokenize.run(config, overwrite, False, progress or PlainBar())
    return TokenCache(config.result)


def train(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> "Generator":
    """Train a GPT as `vqgpt train` does; returns the Generator. Raises UsageError for an unknown option."""
    from vqgpt.api import train

    config = _configured(TrainConfig, options)
    result = train.run(config, overwrite, False, progress or PlainBar())
    return load_gpt(result["checkpoint"], config.run.device)


def _configured(config_class: type[ConfigT], options: dict[str, Any]) -> ConfigT:
    """The configuration of these options, by the names of their fields. Raises UsageError for a name that is none."""
    known = [item.name for item in options_of(config_class)]
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}", nearest_hint(name, known))
    return resolve(config_class, options)
