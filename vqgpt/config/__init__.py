"""Everything that can be configured, defined once. Must not import torch: `vqgpt --help` reads it."""
