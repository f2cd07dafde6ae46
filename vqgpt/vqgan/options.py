"""Options of the VQ-GAN: its network and its training. Must not import torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqgpt.options.definition import (
    BATCH_SIZE,
    EMA,
    GRAD_CLIP,
    MAX_STEPS,
    N_EPOCHS,
    REMAP,
    SAMPLE_AND_SAVE_FREQ,
    TRAINING,
    check,
    check_positive,
    option,
)

MODEL = "VQ-GAN"
LOSS = "Loss"
CODEBOOK = "Codebook"

PerceptualKind = Literal["lpips", "stlpips"]
SMALLEST_PERCEPTUAL_SIZE = 64  # pixels; below, the perceptual loss is off unless asked for
CODEBOOK_DECAY = 0.95
REVIVE_BELOW = 0.05  # of an equal share
RATES = {"muon": 3e-3, "adam": 4.5e-6}  # by optimiser; the latter is the original's
LARGEST_RATE_OF_DISCRIMINATOR = 1e-3
LARGEST_PATCH = 16  # pixels


@dataclass(frozen=True, kw_only=True)
class VQGANOptions:
    """What the user chooses about the network; image size and channels come from the dataset."""

    channels: int = option(64, "Base channels of encoder and decoder.", group=MODEL)
    z_channels: int = option(64, "Channels of the latent before quantisation.", group=MODEL)
    ch_mult: tuple[int, ...] = option(
        (1, 2, 2), "Channel multiplier per resolution; one halving between each two.", group=MODEL
    )
    patch: int = option(
        1,
        "Fold squares of so many pixels a side into channels before the first convolution, and back after the last: "
        "2 makes the network several times as fast for small images.",
        group=MODEL,
    )
    norm_groups: int = option(
        2,
        "Groups of each normalisation. The fewer channels are in one, the less a network can tell of an image's "
        "colours and contrast; the original has 32.",
        group=MODEL,
    )
    num_res_blocks: int = option(2, "Residual blocks per resolution.", group=MODEL)
    attn_resolutions: tuple[int, ...] = option(
        (16,), "Resolutions that get attention, in pixels; 0 for none.", group=MODEL
    )
    dropout: float = option(0.0, "Dropout rate in encoder and decoder.", group=MODEL)
    double_z: bool = option(False, "Let the encoder emit 2 x z-channels.", group=MODEL)
    n_embed: int = option(128, "Codebook entries.", group=MODEL)
    embed_dim: int = option(64, "Dimension of a codebook entry.", group=MODEL)
    l2_codes: bool = option(
        False, "Compare latents and codes by direction alone (l2-normalised; wants a small embed-dim).", group=MODEL
    )
    remap: Path | None = REMAP

    def __post_init__(self) -> None:
        check_network(self)
        check(min(self.attn_resolutions, default=0) >= 0, "attn_resolutions", self.attn_resolutions, "0 or more")


def check_network(network: Any) -> None:
    """Raise UsageError for sizes that no network can have, in options or in the architecture made of them."""
    for name in ("channels", "num_res_blocks", "z_channels", "embed_dim"):
        check(getattr(network, name) > 0, name, getattr(network, name), "positive")
    check(network.norm_groups > 0, "norm_groups", network.norm_groups, "positive")
    check(0 < network.patch <= LARGEST_PATCH, "patch", network.patch, f"between 1 and {LARGEST_PATCH}")
    groups = f"a multiple of {network.norm_groups}, the groups of its normalisations (--norm-groups)"
    check(network.channels % network.norm_groups == 0, "channels", network.channels, groups)
    check(min(network.ch_mult, default=0) > 0, "ch_mult", network.ch_mult, "one or more positive numbers")
    check(1 < network.n_embed <= 2**16, "n_embed", network.n_embed, "between 2 and 65536")
    check(0 <= network.dropout < 1, "dropout", network.dropout, "in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class VQGANTrainingOptions:
    """How the VQ-GAN is trained."""

    batch_size: int = BATCH_SIZE
    n_epochs: int = N_EPOCHS
    max_steps: int | None = MAX_STEPS
    optimizer: Literal["muon", "adam"] = option(
        "muon",
        "What moves the weights: Muon for the kernels between the first and the last convolution and Adam (betas 0.5, "
        "0.9) for all else, or 'adam' alone, as the original does.",
        group=TRAINING,
    )
    lr: float | None = option(
        None,
        f"Learning rate of all weights; of the discriminator's at most {LARGEST_RATE_OF_DISCRIMINATOR:g} "
        f"(default: {RATES['muon']:g} with muon, {RATES['adam']:g} with adam).",
        group=TRAINING,
    )
    lr_schedule: Literal["constant", "cosine"] = option(
        "cosine", "Course of the learning rate: 'cosine' takes it down to 0 over the training.", group=TRAINING
    )
    grad_clip: float = GRAD_CLIP
    ema: float = EMA
    train: Literal["all", "decoder"] = option(
        "all",
        "What to train; 'decoder' leaves encoder and codebook of --checkpoint-vae alone, and so every token cache.",
        group=TRAINING,
    )
    winograd: Literal["auto", "off"] = option(
        "auto",
        "On a CPU in float32, let training steps compute 3x3 convolutions by Winograd's algorithm: faster, and rounded "
        "otherwise (1e-6). 'auto' does where there is a C compiler (cc).",
        group=TRAINING,
    )
    sample_and_save_freq: int = SAMPLE_AND_SAVE_FREQ
    perceptual: Literal["lpips", "stlpips", "off"] | None = option(
        None,
        "The perceptual loss: LPIPS with VGG16 (extra 'lpips', and 530 MB that are downloaded), or shift-tolerant "
        f"LPIPS (extra 'stlpips', whole). Default: off below {SMALLEST_PERCEPTUAL_SIZE} pixels; from there on LPIPS if "
        "all its weights are on this machine, else stlpips if it is installed, else off.",
        group=LOSS,
    )
    perceptual_weight: float | None = option(
        None,
        "Weight of the perceptual loss, 0 for none (default: 1). Given alone it turns the loss on at any size.",
        group=LOSS,
    )
    perceptual_after: float = option(
        0.0,
        "Share of the training that goes by before the perceptual loss starts. Given alone it turns the loss on at any "
        "size, if one is on this machine.",
        group=LOSS,
    )
    disc_weight: float = option(0.8, "Weight of the adversarial term; 0 for no discriminator.", group=LOSS)
    disc_start: int = option(10_000, "Optimiser step at which the discriminator starts.", group=LOSS)
    warmup: int = option(
        10, "Epochs before the discriminator starts; it starts when both --disc-start and this are over.", group=LOSS
    )
    codebook_weight: float = option(
        1.0, "Weight of the codebook term (which contains the commitment term).", group=LOSS
    )
    codebook: Literal["ema", "loss"] = option(
        "ema",
        "How the codebook learns: 'ema' follows the mean of the latents assigned to each code and revives unused "
        "codes; 'loss' takes gradient steps, as taming-transformers does.",
        group=CODEBOOK,
    )
    codebook_start: Literal["kmeans", "latents", "uniform"] | None = option(
        None,
        "Where the codes start: at the k-means of some images' latents, at random latents, or at random small vectors "
        "(default: kmeans with --codebook ema, uniform with loss).",
        group=CODEBOOK,
    )
    normalise_latents: bool = option(
        True,
        "Give each channel of the latents mean 0 and variance 1 before they are compared to the codes. Not with "
        "--l2-codes, nor with a network without a convolution before its codebook.",
        group=CODEBOOK,
    )
    codebook_decay: float | None = option(
        None, f"Decay of the moving averages of --codebook ema (default: {CODEBOOK_DECAY}).", group=CODEBOOK
    )
    revive_below: float | None = option(
        None,
        "With --codebook ema, put a code onto a random latent when its average use falls below this part of an equal "
        f"share; 0 for never (default: {REVIVE_BELOW}).",
        group=CODEBOOK,
    )

    def __post_init__(self) -> None:
        check_positive(self, "batch_size", "n_epochs", "max_steps", "sample_and_save_freq", "lr")
        at_least_zero = ("grad_clip", "disc_weight", "disc_start", "warmup", "codebook_weight")
        for name in (*at_least_zero, "perceptual_weight", "revive_below"):
            check((getattr(self, name) or 0) >= 0, name, getattr(self, name), "0 or more")
        check((self.revive_below or 0) < 1, "revive_below", self.revive_below, "below 1")
        for name in ("ema", "codebook_decay"):
            check(0 <= (getattr(self, name) or 0) < 1, name, getattr(self, name), "in [0, 1)")
        check(0 <= self.perceptual_after < 1, "perceptual_after", self.perceptual_after, "in [0, 1)")
        if self.perceptual == "off" or self.perceptual_weight == 0:
            requirement = "0 without that loss (--perceptual-after 0)"
            check(not self.perceptual_after, "perceptual_after", self.perceptual_after, requirement)
        if self.perceptual == "off":
            none = not self.perceptual_weight
            check(none, "perceptual_weight", self.perceptual_weight, "left out, or 0, with --perceptual off")
        elif self.perceptual:
            requirement = f"positive with --perceptual {self.perceptual}; --perceptual off is without"
            check(self.perceptual_weight != 0, "perceptual_weight", self.perceptual_weight, requirement)
        for name in ("codebook_decay", "revive_below"):
            fits = self.codebook == "ema" or getattr(self, name) is None
            check(fits, name, getattr(self, name), "left out with --codebook loss, which has no moving averages")

    @property
    def peak_rate(self) -> float:
        """The learning rate before its schedule: what was chosen, else what suits the optimiser."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    @property
    def start_of_codebook(self) -> str:
        """Where the codes start: what was chosen, else what suits the way the codebook learns."""
        if self.train == "decoder":
            return "uniform"  # which leaves them as they are
        return self.codebook_start or ("kmeans" if self.codebook == "ema" else "uniform")

    @property
    def moving_average_of_codes(self) -> tuple[float, float]:
        """The decay of the codes' moving averages, and the share of use below which a code is revived."""
        decay = CODEBOOK_DECAY if self.codebook_decay is None else self.codebook_decay
        return decay, REVIVE_BELOW if self.revive_below is None else self.revive_below

    def perceptual_start(self, num_steps: int) -> int:
        """The first of so many steps with a perceptual loss."""
        return min(round(self.perceptual_after * num_steps), num_steps - 1)

    def discriminator_start(self, steps_per_epoch: int) -> int:
        """The first step with an adversarial term: `disc_start` or the end of `warmup`, whichever is later."""
        return max(self.disc_start, self.warmup * steps_per_epoch)
