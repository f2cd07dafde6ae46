"""Checkpoints as other systems write them, and what those systems compute from them: written from their layouts alone.

`taming_state` makes the weights of a taming-transformers VQModel, or of one of latent-diffusion without attention;
`encode` and `decode` are its arithmetic, plain and slow, and `llamagen_names` renames to LlamaGen's layout. Nothing
here uses vqgpt.
"""

import re

import torch
from torch.nn import functional as F


def taming_state(
    ch=32,
    ch_mult=(1, 2),
    blocks=1,
    attn=(1,),
    z=8,
    embed=4,
    codes=24,
    image_channels=3,
    double_z=False,
    seed=0,
    mid_attn=True,
) -> dict[str, torch.Tensor]:
    """Random weights, spread so that no norm, bias or shortcut could be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, into, side):
        state[f"{name}.weight"] = torch.randn(out, into, side, side, generator=generator) / (into * side * side) ** 0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(out, generator=generator)

    def norm(name, width):
        state[f"{name}.weight"] = 1 + 0.3 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.3 * torch.randn(width, generator=generator)

    def block(name, into, out):
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(side, width):
        block(f"{side}.mid.block_1", width, width)
        if mid_attn:
            attention(f"{side}.mid.attn_1", width)
        block(f"{side}.mid.block_2", width, width)

    last = len(ch_mult) - 1
    conv("encoder.conv_in", ch, image_channels, 3)
    width = ch
    for level, mult in enumerate(ch_mult):
        for index in range(blocks):
            block(f"encoder.down.{level}.block.{index}", width, ch * mult)
            width = ch * mult
            if level in attn:
                attention(f"encoder.down.{level}.attn.{index}", width)
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    middle("encoder", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", z * (2 if double_z else 1), width, 3)
    conv("quant_conv", embed, z * (2 if double_z else 1), 1)
    conv("post_quant_conv", z, embed, 1)
    conv("decoder.conv_in", width, z, 3)
    middle("decoder", width)
    for level in range(last, -1, -1):
        for index in range(blocks + 1):
            block(f"decoder.up.{level}.block.{index}", width, ch * ch_mult[level])
            width = ch * ch_mult[level]
            if level in attn:
                attention(f"decoder.up.{level}.attn.{index}", width)
        if level > 0:
            conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", image_channels, width, 3)
    state["quantize.embedding.weight"] = 0.5 * torch.randn(codes, embed, generator=generator)
    return state


class Arithmetic:
    """The layers of a state dict, applied by name."""

    def __init__(self, state):
        self.state = state

    def has(self, name):
        return f"{name}.weight" in self.state

    def conv(self, name, x, **how):
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def block(self, name, x):
        y = self.norm(f"{name}.norm1", x)
        y = self.conv(f"{name}.conv1", y * torch.sigmoid(y), padding=1)
        y = self.norm(f"{name}.norm2", y)
        y = self.conv(f"{name}.conv2", y * torch.sigmoid(y), padding=1)
        return y + (self.conv(f"{name}.nin_shortcut", x) if self.has(f"{name}.nin_shortcut") else x)

    def attention(self, name, x):
        batch, width, height, breadth = x.shape
        y = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", y).reshape(batch, width, -1) for part in "qkv")
        weights = torch.softmax(torch.bmm(q.transpose(1, 2), k) * width**-0.5, dim=2)
        y = torch.bmm(v, weights.transpose(1, 2)).reshape(batch, width, height, breadth)
        return x + self.conv(f"{name}.proj_out", y)

    def middle(self, side, x):
        x = self.block(f"{side}.mid.block_1", x)
        if self.has(f"{side}.mid.attn_1.norm"):
            x = self.attention(f"{side}.mid.attn_1", x)
        return self.block(f"{side}.mid.block_2", x)

    def level(self, name, x):
        index = 0
        while self.has(f"{name}.block.{index}.norm1"):
            x = self.block(f"{name}.block.{index}", x)
            if self.has(f"{name}.attn.{index}.norm"):
                x = self.attention(f"{name}.attn.{index}", x)
            index += 1
        return x

    def levels(self, pattern):
        return len({match[1] for name in self.state if (match := re.match(pattern, name))})

    def latents(self, images):
        x = self.conv("encoder.conv_in", images, padding=1)
        for level in range(self.levels(r"encoder\.down\.(\d+)\.")):
            x = self.level(f"encoder.down.{level}", x)
            if self.has(f"encoder.down.{level}.downsample.conv"):
                x = self.conv(f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = self.norm("encoder.norm_out", self.middle("encoder", x))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x * torch.sigmoid(x), padding=1))

    def images(self, quantized):
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", quantized), padding=1)
        x = self.middle("decoder", x)
        for level in reversed(range(self.levels(r"decoder\.up\.(\d+)\."))):
            x = self.level(f"decoder.up.{level}", x)
            if self.has(f"decoder.up.{level}.upsample.conv"):
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"decoder.up.{level}.upsample.conv", x, padding=1)
        x = self.norm("decoder.norm_out", x)
        return self.conv("decoder.conv_out", x * torch.sigmoid(x), padding=1)


def encode(state, images, lookup="nearest"):
    """Codes (B, h, w) as the system of `lookup` computes them: nearest, cosine (LlamaGen) or logits (GumbelVQ)."""
    latents = Arithmetic(state).latents(images).permute(0, 2, 3, 1)
    codebook = state["quantize.embedding.weight"]
    if lookup == "logits":
        weight, bias = state["quantize.proj.weight"][:, :, 0, 0], state["quantize.proj.bias"]
        return (latents @ weight.T + bias).argmax(dim=-1)
    if lookup == "cosine":
        latents, codebook = F.normalize(latents, dim=-1), F.normalize(codebook, dim=-1)
    return torch.cdist(latents.flatten(0, 2), codebook).argmin(dim=1).view(latents.shape[:3])


def decode(state, codes, lookup="nearest"):
    """Images (B, C, H, W) of codes, not clamped."""
    codebook = state["quantize.embedding.weight"]
    codebook = F.normalize(codebook, dim=-1) if lookup == "cosine" else codebook
    return Arithmetic(state).images(codebook[codes].permute(0, 3, 1, 2))


def llamagen_names(state):
    """The same weights under LlamaGen's names, with the buffer that its quantiser keeps."""
    last = max(int(match[1]) for name in state if (match := re.match(r"decoder\.up\.(\d+)", name)))
    middle = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    renamed = {}
    for key, tensor in state.items():
        name = re.sub(r"^encoder\.down\.", "encoder.conv_blocks.", key)
        name = re.sub(r"^decoder\.up\.(\d+)", lambda match: f"decoder.conv_blocks.{last - int(match[1])}", name)
        name = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)
        name = re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda match: f".mid.{middle[match[1]]}.", name)
        renamed[name] = tensor
    return {**renamed, "quantize.codebook_used": torch.zeros(65536)}


def gumbel_names(state, codes, seed=1):
    """The weights of a GumbelVQ: logits by a convolution, and the codebook under another name."""
    generator = torch.Generator().manual_seed(seed)
    width = state["quant_conv.weight"].shape[0]
    renamed = {key.replace("quantize.embedding", "quantize.embed"): tensor for key, tensor in state.items()}
    renamed["quantize.proj.weight"] = torch.randn(codes, width, 1, 1, generator=generator)
    renamed["quantize.proj.bias"] = torch.randn(codes, generator=generator)
    return renamed
