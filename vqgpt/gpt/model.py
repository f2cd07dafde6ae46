"""An autoregressive transformer over codebook indices: GPT-2 blocks (Radford et al. 2019).

    tokens (B, T) int64 -> logits (B, T, K) float32, for the code that follows each token

A sequence is [start, t_0, ..., t_(T-2)] and predicts [t_0, ..., t_(T-1)]; start is BOS or the token of a class.
Logits exist for the K codes only, so that BOS and classes cannot be sampled.
Letters: B batch, T tokens per image, K codebook size, D width, A heads.
Knows nothing of images, the VQ-GAN and token caches, and must not import them.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.config.gpt import GPTConfig, GPTOptions


class LayerNorm(nn.Module):
    """Layer normalisation whose bias is optional."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same shape."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class KVCache:
    """Keys and values of one layer for all T positions, (B, A, T, D/A) each, filled from the left."""

    def __init__(self, batch: int, config: GPTConfig, like: Tensor) -> None:
        shape = (batch, config.options.n_head, config.block_size, config.options.embed_dim_t // config.options.n_head)
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)

    def append(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, A, S, D/A) from `position` on; return those of all positions up to there."""
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.n_head = options.n_head
        self.dropout = options.dropout_t
        self.c_attn = nn.Linear(options.embed_dim_t, 3 * options.embed_dim_t, bias=options.bias)
        self.c_proj = nn.Linear(options.embed_dim_t, options.embed_dim_t, bias=options.bias)

    def forward(self, x: Tensor, position: int, cache: KVCache | None) -> Tensor:
        """(B, S, D) -> (B, S, D); with a cache, S must be 1 unless the cache is empty."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)  # each (B, A, S, D/A)
        if cache is not None:
            k, v = cache.append(position, k, v)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=q.shape[2] > 1)
        return F.dropout(self.c_proj(y.transpose(1, 2).flatten(2)), self.dropout, self.training)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them, four times as wide inside."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.dropout = options.dropout_t
        self.c_fc = nn.Linear(options.embed_dim_t, 4 * options.embed_dim_t, bias=options.bias)
        self.c_proj = nn.Linear(4 * options.embed_dim_t, options.embed_dim_t, bias=options.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same shape."""
        return F.dropout(self.c_proj(F.gelu(self.c_fc(x))), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, options: GPTOptions) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(options.embed_dim_t, options.bias)
        self.attn = Attention(options)
        self.ln_2 = LayerNorm(options.embed_dim_t, options.bias)
        self.mlp = MLP(options)

    def forward(self, x: Tensor, position: int, cache: KVCache | None) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = x + self.attn(self.ln_1(x), position, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Token and learned position embeddings, blocks, and an output head tied to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        options = config.options
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocabulary_size, options.embed_dim_t),
                "wpe": nn.Embedding(config.block_size, options.embed_dim_t),
                "h": nn.ModuleList(Block(options) for _ in range(options.n_layer)),
                "ln_f": LayerNorm(options.embed_dim_t, options.bias),
            }
        )
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual projections: GPT-2's scaling by depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.n_layer))

    def forward(self, tokens: Tensor, position: int = 0, caches: list[KVCache] | None = None) -> Tensor:
        """Tokens (B, S) int64, the first at `position` -> logits (B, S, K) float32.

        With `caches` (one per layer), the positions before `position` are read from them, and S must be 1 after the
        first call.
        """
        positions = torch.arange(position, position + tokens.shape[1], device=tokens.device)
        wte = cast(nn.Embedding, self.transformer["wte"])
        x = wte(tokens) + self.transformer["wpe"](positions)
        x = F.dropout(x, self.config.options.dropout_t, self.training)
        for layer, block in enumerate(cast(nn.ModuleList, self.transformer["h"])):
            x = block(x, position, caches[layer] if caches else None)
        codes_only = wte.weight[: self.config.codebook_size]
        return F.linear(self.transformer["ln_f"](x), codes_only).float()

    def new_caches(self, batch: int) -> list[KVCache]:
        """Empty key-value caches for sampling `batch` images, one per layer."""
        like = next(self.parameters())
        return [KVCache(batch, self.config, like) for _ in range(self.config.options.n_layer)]

    def start_tokens(self, classes: Tensor) -> Tensor:
        """Class ids (B,) int64, -1 for none -> start tokens (B, 1): BOS or the token of the class."""
        return torch.where(classes < 0, self.config.bos, self.config.bos + 1 + classes)[:, None]

    def loss(self, codes: Tensor, classes: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of code sequences (B, T) given classes (B,), -1 for none."""
        inputs = torch.cat([self.start_tokens(classes), codes[:, :-1]], dim=1)
        return F.cross_entropy(self(inputs).flatten(0, 1), codes.flatten())


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
