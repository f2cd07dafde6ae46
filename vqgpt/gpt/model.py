"""An autoregressive transformer over codebook indices, of blocks as `gpt.architecture` has them.

    tokens (B, T) int64 -> logits (B, T, K) float32, for the code that follows each token

A sequence is [start, t_0, ..., t_(T-2)] and predicts [t_0, ..., t_(T-1)]; start is BOS, the token of a class, or BOS
plus the embeddings of bits, and the embedding of a view is added where views are told apart. Logits exist for the K
codes only, so that BOS and classes cannot be sampled.
Letters: B batch, S tokens of a call, T tokens per image, K codebook size, D width, A heads, L bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import assert_never, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqgpt.gpt.architecture import activate, mlp_widths
from vqgpt.gpt.attention import Attention, Cache, Norm, Rotary, Rotation, dropout
from vqgpt.gpt.options import GPTConfig, GPTOptions
from vqgpt.gpt.order import cells_before, scan_order
from vqgpt.kernels.attention import Masks, attention_masks


def new_norm(options: GPTOptions) -> Norm:
    """The normalisation of the residual stream."""
    return Norm(options.architecture.norm, options.embed_dim_t, options.bias)


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

    def forward(
        self, x: Tensor, rotation: Rotation | None, see: Callable[[Tensor], Tensor] | None, masks: Masks | None
    ) -> Tensor:
        """(B, S, D) -> (B, S, D); see `Attention.forward`."""
        x = x + self.attn(self.ln_1(x), rotation, see, masks)
        return x + self.mlp(self.ln_2(x), masks)


class GPT(nn.Module):
    """Embeddings of tokens and of learned positions; blocks; an output head tied to the token embedding.

    A network for any order has an embedding of the cell that comes next too.
    """

    cells: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        options = config.options
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(config.vocabulary_size, options.embed_dim_t)}
        self.rotary: Rotary | None = None
        match options.architecture.positions:
            case "learned":
                parts["wpe"] = nn.Embedding(config.block_size + options.any_order, options.embed_dim_t)
            case "rotary":
                self.rotary = Rotary(config)
            case _:
                assert_never(options.architecture.positions)
        if options.any_order:
            parts["wpe_next"] = nn.Embedding(config.block_size, options.embed_dim_t)
        parts["h"] = nn.ModuleList(Block(config) for _ in range(options.n_layer))
        parts["ln_f"] = new_norm(options)
        self.transformer = nn.ModuleDict(parts)
        self.rounded_head: Tensor | None = None
        self.register_buffer("cells", scan_order(options.own_order, config.grid), persistent=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # residual projections: GPT-2's scaling by depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * options.n_layer))

    def forward(
        self,
        tokens: Tensor,
        cells: Tensor,
        cache: Cache | None = None,
        added: Tensor | None = None,
        masks: Masks | None = None,
    ) -> Tensor:
        """Tokens (B, S) int64 -> logits (B, S, K) float32, of the code of the cell that follows each.

        `cells` are those of all T codes in the order of the sequence: (T,), or (B, T) where each image has its own,
        which a network for any order takes. `cells` of the network are its own order. The tokens are the first S of the
        sequence; with a cache, those from its place on. `added`, where given, is for the start token
        (`add_to_start`), and `masks` are the dropout.
        """
        places = slice(0, tokens.shape[1]) if cache is None else cache.places(tokens.shape[1])
        x = self.embed(tokens, cells, places)
        if added is not None:
            x = torch.cat([self.add_to_start(x[:, 0], added)[:, None], x[:, 1:]], dim=1)
        rotation = self.rotary(cells_before(cells)[..., places], cells[..., places]) if self.rotary else None
        x = dropout(x, self.config.options.dropout_t, masks, self.training)
        for layer, block in enumerate(cast(nn.ModuleList, self.transformer["h"])):
            x = block(x, rotation, partial(cache.attend, layer) if cache else None, masks)
        return self.logits(x)

    def logits(self, stream: Tensor) -> Tensor:
        """The last stream (B, S, D) -> (B, S, K) float32."""
        x, head = self.transformer["ln_f"](stream), self.codes_of_head
        return F.linear(x.to(head.dtype), head).float()

    @property
    def codes_of_head(self) -> Tensor:
        """The output head (K, D): the embeddings of the codes, or, for decoding, those rounded to its precision."""
        codes = cast(nn.Embedding, self.transformer["wte"]).weight[: self.config.codebook_size]
        return codes if self.rounded_head is None else self.rounded_head

    def embed(self, tokens: Tensor, cells: Tensor, places: slice | int | Tensor) -> Tensor:
        """What the network reads at some places of a sequence: tokens (B, S) -> (B, S, D); at one, (B,) -> (B, D).

        What is added to a start token comes on top: `add_to_start`.
        """
        parts, any_order = self.transformer, self.config.options.any_order
        x = F.embedding(tokens, cast(nn.Embedding, parts["wte"]).weight)
        if self.rotary is None:
            wpe = cast(nn.Embedding, parts["wpe"])
            x = x + (wpe(cells_before(cells)[..., places]) if any_order else wpe.weight[places])
        if any_order:
            x = x + parts["wpe_next"](cells[..., places])
        return x

    def add_to_start(self, start: Tensor, added: Tensor) -> Tensor:
        """Start tokens as they are read (B, D) -> plus `added` (B, n) times the last n embeddings, see `start`.

        One by one: a product would round by its rows.
        """
        weights = cast(nn.Embedding, self.transformer["wte"]).weight[-added.shape[1] :]
        for share, weight in zip(added.t(), weights, strict=True):
            start = start + share[:, None] * weight
        return start

    @property
    def masks_per_image(self) -> int:
        """How many activations of an image dropout decides on: `Masks` must have as many."""
        options, positions = self.config.options, self.config.block_size
        stream = positions * options.embed_dim_t
        return stream + options.n_layer * (options.n_head * attention_masks(positions) + 2 * stream)

    def start(self, labels: Tensor, views: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Labels of B images -> their start tokens (B, 1), and what `forward` adds to them, bits and view (B, L + V).

        Labels are class ids (B,), -1 for none, or bits (B, L) of 1, -1 for no, 0 for unspecified. `views` (B,) are
        those of the training cache, for a network that tells them apart; the first where not given.
        """
        added = [labels] if labels.ndim == 2 else []
        if self.config.num_views:
            views = labels.new_zeros(len(labels), dtype=torch.int64) if views is None else views
            added.append(F.one_hot(views, self.config.num_views))
        bos = labels.new_full((len(labels),), self.config.bos, dtype=torch.int64)
        tokens = bos if labels.ndim == 2 else torch.where(labels < 0, bos, bos + 1 + labels)
        return tokens[:, None], torch.cat(added, dim=1) if added else None

    def loss(
        self,
        codes: Tensor,
        labels: Tensor,
        cells: Tensor,
        views: Tensor | None = None,
        shown: Tensor | None = None,
        masks: Masks | None = None,
    ) -> Tensor:
        """Mean cross-entropy in nats per token of code sequences (B, T), given labels and views as `start` takes them.

        `cells` are as `forward` takes them. Where `shown` (B, T) is given, it is the input in place of the codes.
        """
        logits = self.predictions(codes if shown is None else shown, labels, cells, views, masks)
        return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def predictions(
        self, codes: Tensor, labels: Tensor, cells: Tensor, views: Tensor | None = None, masks: Masks | None = None
    ) -> Tensor:
        """Logits (B, T, K) for each token of sequences (B, T), from those before it, in one pass."""
        start, added = self.start(labels, views)
        return self(torch.cat([start, codes[:, :-1]], dim=1), cells, added=added, masks=masks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def with_one_view(weights: Mapping[str, Tensor], config: GPTConfig) -> tuple[dict[str, Tensor], GPTConfig]:
    """The weights of a network that tells views apart -> of one that knows the first alone, and its architecture.

    What is added to the start token in that view is in its embedding then.
    """
    codes_and_starts = weights["transformer.wte.weight"][: -config.num_views].clone()
    codes_and_starts[config.bos :] += weights["transformer.wte.weight"][-config.num_views]
    options = replace(config.options, condition_view=False)
    return {**weights, "transformer.wte.weight": codes_and_starts}, replace(config, num_views=0, options=options)


def with_one_order(weights: Mapping[str, Tensor], cells: Tensor) -> dict[str, Tensor]:
    """The weights of a network for any order -> of one that has the order `cells` (T,) alone, and computes the same.

    Of learned positions: what is added to a token, by its own cell and by the next one, is added up for each place.
    """
    folded = dict(weights)
    own, by_next = folded["transformer.wpe.weight"], folded.pop("transformer.wpe_next.weight")
    cells = cells.to(own.device)
    folded["transformer.wpe.weight"] = own[cells_before(cells)] + by_next[cells]
    return folded
