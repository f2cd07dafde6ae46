"""Options of the GPT: its architecture, its training, and sampling from it. Must not import torch."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from vqgpt.gpt.architecture import ARCH_HELP, ARCHITECTURES, Arch, Architecture, head_multiple
from vqgpt.gpt.order import ORDER_HELP, FixedOrder, Order
from vqgpt.options.codec import to_json
from vqgpt.options.definition import (
    BATCH_SIZE,
    EMA,
    GRAD_CLIP,
    MAX_STEPS,
    N_EPOCHS,
    SAMPLE_AND_SAVE_FREQ,
    TRAINING,
    check,
    check_positive,
    option,
)

MODEL = "GPT"
SAMPLING = "Sampling"

NOISE_UNTIL = 0.75  # of the training
MOST_TOKENS = 2**16  # per image
MOST_GUIDANCE = 1_000_000  # far from where float32 overflows

Condition = Literal["none", "class", "bits"]


@dataclass(frozen=True, kw_only=True)
class GPTOptions:
    """What the user chooses about the network; codebook size, grid and classes come from the token cache."""

    arch: Arch = option("gpt2", ARCH_HELP, group=MODEL)
    n_layer: int = option(6, "Transformer layers.", group=MODEL)
    n_head: int = option(8, "Attention heads per layer.", group=MODEL)
    embed_dim_t: int = option(64, "Transformer width.", group=MODEL)
    bias: bool = option(False, "Bias terms in linear layers and norms.", group=MODEL)
    dropout_t: float = option(0.1, "Dropout rate in the transformer.", group=MODEL)
    order: Order = option("s-pattern", ORDER_HELP, group=MODEL)
    condition: Condition = option(
        "none", "What the GPT is conditioned on: nothing, the class, or the bits of a multi-label set.", group=MODEL
    )
    condition_view: bool = option(
        False,
        "Tell the GPT in which view of the cache it sees an image, and sample in the first one, identity.",
        group=MODEL,
    )

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "embed_dim_t"):
            check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        width, heads = self.embed_dim_t, self.n_head
        check(width % heads == 0, "embed_dim_t", width, f"a multiple of n_head = {heads}")
        check(0 <= self.dropout_t < 1, "dropout_t", self.dropout_t, "in [0, 1)")
        no_bias = f"left out with --arch {self.arch}, which has no biases"
        check(self.architecture.biases or not self.bias, "bias", self.bias, no_bias)
        of_head = head_multiple(self.architecture.positions)
        multiple = of_head * heads
        check(width % multiple == 0, "embed_dim_t", width, f"a multiple of {of_head} x n_head = {multiple}")

    @property
    def architecture(self) -> Architecture:
        """What the blocks are made of."""
        return ARCHITECTURES[self.arch]

    @property
    def any_order(self) -> bool:
        """Whether the network takes the cells of its tokens in any order."""
        return self.order == "random"

    @property
    def own_order(self) -> FixedOrder:
        """In which it reads and draws where nothing else is asked for."""
        return "raster" if self.order == "random" else self.order


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The whole architecture: what the user chose, and what the token cache brought."""

    options: GPTOptions
    codebook_size: int
    grid: tuple[int, int]
    num_classes: int
    num_views: int = 0  # that it tells apart

    def __post_init__(self) -> None:
        check(0 < self.codebook_size <= 2**16, "codebook_size", self.codebook_size, "between 1 and 65536")
        check(min(self.grid) > 0, "grid", self.grid, "rows and columns")
        check(self.block_size <= MOST_TOKENS, "grid", self.grid, f"of {MOST_TOKENS} tokens at most")
        check(self.num_classes >= 0, "num_classes", self.num_classes, "0 or more")
        told = self.num_views > 1 if self.options.condition_view else self.num_views == 0
        check(told, "num_views", self.num_views, "2 or more with --condition-view, and 0 without")

    @property
    def block_size(self) -> int:
        """Tokens per image, which is the sequence length: the start token takes the place of the last one."""
        return self.grid[0] * self.grid[1]

    @property
    def bos(self) -> int:
        """The start token of an image without a class, and of one with bits.

        It is the first id after the codes and is never sampled.
        """
        return self.codebook_size

    @property
    def vocabulary_size(self) -> int:
        """Codes, BOS, one token per class or bit, and one per view that is told apart."""
        return self.codebook_size + 1 + self.num_classes + self.num_views

    @property
    def identity(self) -> dict[str, Any]:
        """What, with the weights, tells one GPT from another.

        Views count only where they are told apart: caches know the identity without them.
        """
        found = to_json(self)
        if not self.num_views:
            del found["num_views"], found["options"]["condition_view"]
        return dict(found)


