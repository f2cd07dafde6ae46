"""The GPT: network, training, sampling. Must not import the VQ-GAN, image data, torchvision and PIL."""
