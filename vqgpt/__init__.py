"""Image generation in two stages: images -> a cache of VQ-GAN tokens -> a GPT -> images."""
