"""The `vqgpt` command. Nobody imports this package."""
