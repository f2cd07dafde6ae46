"""The VQ-GAN: network, codebook, training. Knows nothing of GPT and token caches."""
