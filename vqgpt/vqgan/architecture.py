"""The architecture of a VQ-GAN: what the user chose, for images of a size, or what a checkpoint has.

    VQGANOptions, image channels and size  ->  VQGANConfig: levels, grid, what codes depend on

Must not import torch.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from vqgpt.errors import InputError
from vqgpt.options.definition import check
from vqgpt.vqgan.options import VQGANOptions, check_network

Lookup = Literal["nearest", "cosine", "logits", "dot"]
Network = Literal["taming", "maskgit"]
AttentionType = Literal["vanilla", "linear"]
MOST_PIXELS = 2**16  # of the side of an image
LATER_FIELDS = {  # of VQGANConfig: there were caches before them
    *("mid_attention", "network", "attn_type", "resamp_with_conv", "tanh_out"),
    *("norm_groups", "patch"),
}


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
        check_network(self)
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
