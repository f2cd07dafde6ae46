"""Options of the VQ-GAN: its architecture and its training. Must not import torch."""

from dataclasses import dataclass
from typing import Literal

from vqgpt.config.options import check, option

MODEL = "VQ-GAN"
TRAINING = "Training"


@dataclass(frozen=True, kw_only=True)
class VQGANOptions:
    """What the user chooses about the network; image size and channels come from the dataset."""

    channels: int = option(64, "Base channels of encoder and decoder.", group=MODEL)
    z_channels: int = option(64, "Channels of the latent before quantisation.", group=MODEL)
    ch_mult: tuple[int, ...] = option(
        (1, 2, 2), "Channel multiplier per resolution; one halving between each two.", group=MODEL
    )
    num_res_blocks: int = option(2, "Residual blocks per resolution.", group=MODEL)
    attn_resolutions: tuple[int, ...] = option(
        (16,), "Resolutions that get attention, in pixels; 0 for none.", group=MODEL
    )
    dropout: float = option(0.0, "Dropout rate in encoder and decoder.", group=MODEL)
    double_z: bool = option(False, "Let the encoder emit 2 x z-channels.", group=MODEL)
    n_embed: int = option(128, "Codebook entries.", group=MODEL)
    embed_dim: int = option(64, "Dimension of a codebook entry.", group=MODEL)

    def __post_init__(self) -> None:
        check(
            self.channels > 0 and self.channels % 32 == 0,
            "channels",
            self.channels,
            "a multiple of 32 (GroupNorm has 32 groups)",
        )
        check(len(self.ch_mult) > 0 and min(self.ch_mult) > 0, "ch_mult", self.ch_mult, "one or more positive numbers")
        for name in ("z_channels", "embed_dim"):
            check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        check(self.num_res_blocks > 0, "num_res_blocks", self.num_res_blocks, "positive")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        check(1 < self.n_embed <= 2**16, "n_embed", self.n_embed, "between 2 and 65536")


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """The whole architecture: what the user chose, and what the dataset brought."""

    options: VQGANOptions
    image_channels: int
    size: int

    def __post_init__(self) -> None:
        check(
            self.size > 0 and self.size % self.downsampling == 0,
            "size",
            self.size,
            f"a multiple of {self.downsampling} (ch_mult has {len(self.options.ch_mult) - 1} halvings)",
        )

    @property
    def downsampling(self) -> int:
        """Image pixels per code, along one side."""
        return int(2 ** (len(self.options.ch_mult) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the code grid of one image."""
        return (self.size // self.downsampling, self.size // self.downsampling)


@dataclass(frozen=True, kw_only=True)
class VQGANTrainingOptions:
    """How the VQ-GAN is trained."""

    batch_size: int = option(256, "Images per optimiser step.", group=TRAINING)
    n_epochs: int = option(100, "Passes over the training images, in epochs.", group=TRAINING)
    lr: float = option(4.5e-6, "Learning rate of Adam (betas 0.5, 0.9).", group=TRAINING)
    lr_schedule: Literal["constant", "cosine"] = option(
        "constant", "Course of the learning rate: 'cosine' takes it down to 0 over the training.", group=TRAINING
    )
    codebook: Literal["ema", "loss"] = option(
        "ema",
        "How the codebook learns: 'ema' follows the mean of the latents assigned to each code and revives unused "
        "codes; 'loss' takes gradient steps, as taming-transformers does.",
        group=TRAINING,
    )
    codebook_weight: float = option(
        1.0, "Weight of the codebook term (which contains the commitment term).", group=TRAINING
    )
    sample_and_save_freq: int = option(20, "Validate, render a panel and save every that many epochs.", group=TRAINING)

    def __post_init__(self) -> None:
        for name in ("batch_size", "n_epochs", "lr", "sample_and_save_freq"):
            check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        check(self.codebook_weight >= 0, "codebook_weight", self.codebook_weight, "0 or more")
