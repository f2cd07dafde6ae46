"""The GPT: network, training, sampling. Knows nothing of images, the VQ-GAN, torchvision and PIL."""