@dataclass(frozen=True, kw_only=True)
class GPTTrainingOptions:
    """How the GPT is trained."""

    batch_size: int = BATCH_SIZE
    n_epochs: int = N_EPOCHS
    max_steps: int | None = MAX_STEPS
    patience: int = option(
        0, "Stop after this many validations without a lower held-out loss; 0 for never.", group=TRAINING
    )
    optimizer: Literal["adamw", "muon"] = option(
        "adamw",
        "What moves the weights: AdamW, or 'muon' for the matrices of the blocks and AdamW for all else.",
        group=TRAINING,
    )
    lr: float = option(1e-4, "Peak learning rate, reached after the warm-up; a cosine leads back down.", group=TRAINING)
    warmup: float = option(10.0, "Length of the linear warm-up of the learning rate, in epochs.", group=TRAINING)
    betas: tuple[float, float] = option((0.9, 0.95), "Betas of AdamW.", group=TRAINING)
    weight_decay: float = option(
        0.1, "Weight decay of AdamW and of Muon, on tensors of two or more dimensions.", group=TRAINING
    )
    grad_clip: float = GRAD_CLIP
    grad_accum: int = option(
        1, "Passes in which a step's batch is computed: more need less memory, and give the same.", group=TRAINING
    )
    ema: float = EMA
    random_until: float = option(
        0.0,
        "Share of the training in which every image is read in a random order, another one for each: RAR. --order is "
        "the one that is left in the end.",
        group=TRAINING,
    )
    anneal_until: float | None = option(
        None,
        "Share of the training after which no image is read in a random order any more; from --random-until on, fewer "
        "and fewer are (default: halfway from there to the end).",
        group=TRAINING,
    )
    token_dropout: float = option(0.0, "Share of the tokens hidden from those that follow them.", group=TRAINING)
    token_noise: float = option(
        0.0,
        "Highest share of an image's input tokens that are other ones, drawn at random (reAR); it falls to 0.",
        group=TRAINING,
    )
    token_noise_until: float | None = option(
        None, f"Share of the training after which --token-noise is over (default: {NOISE_UNTIL}).", group=TRAINING
    )
    label_dropout: float = option(
        0.1, "Share of the images shown without their label, so that the GPT also samples without one.", group=TRAINING
    )
    class_balance: float = option(
        0.0,
        "Show images of rare classes more often: each in proportion to the frequency of its class to the power of "
        "minus this. 0 shows all images equally often, 1 all classes.",
        group=TRAINING,
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "Compile the network (needs a C++ compiler on a CPU); auto does on a CUDA device, if there are Triton and cc.",
        group=TRAINING,
    )
    shard: bool = option(
        False,
        "Cut weights, gradients and the optimiser's state among the processes (FSDP2), for networks that do not fit "
        "on one device; needs torchrun.",
        group=TRAINING,
    )
    sample_and_save_freq: int = SAMPLE_AND_SAVE_FREQ
    keep_last: int = option(
        2,
        "How many of the last saved states to keep while the training runs; the newest sound one wins.",
        group=TRAINING,
    )
    stream: bool = option(
        False,
        "Read the training tokens while training, instead of loading them first; for sets larger than memory.",
        group=TRAINING,
    )
    shuffle_buffer: int = option(
        262_144,
        "With --stream, rows that are in memory and shuffled together; as many again are read ahead.",
        group=TRAINING,
    )

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "n_epochs", "max_steps", "lr", "grad_accum", "sample_and_save_freq")
        check_positive(self, "keep_last", "shuffle_buffer")
        for name in ("patience", "warmup", "weight_decay", "grad_clip"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("ema", "token_dropout"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "in [0, 1)")
        check(0 <= self.label_dropout <= 1, "label_dropout", self.label_dropout, "in [0, 1]")
        check(0 <= self.token_noise <= 1, "token_noise", self.token_noise, "in [0, 1]")
        check(0 <= self.class_balance <= 1, "class_balance", self.class_balance, "in [0, 1]")
        balanced_stream = self.stream and self.class_balance > 0
        check(not balanced_stream, "class_balance", self.class_balance, "0 with --stream, which reads rows as they lie")
        until = self.token_noise_until
        check(until is None or 0 < until <= 1, "token_noise_until", until, "above 0 and at most 1")
        check(until is None or self.token_noise > 0, "token_noise_until", until, "given with --token-noise only")
        check(0 <= self.random_until <= 1, "random_until", self.random_until, "in [0, 1]")
        late_enough = f"above 0, and between {self.random_until:g} (--random-until) and 1"
        fits = self.anneal_until is None or (0 < self.anneal_until <= 1 and self.random_until <= self.anneal_until)
        check(fits, "anneal_until", self.anneal_until, late_enough)

        too_soon = "0 where random orders come first: validations judge the order that comes last"
        check(not (self.patience and self.begins_in_any_order), "patience", self.patience, too_soon)

    def highest_noise(self, progress: float) -> float:
        """The largest share of an image's tokens that are noised, at some progress of the training in [0, 1)."""
        return self.token_noise * max(0.0, 1 - progress / (self.token_noise_until or NOISE_UNTIL))

    @property
    def begins_in_any_order(self) -> bool:
        """Whether images are read in random orders first, and in a fixed one in the end."""
        return self.random_until > 0 or bool(self.anneal_until)

    def random_share(self, progress: float) -> float:
        """Of the images that are read in a random order, at some progress of the training in [0, 1).

        All of them, then linearly fewer: the annealing of RAR (Yu et al. 2024, arXiv:2411.00776).
        """
        start = self.random_until
        if progress < start:
            return 1.0
        end = (1 + start) / 2 if start and self.anneal_until is None else self.anneal_until or 0.0
        return (end - progress) / (end - start) if progress < end else 0.0


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn."""

    num_samples: int = option(16, "Images to generate.", group=SAMPLING)
    temperature: float = option(1.0, "Softmax temperature; 0 takes the most likely code.", group=SAMPLING)
    top_k: int | None = option(None, "Draw from the k most likely codes only (default: all).", group=SAMPLING)
    top_p: float | None = option(
        None,
        "Draw from the fewest most likely codes that have this probability together (default: all).",
        group=SAMPLING,
    )
    min_p: float | None = option(
        None, "Draw from codes at least this many times as likely as the likeliest (default: all).", group=SAMPLING
    )
    cfg_scale: float = option(
        1.0, "Classifier-free guidance towards the class or bits: 1 for none, above 1 to exaggerate.", group=SAMPLING
    )
    cfg_schedule: Literal["constant", "linear", "power-cosine"] = option(
        "constant", "How guidance grows over the tokens of an image, from none to its scale.", group=SAMPLING
    )
    cfg_power: float = option(1.0, "Power of the power-cosine schedule: above 1, guidance comes later.", group=SAMPLING)
    draw_order: Order | None = option(
        None,
        "The order in which a GPT that was trained with --order random draws codes; 'random' is another one for each "
        "image. Known codes come first (default: raster; other GPTs draw in their own order).",
        group=SAMPLING,
    )

    def __post_init__(self) -> None:
        check(self.num_samples > 0, "num_samples", self.num_samples, "positive")
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        check(self.top_k is None or self.top_k > 0, "top_k", self.top_k, "positive")
        check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        check(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        check(0 <= self.cfg_scale <= MOST_GUIDANCE, "cfg_scale", self.cfg_scale, f"between 0 and {MOST_GUIDANCE:,}")
        check(0 < self.cfg_power < math.inf, "cfg_power", self.cfg_power, "positive")
        needless = self.cfg_power != 1 and self.cfg_schedule != "power-cosine"
        check(not needless, "cfg_power", self.cfg_power, "given with --cfg-schedule power-cosine only")
