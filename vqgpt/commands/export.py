"""`vqgpt export`: a GPT as a model of Hugging Face transformers, or a GPT or VQ-GAN as a safetensors file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqgpt.errors import UsageError
from vqgpt.gpt.options import GPTConfig
from vqgpt.options.definition import DATA, DATASET_OF_GPT, Command, Flags, argument, check, option
from vqgpt.progress import Report
from vqgpt.storage.files import canonical_json, check_can_be_written, folder_atomically, write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

if TYPE_CHECKING:
    from torch import Tensor

    from vqgpt.gpt.model import GPT

FACTS = "vqgpt.json"
FLAG = "OUT"  # what the help calls the place


@dataclass(frozen=True, kw_only=True)
class ModelExportConfig:
    """`vqgpt export`."""

    out: Path = argument("The folder to write, or the file NAME.safetensors.")
    to: Literal["transformers", "safetensors"] = option(
        "transformers",
        "What to write. transformers: a folder that Hugging Face transformers loads, of a GPT with --arch gpt2; "
        "safetensors: one file of any GPT or VQ-GAN, which vqgpt reads wherever it reads a checkpoint.",
        group=DATA,
    )
    dataset: str | None = DATASET_OF_GPT
    checkpoint_gpt: Path | None = option(None, "The GPT to export, trained by vqgpt.", group=DATA)
    checkpoint_vae: Path | None = option(
        None, "Export this VQ-GAN instead, ours or someone else's; --to safetensors only.", group=DATA
    )

    def __post_init__(self) -> None:
        is_file = self.to == "safetensors"
        named = (self.out.suffix == ".safetensors") == is_file
        check(named, "out", self.out, "a name that ends in .safetensors for --to safetensors, and a folder otherwise")
        check(
            self.checkpoint_vae is None or is_file,
            "to",
            self.to,
            "safetensors for a VQ-GAN: transformers has no such model",
        )
        both = self.checkpoint_vae is not None and (self.checkpoint_gpt or self.dataset) is not None
        check(not both, "checkpoint_vae", self.checkpoint_vae, "given without --checkpoint-gpt and --dataset")


def run(config: ModelExportConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Write a network in a format that others read: Hugging Face transformers, safetensors."""
    if not flags.dry_run:
        check_can_be_written(config.out)
    return _to_transformers(config, flags) if config.to == "transformers" else _to_safetensors(config, flags)


def _to_safetensors(config: ModelExportConfig, flags: Flags) -> dict[str, Any]:
    from vqgpt.api.sources import find_gpt
    from vqgpt.gpt.checkpoint import KIND, read_gpt
    from vqgpt.storage.checkpoint import save_checkpoint

    check_place(config.out, config, flags.overwrite, flag=FLAG)
    if config.checkpoint_vae:
        kind, content = _vqgan(config.checkpoint_vae)
    else:
        kind, (_, content) = KIND, read_gpt(find_gpt(config.checkpoint_gpt, config.dataset))
    if not flags.dry_run:
        with sole_writer(config.out, config, flags.overwrite, flag=FLAG):
            save_checkpoint(config.out, kind, content)
    return {"out": config.out, "kind": kind, "tensors": len(content["model"])}


def _vqgan(path: Path) -> tuple[str, dict[str, Any]]:
    """What our checkpoint of a VQ-GAN would hold, of anybody's."""
    import torch

    from vqgpt.vqgan.checkpoint import KIND, build_vqgan, open_vqgan, vqgan_content

    file = open_vqgan(path, "NAME")
    model = build_vqgan(file, torch.device("cpu"))
    recorded = {name: file.content.get(name, {}) for name in ("configuration", "figures")}
    return KIND, vqgan_content(model, model.state_dict(), file.content.get("dataset", ""), **recorded)


def _to_transformers(config: ModelExportConfig, flags: Flags) -> dict[str, Any]:
    """Raises UsageError for a GPT of which transformers has no model."""
    from vqgpt.api.sources import find_gpt
    from vqgpt.gpt.checkpoint import read_gpt

    path = find_gpt(config.checkpoint_gpt, config.dataset)
    model, content = read_gpt(path)
    options = model.config.options
    if options.arch != "gpt2":
        raise UsageError(
            f"{path} has the architecture {options.arch}, which no model of transformers has",
            "export it with --to safetensors, or train one with --arch gpt2",
        )
    if options.any_order:
        raise UsageError(
            f"{path} reads grids in any order, by the cells of its tokens: transformers takes tokens alone",
            "export it with --to safetensors, or train one with a fixed --order",
        )
    if options.condition == "bits":
        raise UsageError(
            f"{path} is conditioned on bits, whose embeddings are added to the start token: transformers takes a token",
            "export it with --to safetensors, or train one with --condition class",
        )
    files = transformers_files(model, content)
    check_place(config.out, config, flags.overwrite, files, FLAG)
    if not flags.dry_run:
        with sole_writer(config.out, config, flags.overwrite, files, FLAG), folder_atomically(config.out) as folder:
            for name, data in files.items():
                write_atomically(folder / name, data)
    return {"out": config.out, "files": sorted(files), "bytes": sum(map(len, files.values()))}


def transformers_files(model: "GPT", content: Mapping[str, Any]) -> dict[str, bytes]:
    """The files by name, of a GPT (gpt2 without bits) and of what else its checkpoint holds.

    What the format cannot say stands in vqgpt.json and README.md: the order of the grid, what the start tokens mean,
    and which VQ-GAN decodes. Its logits are the same.
    """
    import safetensors.torch

    from vqgpt.gpt.model import with_one_view
    from vqgpt.storage.checkpoint import weights_sha256

    config, description = model.config, content["cache_description"]
    weights, network = with_one_view(model.state_dict(), config) if config.num_views else (model.state_dict(), config)
    facts = {
        "codebook_size": config.codebook_size,
        "grid": config.grid,
        "order": config.options.order,
        "scan": model.cells.tolist(),
        "bos": config.bos,
        "class_names": description["class_names"][: config.num_classes],
        "dataset": description["dataset"],
        "image_size": description["image_size"],
        "image_channels": description["image_channels"],
        "tokenizer_sha256": description["tokenizer_sha256"],
        "training_cache_digest": content["cache_digest"],
        "gpt_sha256": weights_sha256(model, config.identity),
        "figures": dict(content["figures"]),
    }
    return {
        "config.json": canonical_json(model_config(network)),
        "generation_config.json": canonical_json(generation_config(network)),
        "model.safetensors": safetensors.torch.save(transformers_weights(weights), {"format": "pt"}),
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


def transformers_weights(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The tensors by their names there: matrices of layers are (in, out), and every layer and norm has a bias."""
    import torch

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


COMMAND = Command(words="export", config=ModelExportConfig, run=run)
