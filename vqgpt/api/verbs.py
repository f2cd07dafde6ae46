"""The verbs of the pipeline for Python: each takes the options of its command by name, and returns what was made.

    vqgpt.train_vqgan(dataset="digits", n_epochs=3)  ->  Tokenizer
    vqgpt.tokenize(dataset="digits")                 ->  TokenCache
    vqgpt.train(dataset="digits", n_layer=2)         ->  Generator

What a command refuses is refused here too, with the errors of `vqgpt.errors`: nothing that exists is replaced without
`overwrite=True`, and what was interrupted is continued. `progress` is called with the events of `vqgpt.progress`.
"""

from typing import TYPE_CHECKING, Any, TypeVar

from vqgpt.api.options import TokenizeConfig, TrainConfig, VQGANTrainConfig
from vqgpt.errors import UsageError, nearest_hint
from vqgpt.options.definition import options_of, resolve
from vqgpt.progress import PlainBar, Report
from vqgpt.tokens import TokenCache

if TYPE_CHECKING:
    from vqgpt.api.generator import Generator
    from vqgpt.api.tokenizer import Tokenizer

ConfigT = TypeVar("ConfigT")


def train_vqgan(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> "Tokenizer":
    """Train a VQ-GAN as `vqgpt vqgan train` does; returns the Tokenizer. Raises UsageError for an unknown option."""
    from vqgpt.api import tokenizer, train_vqgan

    config = _configured(VQGANTrainConfig, options)
    result = train_vqgan.run(config, overwrite, False, progress or PlainBar())
    return tokenizer.load_vqgan(result["checkpoint"], config.run.device)


def tokenize(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> TokenCache:
    """Encode a dataset as `vqgpt tokenize` does; returns its token cache. Raises UsageError for an unknown option."""
    from vqgpt.api import tokenize

    config = _configured(TokenizeConfig, options)
    tokenize.run(config, overwrite, False, progress or PlainBar())
    return TokenCache(config.result)


def train(*, overwrite: bool = False, progress: Report | None = None, **options: Any) -> "Generator":
    """Train a GPT as `vqgpt train` does; returns the Generator. Raises UsageError for an unknown option."""
    from vqgpt.api import generator, train

    config = _configured(TrainConfig, options)
    result = train.run(config, overwrite, False, progress or PlainBar())
    return generator.load_gpt(result["checkpoint"], config.run.device)


def _configured(config_class: type[ConfigT], options: dict[str, Any]) -> ConfigT:
    """The configuration of these options, by the names of their fields. Raises UsageError for a name that is none."""
    known = [item.name for item in options_of(config_class)]
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}", nearest_hint(name, known))
    return resolve(config_class, options)
