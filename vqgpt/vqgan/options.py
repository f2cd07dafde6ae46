"""Options of the VQ-GAN: its architecture and its training. Must not import torch."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from vqgpt.errors import InputError
from vqgpt.options.definition import (
    BATCH_SIZE,
    EMA,
    GRAD_CLIP,
    N_EPOCHS,
    REMAP,
    SAMPLE_AND_SAVE_FREQ,
    TRAINING,
    check,
    option,
)

MODEL = "VQ-GAN"
LOSS = "Loss"
CODEBOOK = "Codebook"

Lookup = Literal["nearest", "cosine", "logits", "dot"]
Network = Literal["taming", "maskgit"]
AttentionType = Literal["vanilla", "linear"]
PerceptualKind = Literal["lpips", "stlpips"]
SMALLEST_PERCEPTUAL_SIZE = 64  # pixels; below, the perceptual loss is off unless asked for
CODEBOOK_DECAY = 0.95
REVIVE_BELOW = 0.05  # of an equal share
RATES = {"muon": 3e-3, "adam": 4.5e-6}  # by optimiser; the latter is the original's
LARGEST_RATE_OF_DISCRIMINATOR = 1e-3
MOST_PIXELS = 2**16  # of the side of an image
LARGEST_PATCH = 16  # pixels
LATER_FIELDS = {  # of VQGANConfig: there were caches before them
    *("mid_attention", "network", "attn_type", "resamp_with_conv", "tanh_out"),
    *("norm_groups", "patch"),
}


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
        _check_network(self)
        check(min(self.attn_resolutions, default=0) >= 0, "attn_resolutions", self.attn_resolutions, "0 or more")


def _check_network(network: "VQGANOptions | VQGANConfig") -> None:
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
class VQGANConfig:
    """The whole architecture, which names and shapes of the weights tell if they are of another project.

    They do not tell dropout, size, attn_resolutions and tanh_out, nor the lookup of IBQ from that of a VQModel.
    Levels count the halvings of the resolution: level 0 has a position for each `patch` x `patch` pixels. `lookup` is
    how a latent finds its code: the nearest code, the nearest by direction, the largest of learned logits (GumbelVQ),
    or the largest dot product (IBQ). With `used_codes`, only so many of the `n_embed` codes are in use, and a list of
    them is part of the weights (`remap`). Some networks have no attention in the middle either, at the lowest
    resolution (`mid_attention`). `network` names the layout of the layers: taming-transformers' (`model.py`) or
    MaskGIT's (`maskgit.py`). latent-diffusion has more kinds of the former: linear attention (`attn_type`), resizing
    by means and copies of pixels, without convolutions (`resamp_with_conv`), and a tanh after the decoder
    (`tanh_out`). Normalisations have `norm_groups` groups, 32 in other projects, which fold no patches either.
    `size` is the image side that the network was made for and `attn_resolutions` what then placed its attention, in
    pixels; None where a checkpoint does not say. With resolutions and no size, these are its family's defaults: then
    attention at a higher resolution is taken for a mistake.
    """

    image_channels: int
    channels: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_levels: tuple[int, ...]
    z_channels: int
    double_z: bool
    n_embed: int
    embed_dim: int
    lookup: Lookup = "nearest"
    used_codes: int | None = None
    dropout: float = 0.0
    size: int | None = None
    attn_resolutions: tuple[int, ...] | None = None
    mid_attention: bool = True
    network: Network = "taming"
    attn_type: AttentionType = "vanilla"
    resamp_with_conv: bool = True
    tanh_out: bool = False
    norm_groups: int = 32
    patch: int = 1

    def __post_init__(self) -> None:
        _check_network(self)
        if self.network == "maskgit":
            alike = f"{self.z_channels} as z_channels are: MaskGIT has no layers between encoder and codebook"
            check(self.embed_dim == self.z_channels, "embed_dim", self.embed_dim, alike)
        check(self.image_channels > 0, "image_channels", self.image_channels, "positive")
        check(0 < (self.used_codes or 1) <= 2**16, "used_codes", self.used_codes, "between 1 and 65536")
        check(0 < (1 if self.size is None else self.size) <= MOST_PIXELS, "size", self.size, f"1 to {MOST_PIXELS}")
        if self.size is not None:
            self.check_size(self.size)

    @classmethod
    def of(cls, options: VQGANOptions, image_channels: int, size: int, used_codes: int | None = None) -> "VQGANConfig":
        """The architecture that these options mean for such images. Raises InputError if the size does not divide."""
        return cls(
            image_channels=image_channels,
            channels=options.channels,
            ch_mult=options.ch_mult,
            num_res_blocks=options.num_res_blocks,
            attn_levels=attention_levels(size // options.patch, options.attn_resolutions, len(options.ch_mult)),
            z_channels=options.z_channels,
            double_z=options.double_z,
            n_embed=options.n_embed,
            embed_dim=options.embed_dim,
            lookup="cosine" if options.l2_codes else "nearest",
            used_codes=used_codes,
            dropout=options.dropout,
            size=size,
            attn_resolutions=options.attn_resolutions,
            norm_groups=options.norm_groups,
            patch=options.patch,
        )

    @property
    def downsampling(self) -> int:
        """Image pixels per code, along one side."""
        return int(self.patch * 2 ** (len(self.ch_mult) - 1))

    def resolution(self, size: int, level: int) -> int:
        """Positions along a side at a level, for images of `size` pixels."""
        return size // (self.patch * int(2**level))

    @property
    def codebook_size(self) -> int:
        """How many codes there are, which is one more than the largest."""
        return self.used_codes or self.n_embed

    @property
    def can_normalise_latents(self) -> bool:
        """True if the scale of latents means something to the codebook, and a convolution comes before it."""
        return self.lookup == "nearest" and self.network == "taming"

    @property
    def what_codes_depend_on(self) -> dict[str, Any]:
        """The fields that, with the weights, decide which codes an image has, and which image codes have: not those of
        training alone. Encoder and decoder share them.

        `LATER_FIELDS` count only where they are not the default: caches know the identity without them.
        """
        as_ever = {field.name for field in fields(self) if getattr(self, field.name) == field.default}
        left_out = {"dropout", "size", "attn_resolutions", *(as_ever & LATER_FIELDS)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def made_for(self, size: int) -> "VQGANConfig":
        """The same weights, known to be trained at `size`: where their attention is, in pixels, follows from it."""
        return replace(self, size=size, attn_resolutions=tuple(self.resolution(size, n) for n in self.attn_levels))

    def contradictions(self, options: VQGANOptions, given: Collection[str], size: int) -> dict[str, tuple[Any, Any]]:
        """Those of the options `given` that mean another architecture at this image side: what they say, and what is.

        Dropout and the list of used codes can be chosen for weights that exist.
        """
        in_place = attention_levels(size // self.patch, options.attn_resolutions, len(self.ch_mult)) == self.attn_levels
        actual = {
            **asdict(self),
            "l2_codes": self.lookup == "cosine",
            "attn_resolutions": options.attn_resolutions if in_place else self.made_for(size).attn_resolutions,
        }
        fixed = [item.name for item in fields(options) if item.name in given and item.name not in ("dropout", "remap")]
        asked = {name: getattr(options, name) for name in fixed}
        return {name: (value, actual[name]) for name, value in asked.items() if value != actual[name]}

    def grid(self, size: int) -> tuple[int, int]:
        """Rows and columns of the code grid of an image of this side. Raises InputError if the size cannot be used."""
        self.check_size(size)
        return (size // self.downsampling, size // self.downsampling)

    def check_size(self, size: int) -> None:
        """Raise InputError if images of this side do not divide, or would have their attention at another level."""
        if size % self.downsampling:
            raise InputError(
                f"size = {size} cannot be used: a code stands for {self.downsampling} x {self.downsampling} pixels",
                f"size must be a multiple of {self.downsampling}",
            )
        if self.attn_resolutions is None:
            return
        levels = attention_levels(size // self.patch, self.attn_resolutions, len(self.ch_mult))
        if self.size is None:
            moves = any(self.resolution(size, n) > max(self.attn_resolutions, default=0) for n in self.attn_levels)
        else:
            moves = levels != self.attn_levels
        if moves:
            raise InputError(
                f"size = {size} cannot be used: attention at {_pixels(self.attn_resolutions)} would move to "
                f"{_levels(levels)}, and the weights have it at {_levels(self.attn_levels)}",
                f"use size {self.size}, or a VQ-GAN that was trained at {size}"
                if self.size
                else f"use a smaller size; if it was trained at {size}, say so: vqgpt vqgan import FILE --size {size}",
            )


def attention_levels(size: int, attn_resolutions: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """The levels whose resolution, size / 2^level, is one of `attn_resolutions`."""
    return tuple(level for level in range(num_levels) if size // 2**level in attn_resolutions)


def _pixels(resolutions: tuple[int, ...]) -> str:
    return " and ".join(f"{side} x {side}" for side in resolutions)


def _levels(levels: tuple[int, ...]) -> str:
    return f"level {', '.join(map(str, levels))}" if levels else "no level"


@dataclass(frozen=True, kw_only=True)
class VQGANTrainingOptions:
    """How the VQ-GAN is trained."""

    batch_size: int = BATCH_SIZE
    n_epochs: int = N_EPOCHS
    optimizer: Literal["muon", "adam"] = option(
        "muon",
        "What moves the weights: Muon for the kernels between the first and the last convolution and Adam (betas 0.5, "
        "0.9) for all else, or 'adam' alone, as the original does.",
        group=TRAINING,
    )
    lr: float | None = option(
        None,
        "Learning rate of all weights; of the discriminator's, where it is smaller than "
        f"{LARGEST_RATE_OF_DISCRIMINATOR:g} (default: {RATES['muon']:g} with muon, {RATES['adam']:g} with adam).",
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
        for name in ("batch_size", "n_epochs", "sample_and_save_freq"):
            check(getattr(self, name) > 0, name, getattr(self, name), "positive")
        check(self.lr is None or self.lr > 0, "lr", self.lr, "positive")
        at_least_zero = ("grad_clip", "disc_weight", "disc_start", "warmup", "codebook_weight")
        for name in (*at_least_zero, "perceptual_weight", "revive_below"):
            check((getattr(self, name) or 0) >= 0, name, getattr(self, name), "0 or more")
        check((self.revive_below or 0) < 1, "revive_below", self.revive_below, "below 1")
        for name in ("ema", "codebook_decay"):
            check(0 <= (getattr(self, name) or 0) < 1, name, getattr(self, name), "in [0, 1)")
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

    def discriminator_start(self, steps_per_epoch: int) -> int:
        """The first step with an adversarial term: `disc_start` or the end of `warmup`, whichever is later."""
        return max(self.disc_start, self.warmup * steps_per_epoch)
