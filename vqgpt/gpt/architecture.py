"""What a block of the GPT is made of: the table of architectures, and what each part computes.

    name of an architecture -> its parts; a part and tensors -> tensors

The network (`gpt.model`) and cached decoding in torch (`gpt.decoding`) compute by these functions alone. A new variant
is a name, its row, and an arm in each `match` over the part that is new. Options read the table, so that torch must not
be imported at the head of this module.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    from torch import Tensor

Arch = Literal["gpt2", "llama"]
ARCH_HELP = (
    "Architecture: 'gpt2', or 'llama' (RMSNorm, SwiGLU, rotary positions from the grid, normalised queries and keys)."
)

NormKind = Literal["layer", "root-mean-square"]
MLPKind = Literal["gelu", "swiglu"]
PositionKind = Literal["learned", "rotary"]

EPSILON = 1e-5  # of all normalisations


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The parts of a pre-norm transformer block."""

    norm: NormKind  # of the residual stream
    mlp: MLPKind  # what is between its two linear layers
    positions: PositionKind
    normalised_heads: bool  # queries and keys, each by its root mean square
    biases: bool  # whether --bias may ask for them


ARCHITECTURES: dict[Arch, Architecture] = {
    # Radford et al. 2019
    "gpt2": Architecture(norm="layer", mlp="gelu", positions="learned", normalised_heads=False, biases=True),
    # Touvron et al. 2023, as image models have it
    "llama": Architecture(
        norm="root-mean-square", mlp="swiglu", positions="rotary", normalised_heads=True, biases=False
    ),
}


def normalise(x: "Tensor", kind: NormKind, weight: "Tensor", bias: "Tensor | None") -> "Tensor":
    """(..., D) -> the same shape; weight and bias (D,)."""
    from torch.nn import functional as F

    match kind:
        case "layer":
            return F.layer_norm(x, weight.shape, weight, bias, EPSILON)
        case "root-mean-square":
            y = F.rms_norm(x, weight.shape, weight, EPSILON)
            return y if bias is None else y + bias
        case _:
            assert_never(kind)


def mlp_widths(kind: MLPKind, width: int) -> tuple[int, int]:
    """The outputs of the first linear layer, and the inputs of the second, for as many parameters in every kind."""
    match kind:
        case "gelu":
            return 4 * width, 4 * width
        case "swiglu":
            inside = round(8 * width / 3 / 8) * 8
            return 2 * inside, inside
        case _:
            assert_never(kind)


def activate(x: "Tensor", kind: MLPKind) -> "Tensor":
    """What the first linear layer gives -> what the second takes; see `mlp_widths`."""
    from torch.nn import functional as F

    match kind:
        case "gelu":
            return F.gelu(x)
        case "swiglu":
            gate, x = x.chunk(2, dim=-1)
            return F.silu(gate) * x
        case _:
            assert_never(kind)


def head_multiple(kind: PositionKind) -> int:
    """The width of a head must be a multiple of this."""
    match kind:
        case "learned":
            return 1
        case "rotary":  # pairs of numbers, for rows and for columns
            return 4
        case _:
            assert_never(kind)
