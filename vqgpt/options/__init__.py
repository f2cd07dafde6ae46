"""How an option is defined and resolved, recipes, and where files lie. Must not import torch."""
