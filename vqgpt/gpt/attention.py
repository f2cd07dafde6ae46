"""Attention of the GPT: what places see of each other, with the positions of cells, and the cache of keys and values.

    queries, keys and values (B, S, 3, A, D/A) -> what the heads see (B, S, A, D/A)

Letters: B images, R rows of a cache, S tokens of a call, T tokens per image, D width, A heads.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.architecture import NormKind, normalise
from vqgpt.gpt.options import GPTConfig
from vqgpt.kernels.attention import Masks, attend

ROTARY_BASE = 100.0  # grids are short: text has 10,000


class Norm(nn.Module):
    """A normalisation over the width, with or without a bias."""

    def __init__(self, kind: NormKind, width: int, bias: bool = False) -> None:
        super().__init__()
        self.kind: NormKind = kind
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same shape."""
        return normalise(x, self.kind, self.weight, self.bias)


def dropout(x: Tensor, rate: float, masks: Masks | None, training: bool) -> Tensor:
    """Dropout of x (B, S, D): by the masks where there are some, else torch's own."""
    return masks.drop(x) if masks else F.dropout(x, rate, training)


class Rotation(NamedTuple):
    """Cosines and sines of queries and of keys, each (S, 1, D/A/2) or (B, S, 1, D/A/2)."""

    query_cos: Tensor
    query_sin: Tensor
    key_cos: Tensor
    key_sin: Tensor

    def __call__(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, S, A, D/A) -> the same, rotated."""
        return _rotated(q, self.query_cos, self.query_sin), _rotated(k, self.key_cos, self.key_sin)


class Rotary(nn.Module):
    """Rotary positions in two dimensions (Su et al. 2021): half of each head is rotated by the row, half by the column.

    A query is rotated by the cell that it is to predict, a key by the cell whose code it holds (the start token: by
    none), so that their product sees the offset on the grid, whatever the order.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        head = config.options.embed_dim_t // config.options.n_head
        cells = torch.arange(config.block_size)
        rates = ROTARY_BASE ** -(torch.arange(head // 4) / (head // 4))
        rows, columns = cells // config.grid[1], cells % config.grid[1]
        of_cells = torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)
        angles = torch.cat([of_cells, torch.zeros(1, head // 2)])  # (T + 1, D/A/2): the last is the start token's
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, before: Tensor, cells: Tensor) -> Rotation:
        """The cells (..., S) whose codes the tokens are, T for the start token, and those that they predict."""
        tables = cast(Tensor, self.cos), cast(Tensor, self.sin)
        return Rotation(*(table[places].unsqueeze(-2) for places in (cells, before) for table in tables))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Cache:
    """The keys and values of R rows at T places, static: nothing is allocated twice.

    The next tokens are at `place`. Where that is a tensor (1,) on the device, as a CUDA graph needs it, `seen` places
    are read, and those after the tokens masked.
    """

    place: int | Tensor
    seen: int

    def __init__(self, config: GPTConfig, rows: int, dtype: torch.dtype, device: torch.device) -> None:
        options = config.options
        shape = (rows, options.n_head, config.block_size, options.embed_dim_t // options.n_head)
        self.keys, self.values = torch.zeros(2, options.n_layer, *shape, dtype=dtype, device=device)
        self.go_to(0)

    def go_to(self, place: int | Tensor, seen: int = 0) -> None:
        """The next tokens are at this place; what an earlier pass left after it is not seen."""
        self.place, self.seen = place, seen

    def places(self, count: int) -> slice | Tensor:
        """Those of the next `count` tokens."""
        if isinstance(self.place, int):
            return slice(self.place, self.place + count)
        return self.place + torch.arange(count, device=self.place.device)

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Queries, keys and values (R, S, 3, A, D/A) -> what the heads of a layer see (R, S, A, D/A)."""
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        keys, values, count = self.keys[layer], self.values[layer], q.shape[2]
        if isinstance(self.place, int):
            seen = self.place + count
            keys[:, :, self.place : seen] = k
            values[:, :, self.place : seen] = v
        else:
            seen = self.seen
            keys.index_copy_(2, self.places(count), k.to(keys.dtype))
            values.index_copy_(2, self.places(count), v.to(keys.dtype))
        mask = None
        if count > 1 or not isinstance(self.place, int):
            ends = self.place + torch.arange(count, device=q.device)
            mask = torch.arange(seen, device=q.device) <= ends[:, None]
        y = F.scaled_dot_product_attention(q.to(keys.dtype), keys[:, :, :seen], values[:, :, :seen], attn_mask=mask)
        return y.transpose(1, 2)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        options = config.options
        self.n_head = options.n_head
        self.dropout = options.dropout_t
        self.c_attn = nn.Linear(options.embed_dim_t, 3 * options.embed_dim_t, bias=options.bias)
        self.c_proj = nn.Linear(options.embed_dim_t, options.embed_dim_t, bias=options.bias)
        head = options.embed_dim_t // options.n_head
        self.q_norm, self.k_norm = (
            Norm("root-mean-square", head) if options.architecture.normalised_heads else None for _ in "qk"
        )

    def forward(
        self, x: Tensor, rotation: Rotation | None, see: Callable[[Tensor], Tensor] | None, masks: Masks | None
    ) -> Tensor:
        """(B, S, D) -> (B, S, D). `see` takes queries, keys and values to what the heads see, by a cache."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, S, 3, A, D/A)
        if rotation or self.q_norm:
            q, k, v = qkv.unbind(2)
            q, k = q.float(), k.float()
            if self.q_norm and self.k_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            if rotation:
                q, k = rotation(q, k)
            qkv = torch.stack([q.to(v.dtype), k.to(v.dtype), v], dim=2)
        y = see(qkv) if see else self._seen(qkv, masks)
        return dropout(self.c_proj(y.flatten(2)), self.dropout, masks, self.training)

    def _seen(self, qkv: Tensor, masks: Masks | None) -> Tensor:
        """What each place sees of itself and of those before it, (B, S, A, D/A)."""
        rate = self.dropout if self.training else 0.0
        if masks or (qkv.is_cpu and not rate and not torch.compiler.is_compiling()):
            with torch.autocast(qkv.device.type, enabled=False):
                return attend(qkv.float(), masks).to(qkv.dtype)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True).transpose(1, 2)
