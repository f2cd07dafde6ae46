"""How good a result is: figures of reconstructions, of samples, and of a GPT. Knows no command."""
