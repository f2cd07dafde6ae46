"""Image generation in two stages: images -> a cache of VQ-GAN tokens -> a GPT -> images.

The names below are the library; they are imported when they are first used, so that `import vqgpt` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgpt.api.library import Generator, load_gpt, load_vqgan, tokenize, train, train_vqgan
    from vqgpt.api.tokenize import Tokenizer, contact_sheet
    from vqgpt.tokens import TokenCache

HOMES = {
    "Generator": "api.library",
    "TokenCache": "tokens",
    "Tokenizer": "api.tokenize",
    "contact_sheet": "api.tokenize",
    "load_gpt": "api.library",
    "load_vqgan": "api.library",
    "tokenize": "api.library",
    "train": "api.library",
    "train_vqgan": "api.library",
}
__all__ = [
    "Generator",
    "TokenCache",
    "Tokenizer",
    "contact_sheet",
    "load_gpt",
    "load_vqgan",
    "tokenize",
    "train",
    "train_vqgan",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
