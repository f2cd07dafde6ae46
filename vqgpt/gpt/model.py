"""An autoregressive transformer over codebook indices, of blocks as `gpt.architecture` has them.

    tokens (B, T) int64 -> logits (B, T, K) float32, for the code that follows each token

A sequence is [start, t_0, ..., t_(T-2)] and predicts [t_0, ..., t_(T-1)]; start is BOS, the token of a class, or BOS
plus the embeddings of bits. Logits exist for the K codes only, so that BOS and classes cannot be sampled.
Letters: B batch, S tokens of a call, T tokens per image, K codebook size, D width, A heads, L bits.
"""

import math
from collections.abc import Iterator
from typing import assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.architecture import NormKind, activate, mlp_widths, normalise
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.gpt.order import grid_to_sequence, scan_order
from vqgpt.kernels.attention import Masks, attend, attention_masks
from vqgpt.runtime.device import autocast

ROTARY_BASE = 100.0  # grids are short: text has 10,000
NUMBERS_PER_PASS = 2**25  # logits in memory at once, in scoring
MOST_IMAGES_PER_PASS = 256


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


def new_norm(options: GPTOptions) -> Norm:
    """The normalisation of the residual stream."""
    return Norm(options.architecture.norm, options.embed_dim_t, options.bias)


def dropout(x: Tensor, rate: float, masks: Masks | None, training: bool) -> Tensor:
    """Dropout of x (B, S, D): by the masks where there are some, else torch's own."""
    return masks.drop(x) if masks else F.dropout(x, rate, training)


class Rotary(nn.Module):
    """Rotary positions in two dimensions (Su et al. 2021): half of each head is rotated by the row, half by the column.

    A query is rotated by the cell that it is to predict, a key by the cell whose code it holds (the start token: by
    none), so that their product sees the offset on the grid, whatever the order.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        head = config.options.embed_dim_t // config.options.n_head
        cells = scan_order(config.options.order, config.grid)
        rates = ROTARY_BASE ** -(torch.arange(head // 4) / (head // 4))
        rows, columns = cells // config.grid[1], cells % config.grid[1]
        angles = torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)  # (T, D/A/2)
        of_keys = torch.cat([torch.zeros(1, head // 2), angles[:-1]])
        for name, of_cells in (("query", angles), ("key", of_keys)):
            self.register_buffer(f"{name}_cos", of_cells.cos(), persistent=False)
            self.register_buffer(f"{name}_sin", of_cells.sin(), persistent=False)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (B, S, A, D/A) of the first S positions -> the same, rotated."""
        here = slice(0, q.shape[1])
        return (
            _rotated(q, self.query_cos[here], self.query_sin[here]),  # type: ignore[index]
            _rotated(k, self.key_cos[here], self.key_sin[here]),  # type: ignore[index]
        )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        options = config.options
        self.n_head = options.n_head
        self.dropout = options.dropout_t
        self.c_attn = nn.Linear(options.embed_dim_t, 3 * options.embed_dim_t, bias=options.bias)
        self.c_proj = nn.Linear(options.embed_dim_t, options.embed_dim_t, bias=options.bias)
        architecture, head = options.architecture, options.embed_dim_t // options.n_head
        match architecture.positions:
            case "learned":
                self.rotary = None
            case "rotary":
                self.rotary = Rotary(config)
            case _:
                assert_never(architecture.positions)
        self.q_norm, self.k_norm = (
            Norm("root-mean-square", head) if architecture.normalised_heads else None for _ in "qk"
        )

    def forward(self, x: Tensor, masks: Masks | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, S, 3, A, D/A)
        if self.rotary or self.q_norm:
            q, k, v = qkv.unbind(2)
            q, k = q.float(), k.float()
            if self.q_norm and self.k_norm:
                q, k = self.q_norm(q), self.k_norm(k)
            if self.rotary:
                q, k = self.rotary(q, k)
            qkv = torch.stack([q.to(v.dtype), k.to(v.dtype), v], dim=2)
        rate = self.dropout if self.training else 0.0
        if masks:
            with torch.autocast(x.device.type, enabled=False):
                y = attend(qkv.float(), masks).to(qkv.dtype)
        elif x.is_cpu and not rate and not torch.compiler.is_compiling():
            y = attend(qkv, None)
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True).transpose(1, 2)
        return dropout(self.c_proj(y.flatten(2)), self.dropout, masks, self.training)


