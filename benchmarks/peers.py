"""The two libraries that the benchmarks of the GPT stand beside, both of the extra 'dev'."""

from torch import nn

from vqgpt.runtime.process import import_torchvision


def peers(layers: int, heads: int, width: int, side: int, codes: int) -> dict[str, nn.Module]:
    """`transformers` GPT-2 and x-transformers for grids of side x side codes and a start token, dropout 0.1."""
    import_torchvision("models")  # which transformers imports, and which may lack its operators
    from transformers import GPT2Config, GPT2LMHeadModel
    from x_transformers import Decoder, TransformerWrapper

    vocabulary, positions = codes + 1, side**2 + 1
    sizes = {"n_embd": width, "n_layer": layers, "n_head": heads}
    gpt2 = GPT2Config(vocab_size=vocabulary, n_positions=positions, bos_token_id=codes, eos_token_id=None, **sizes)
    decoder = Decoder(
        dim=width,
        depth=layers,
        heads=heads,
        attn_dim_head=width // heads,
        attn_dropout=0.1,
        ff_dropout=0.1,
    )
    wrapper = TransformerWrapper(num_tokens=vocabulary, max_seq_len=positions, emb_dropout=0.1, attn_layers=decoder)
    return {"transformers GPT-2": GPT2LMHeadModel(gpt2), "x-transformers": wrapper}
