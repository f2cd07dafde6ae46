"""Image generation in two stages: images -> a cache of VQ-GAN tokens -> a GPT -> images.

The names below are the library; they are imported when they are first used, so that `import vqgpt` needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqgpt.api.generator import Generator, Tokenizer, contact_sheet, load_gpt, load_vqgan
    from vqgpt.tokens import TokenCache

__all__ = ["Generator", "TokenCache", "Tokenizer", "contact_sheet", "load_gpt", "load_vqgan"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "vqgpt.tokens" if name == "TokenCache" else "vqgpt.api.generator"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__
