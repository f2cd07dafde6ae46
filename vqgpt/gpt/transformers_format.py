"""A GPT of the architecture gpt2 as a model of Hugging Face transformers: the files of its folder.

    weights of ours, description of the training cache -> config.json, model.safetensors, generation_config.json, ...

It has the same logits. What the format cannot say stands in vqgpt.json and README.md: the order of the grid, what the
start tokens mean, and which VQ-GAN decodes. Knows nothing of images and the VQ-GAN; does not import transformers.
"""

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from vqgpt.gpt.options import GPTConfig
from vqgpt.gpt.order import scan_order
from vqgpt.storage.files import canonical_json

FACTS = "vqgpt.json"


def transformers_files(
    weights: Mapping[str, Tensor],
    config: GPTConfig,
    description: Mapping[str, Any],
    cache_digest: str,
    gpt_sha256: str,
    figures: Mapping[str, float],
) -> dict[str, bytes]:
    """The files by name. `description` (JSON) and digest are those of the training cache; `figures` of the training.

    The GPT must be gpt2 without bits.
    """
    facts = {
        "codebook_size": config.codebook_size,
        "grid": config.grid,
        "order": config.options.order,
        "scan": scan_order(config.options.order, config.grid).tolist(),
        "bos": config.bos,
        "class_names": description["class_names"][: config.num_classes],
        "dataset": description["dataset"],
        "image_size": description["image_size"],
        "image_channels": description["image_channels"],
        "tokenizer_sha256": description["tokenizer_sha256"],
        "training_cache_digest": cache_digest,
        "gpt_sha256": gpt_sha256,
        "figures": dict(figures),
    }
    return {
        "config.json": canonical_json(model_config(config)),
        "generation_config.json": canonical_json(generation_config(config)),
        "model.safetensors": safetensors.torch.save(transformers_weights(weights, config), {"format": "pt"}),
        FACTS: canonical_json(facts),
        "README.md": model_card(facts).encode(),
    }


def model_config(config: GPTConfig) -> dict[str, Any]:
    """What becomes a GPT2Config. One position more than ours has: servers count the start token and all tokens."""
    options = config.options
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocabulary_size,
        "n_positions": config.block_size + 1,
        "n_embd": options.embed_dim_t,
        "n_layer": options.n_layer,
        "n_head": options.n_head,
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": options.dropout_t,
        "attn_pdrop": options.dropout_t,
        "resid_pdrop": options.dropout_t,
        "tie_word_embeddings": True,
        "bos_token_id": config.bos,
        "eos_token_id": None,
        "dtype": "float32",
    }


def generation_config(config: GPTConfig) -> dict[str, Any]:
    """One image, drawn from the whole distribution over codes; start tokens are never drawn."""
    return {
        "bos_token_id": config.bos,
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_new_tokens": config.block_size,
        "max_new_tokens": config.block_size,
        "suppress_tokens": list(range(config.codebook_size, config.vocabulary_size)),
    }


def transformers_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The tensors by their names there: matrices of layers are (in, out), and every layer and norm has a bias."""
    result = {}
    for name, tensor in weights.items():
        is_layer = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        result[name] = tensor.T.contiguous() if is_layer else tensor.contiguous()
        if name.endswith("weight") and not name.startswith(("transformer.wte", "transformer.wpe")):
            bias = name.removesuffix("weight") + "bias"
            result[bias] = weights.get(bias, tensor.new_zeros(len(tensor)))
    positions = weights["transformer.wpe.weight"]
    result["transformer.wpe.weight"] = torch.cat([positions, torch.zeros_like(positions[:1])])  # never looked up
    return result


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md, in Markdown."""
    height, width = facts["grid"]
    bos, classes = facts["bos"], facts["class_names"]
    start = f"`{bos}`"
    if classes:
        start += f", or, for class `i` of the `class_names` in `vqgpt.json`, `{bos + 1} + i`"
    known = facts["tokenizer_sha256"] != "unknown"
    decoder = f"`tokenizer_sha256` is `{facts['tokenizer_sha256']}`" if known else "codes the training images had"
    figures = "".join(f"| {name.replace('_', ' ')} | {value:.4g} |\n" for name, value in facts["figures"].items())
    return f"""---
library_name: transformers
tags: [vqgpt, vqgan, image-generation]
---

# A GPT over image tokens: {facts["dataset"]}

This model generates grids of {height} x {width} codes of a VQ-GAN with {facts["codebook_size"]} codes, which decodes
them to images of {facts["image_size"][0]} x {facts["image_size"][1]} pixels. It is a GPT-2 over codes, not over text:
there is no text tokenizer. It was trained and exported with vqgpt.

- A sequence is a start token, then {height * width} codes, each from 0 to {bos - 1}.
- The start token is {start}.
- The grid is read in the order {facts["order"]}: code number `t` belongs to cell `scan[t]` of the grid, counted row by
  row from the top left.
- Only the VQ-GAN whose {decoder} decodes these codes.
- Start tokens are never generated, because `generation_config.json` suppresses them. A server that ignores that file
  has to forbid the tokens from {bos} on.

```python
import json, pathlib, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(".")
facts = json.loads(pathlib.Path("vqgpt.json").read_text())
drawn = model.generate(torch.full((4, 1), facts["bos"]))[:, 1:]
grids = drawn[:, torch.tensor(facts["scan"]).argsort()].view(4, {height}, {width})
```

`vqgpt.load_vqgan("vqgan.pt").decode(grids.numpy())` makes images of them.

| training | |
|---|---|
{figures}| tokens | {facts["training_cache_digest"]} |
| weights | {facts["gpt_sha256"]} |
"""
