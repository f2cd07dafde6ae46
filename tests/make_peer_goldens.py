"""Write tests/golden/vqgan-*.npz with other systems' own code, in an environment that has it.

    python -m tests.make_peer_goldens maskgit CHECKOUT    # of 1d-tokenizer; needs torch
    python -m tests.make_peer_goldens ibq CHECKOUT        # of SEED-Voken; needs torch and einops
    python -m tests.make_peer_goldens ldm CHECKOUTS       # of latent-diffusion, and of SEED-Voken for its codebook
    python -m tests.make_peer_goldens diffusers           # needs diffusers

Run it from the root of the project. No code is taken from a checkout: its modules are imported and called.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.peer_goldens import images, save, weight

SIZE = 16
SMALLEST_MARGIN = 3e-4  # between the best code and the next: no rounding may decide
FEWEST_CODES = 5


def filled(module: nn.Module) -> nn.Module:
    """A network of a peer, in eval mode, with the weights that `weight` gives."""
    state = {name: weight(name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()


def check_margin(scores: Tensor, codes: Tensor) -> None:
    """Scores (M, K), of which the largest decides, and the codes (M,) that the peer gave."""
    best = scores.topk(2, dim=1)
    assert torch.equal(best.indices[:, 0], codes.flatten())
    margin = float((best.values[:, 0] - best.values[:, 1]).min())
    print(f"margin {margin:.4f}, {len(codes.unique())} codes")
    assert margin > SMALLEST_MARGIN
    assert len(codes.unique()) >= FEWEST_CODES


def rows_of(latents: Tensor) -> Tensor:
    """(B, D, h, w) -> (B*h*w, D)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def by_distance(latents: Tensor, codebook: Tensor) -> Tensor:
    return -torch.cdist(rows_of(latents), codebook)


def maskgit() -> None:
    peer = importlib.import_module("modeling.modules.maskgit_vqgan")
    config = SimpleNamespace(num_channels=3, hidden_channels=32, channel_mult=[1, 2, 2], num_resolutions=3)
    config = SimpleNamespace(**vars(config), num_res_blocks=2, dropout=0.0, resolution=SIZE, z_channels=8)
    model = nn.Module()
    model.encoder, model.decoder = peer.Encoder(config), peer.Decoder(config)
    model.quantize = peer.VectorQuantizer(24, 8, commitment_cost=0.25)
    filled(model)
    latents = model.encoder(images(3, SIZE) / 255)
    codes = model.quantize(latents)[1].view(2, *latents.shape[2:])
    check_margin(by_distance(latents, model.quantize.embedding.weight), codes)
    save("maskgit", model.state_dict(), codes, model.decoder(model.quantize.get_codebook_entry(codes)) * 2 - 1)


def autoencoder(peer: ModuleType, codebook: nn.Module, embed_dim: int, **changes: Any) -> nn.Module:
    """The parts of a VQModel, under its names, of an `Encoder` and a `Decoder` of a peer."""
    network: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8]}
    network |= {"z_channels": 8, "double_z": False, "resolution": SIZE, "in_channels": 3, "out_ch": 3, **changes}
    model = nn.Module()
    model.encoder, model.decoder = peer.Encoder(**network), peer.Decoder(**network)
    model.quantize = codebook
    model.quant_conv, model.post_quant_conv = nn.Conv2d(8, embed_dim, 1), nn.Conv2d(embed_dim, 8, 1)
    return filled(model)


def latents_of(model: Any) -> Tensor:
    return model.quant_conv(model.encoder(images(3, SIZE) / 127.5 - 1))


def ibq() -> None:
    codebooks = importlib.import_module("src.IBQ.modules.vqvae.quantize")
    peer = importlib.import_module("src.IBQ.modules.diffusionmodules.model")
    model: Any = autoencoder(peer, codebooks.IndexPropagationQuantize(24, 6), 6)
    latents = latents_of(model)
    codes = model.quantize(latents)[2][2].view(2, *latents.shape[2:])
    check_margin(rows_of(latents) @ model.quantize.embedding.weight.T, codes)
    assert not torch.equal(by_distance(latents, model.quantize.embedding.weight).argmax(dim=1), codes.flatten())
    quantized = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 6))
    save("ibq", model.state_dict(), codes, model.decoder(model.post_quant_conv(quantized)))


def ldm() -> None:
    codebooks = importlib.import_module("src.IBQ.modules.vqvae.quantize")
    peer = importlib.import_module("ldm.modules.diffusionmodules.model")
    variants: dict[str, dict[str, Any]] = {
        "vanilla": {},
        "linear": {"attn_type": "linear"},
        "pooled": {"resamp_with_conv": False, "tanh_out": True, "ch_mult": [1, 1, 2]},
    }
    for name, changes in variants.items():
        model: Any = autoencoder(
            peer, codebooks.VectorQuantizer2(24, 6, beta=0.25, sane_index_shape=True), 6, **changes
        )
        latents = latents_of(model)
        codes = model.quantize(latents)[2][2]
        check_margin(by_distance(latents, model.quantize.embedding.weight), codes)
        quantized = model.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, 6))
        save(f"ldm-{name}", model.state_dict(), codes, model.decoder(model.post_quant_conv(quantized)))


def diffusers() -> None:
    peer = importlib.import_module("diffusers")
    attention: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "block_out_channels": (32, 64),
        "vq_embed_dim": 6,
    }
    plain: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 2,
        "mid_block_add_attention": False,
        "lookup_from_codebook": True,
    }
    for name, changes in (("attention", attention), ("plain", plain)):
        model: Any = filled(peer.VQModel(latent_channels=8, num_vq_embeddings=24, sample_size=SIZE, **changes))
        latents = model.encode(images(3, SIZE) / 127.5 - 1).latents
        codes = model.quantize(latents)[2][2].view(2, *latents.shape[2:])
        check_margin(by_distance(latents, model.quantize.embedding.weight), codes)
        quantized = model.quantize.get_codebook_entry(codes.flatten(), latents.permute(0, 2, 3, 1).shape)
        decoded = model.decoder(model.post_quant_conv(quantized))
        save(f"diffusers-{name}", model.state_dict(), codes, decoded, model.to_json_string())


MAKERS: dict[str, Callable[[], None]] = {"maskgit": maskgit, "ibq": ibq, "ldm": ldm, "diffusers": diffusers}


if __name__ == "__main__":
    name, *checkout = sys.argv[1:]
    sys.path[:0] = checkout
    with torch.no_grad():
        MAKERS[name]()
