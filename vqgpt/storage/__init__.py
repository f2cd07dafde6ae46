"""Files that appear whole, locks, checkpoints, and the formats of torch and safetensors."""
