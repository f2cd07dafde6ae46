"""The VQ-GAN: network, codebook, training. Must not import the GPT, datasets and token caches' files."""
