"""What the commands do, for Python and for the command line: images -> token cache -> GPT -> codes -> images."""