class MLP(nn.Module):
    """Two linear layers, and a non-linear function between them."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.dropout = options.dropout_t
        self.kind = options.architecture.mlp
        width_of_first, width_of_second = mlp_widths(self.kind, options.embed_dim_t)
        self.c_fc = nn.Linear(options.embed_dim_t, width_of_first, bias=options.bias)
        self.c_proj = nn.Linear(width_of_second, options.embed_dim_t, bias=options.bias)

    def forward(self, x: Tensor, masks: Masks | None) -> Tensor:
        """(B, S, D) -> the same shape."""
        x = activate(self.c_fc(x), self.kind)
        return dropout(self.c_proj(x), self.dropout, masks, self.training)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = new_norm(config.options)
        self.attn = Attention(config)
        self.ln_2 = new_norm(config.options)
        self.mlp = MLP(config.options)

    def forward(self, x: Tensor, masks: Masks | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = x + self.attn(self.ln_1(x), masks)
        return x + self.mlp(self.ln_2(x), masks)


class GPT(nn.Module):
    """Embeddings of tokens and of learned positions; blocks; an output head tied to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        options = config.options
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(config.vocabulary_size, options.embed_dim_t)}
        match options.architecture.positions:
            case "learned":
                parts["wpe"] = nn.Embedding(config.block_size, options.embed_dim_t)
            case "rotary":  # `Attention` has them
                pass
            case _:
                assert_never(options.architecture.positions)
        parts["h"] = nn.ModuleList(Block(config) for _ in range(options.n_layer))
        parts["ln_f"] = new_norm(options)
        self.transformer = nn.ModuleDict(parts)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual projections: GPT-2's scaling by depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.n_layer))

    def forward(self, tokens: Tensor, bits: Tensor | None = None, masks: Masks | None = None) -> Tensor:
        """Tokens (B, S) int64 -> logits (B, S, K) float32.

        `bits` (B, L) are added to the start token: 1 for yes, -1 for no, 0 for unspecified. `masks`, where given, are
        the dropout. One token after the other, with a key-value cache: `gpt.decoding`.
        """
        wte = cast(nn.Embedding, self.transformer["wte"])
        x = wte(tokens)
        if "wpe" in self.transformer:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = x + self.transformer["wpe"](positions)
        if bits is not None:
            start = bits.to(x.dtype) @ wte.weight[self.config.bos + 1 :]
            x = torch.cat([x[:, :1] + start[:, None], x[:, 1:]], dim=1)
        x = dropout(x, self.config.options.dropout_t, masks, self.training)
        for block in cast(nn.ModuleList, self.transformer["h"]):
            x = block(x, masks)
        codes_only = wte.weight[: self.config.codebook_size]
        return F.linear(self.transformer["ln_f"](x), codes_only).float()

    @property
    def masks_per_image(self) -> int:
        """How many activations of an image dropout decides on: `Masks` must have as many."""
        options, positions = self.config.options, self.config.block_size
        stream = positions * options.embed_dim_t
        return stream + options.n_layer * (options.n_head * attention_masks(positions) + 2 * stream)

    def start(self, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Labels of B images -> their start tokens (B, 1), and their bits for `forward` if they are bits.

        Labels are class ids (B,), -1 for none, or bits (B, L) of 1, -1 for no, 0 for unspecified.
        """
        if labels.ndim == 2:
            return labels.new_full((len(labels), 1), self.config.bos, dtype=torch.int64), labels
        return torch.where(labels < 0, self.config.bos, self.config.bos + 1 + labels)[:, None], None

    def loss(self, codes: Tensor, labels: Tensor, hidden: Tensor | None = None, masks: Masks | None = None) -> Tensor:
        """Mean cross-entropy in nats per token of code sequences (B, T), given labels as `start` takes them.

        Tokens that are `hidden` (B, T) bool are not shown as input (BOS stands for them), but predicted.
        """
        return F.cross_entropy(self.predictions(codes, labels, hidden, masks).flatten(0, 1), codes.flatten())

    def predictions(
        self, codes: Tensor, labels: Tensor, hidden: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        """Logits (B, T, K) for each token of sequences (B, T), from those before it, in one pass; see `loss`."""
        start, bits = self.start(labels)
        shown = codes if hidden is None else codes.masked_fill(hidden, self.config.bos)
        inputs = torch.cat([start, shown[:, :-1]], dim=1)
        return self(inputs, bits=bits, masks=masks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


@torch.no_grad()
def logits_of_images(model: GPT, codes: Tensor, labels: Tensor, precision: str) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model predicts of grids (N, h, w), pass by pass: logits (n, T, K) float32, and the tokens (n, T) int64.

    Both are in the order in which the model reads the grid, on its device. Labels are as `GPT.start` takes them. Sets
    eval mode.
    """
    config, device = model.config, next(model.parameters()).device
    model.eval()
    scan = scan_order(config.options.order, config.grid)
    at_once = max(1, min(MOST_IMAGES_PER_PASS, NUMBERS_PER_PASS // (config.block_size * config.codebook_size)))
    for grids, of_them in zip(codes.split(at_once), labels.split(at_once), strict=True):
        sequences = grid_to_sequence(grids, scan).long().to(device)
        with autocast(device, precision):
            logits = model.predictions(sequences, of_them.to(device))
        yield logits, sequences


def nats_of_images(model: GPT, codes: Tensor, labels: Tensor, precision: str) -> Iterator[Tensor]:
    """Minus the log-probability of grids (N, h, w) given labels as `GPT.start` takes them, pass by pass, (n,) float64.

    A sum over all tokens of an image, of the model's own distribution: no temperature, no filter, no guidance.
    """
    for logits, sequences in logits_of_images(model, codes, labels, precision):
        nats = F.cross_entropy(logits.flatten(0, 1), sequences.flatten(), reduction="none")
        yield nats.view(sequences.shape).cpu().double().sum(dim=1)  # MPS has no float64
