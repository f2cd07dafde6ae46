"""Image datasets: what there is, how its files are read, and what the VQ-GAN is fed."""
