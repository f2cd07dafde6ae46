"""What an option is, and what a command is: each option is defined once, as a field of a frozen dataclass.

From that one definition come the command-line flag, the environment variable, the recipe key, the saved
configuration and the reference page. Values are plain Python (int, float, bool, str, Path, tuples of them).

Options that several commands have are the fields in capitals, given to each class of options under the same name:
`device: str = DEVICE`. Where commands share what an option is but write different things, a function makes it
(`out_option`). Must not import torch: `vqgpt --help` reads these classes.
"""

import functools
import shlex
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vqgpt.errors import UsageError
from vqgpt.options.codec import convert, without_none
from vqgpt.options.paths import CachePath, expand_home
from vqgpt.progress import Report

ConfigT = TypeVar("ConfigT")
COMMON = "Common"
DATA = "Data and files"
RUN = "Run"
TRAINING = "Training"


def option(default: Any, help: str, *, group: str, flag: str = "", short: str = "") -> Any:
    """A dataclass field that is also a command-line option; `flag` is its spelling where it is not the field's name."""
    return field(default=default, metadata={"help": help, "group": group, "flag": flag, "short": short})


def argument(help: str) -> Any:
    """A required dataclass field that is also a positional argument of the command."""
    return option(MISSING, help, group="")


def names_given() -> Any:
    """A dataclass field that is no option: the names of those that were given, anywhere, not left at their defaults."""
    return field(default=frozenset(), compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option as the command line sees it; `type` has no None in it."""

    name: str
    flag: str
    short: str
    help: str
    group: str
    type: Any
    default: Any

    @property
    def key(self) -> str:
        """Its key in a recipe: the flag with underscores."""
        return self.flag[2:].replace("-", "_")

    @property
    def is_argument(self) -> bool:
        """True if it is given by position, and must be given."""
        return self.default is MISSING

    @property
    def is_list(self) -> bool:
        """True if the flag takes any number of values (`--ch-mult 1 2 2`)."""
        return typing.get_origin(self.type) is tuple and typing.get_args(self.type)[-1] is Ellipsis


def options_of(config_class: type) -> Iterator[Option]:
    """All options of a configuration class, those of nested classes included, in the order of definition."""
    hints = typing.get_type_hints(config_class)
    for item in fields(config_class):
        if is_dataclass(hints[item.name]):
            yield from options_of(typing.cast(type, hints[item.name]))
        elif "help" in item.metadata:
            flag = "--" + (item.metadata["flag"] or item.name).replace("_", "-")
            said = {**item.metadata, "flag": flag}
            yield Option(name=item.name, type=without_none(hints[item.name]), default=item.default, **said)


def resolve(config_class: type[ConfigT], *sources: Mapping[str, Any]) -> ConfigT:
    """Build a configuration from sources in falling precedence; a value of None means "not given here".

    In the text of a path, `~` and `~NAME` at the start mean a home. Raises UsageError if a value is out of its range.
    """
    given: dict[str, Any] = {}
    for source in reversed(sources):
        given.update({name: value for name, value in source.items() if value is not None})
    return _build(config_class, given)


def _build(config_class: type[ConfigT], given: Mapping[str, Any]) -> ConfigT:
    hints = typing.get_type_hints(config_class)
    arguments: dict[str, Any] = {}
    for item in fields(typing.cast(Any, config_class)):
        if not item.compare:
            arguments[item.name] = frozenset(given)
        elif is_dataclass(hints[item.name]):
            arguments[item.name] = _build(typing.cast(type, hints[item.name]), given)
        elif item.name in given:
            arguments[item.name] = value_of(given[item.name], hints[item.name], item.name)
    return config_class(**arguments)


def value_of(written: Any, annotation: Any, name: str) -> Any:
    """The value of what a user wrote, now and here: of the option's type, with homes expanded in paths.

    A list may be written as its only word. Raises UsageError that names the option.
    """
    kind = without_none(annotation)
    if kind in (Path, CachePath) and isinstance(written, str):
        written = expand_home(written, name)
    elif kind == tuple[str, ...] and isinstance(written, str):
        written = (written,)
    return convert(written, annotation, name)


def check(condition: bool, name: str, value: Any, requirement: str) -> None:
    """Raise UsageError unless `condition` holds: `name` = `value` must be what `requirement` says."""
    if not condition:
        raise UsageError(f"{name} = {value} cannot be used", f"{name} must be {requirement}")


def check_positive(config: Any, *names: str) -> None:
    """Raise UsageError unless each of these options is positive, or None."""
    for name in names:
        value = getattr(config, name)
        check(value is None or value > 0, name, value, "positive")


def flat_values(config: Any) -> dict[str, Any]:
    """The option values of a configuration and of those in it, by name."""
    values: dict[str, Any] = {}
    for item in (item for item in fields(config) if item.compare):
        value = getattr(config, item.name)
        values |= flat_values(value) if is_dataclass(value) else {item.name: value}
    return values


def command_line(words: str, options: Iterable[Option], values: Mapping[str, Any]) -> str:
    """The command `words` with these values of its options, for a shell; None is not given."""
    parts = ["vqgpt", *words.split()]
    for item in options:
        value = values.get(item.name)
        if item.is_argument:
            parts.append(str(value))
        elif isinstance(value, bool):
            parts.append(item.flag if value else f"--no-{item.flag[2:]}")
        elif value is not None:
            parts += [item.flag, *map(_written, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(parts)


def _written(value: Any) -> str:
    text = str(value)
    return f"./{text}" if isinstance(value, Path) and text.startswith("~") else text  # it is no home


CACHE = argument("A token cache.")
NEW_CACHE = option(None, "The token cache to write (default: cache/DATASET.zarr).", group=DATA)
ONLY_SPLIT = option(None, "Take this split alone (default: all).", group=DATA)
SPLIT_OF_ROWS = option(None, "Split to take rows from (default: the first).", group=DATA)
DATA_ROOT = option(
    None,
    "Folder of the downloaded images (default: vqgpt/data in the user's cache folder, or data where there can be none)"
    "; for the dataset 'folder', the folder, zip or tar file of your own.",
    group=DATA,
)
SIZE = option(
    None, "Image size in pixels (default: that of the VQ-GAN, where it is known, else the dataset's own).", group=DATA
)
THIRD_PARTIES = (
    "taming-transformers, latent-diffusion, LlamaGen, GenerativeZoo, MaskGIT, IBQ or diffusers"  # of VQ-GANs
)
CHECKPOINT_VAE = option(
    None, f"VQ-GAN checkpoint, ours or of {THIRD_PARTIES} (default: runs/DATASET/vqgan.pt).", group=DATA
)
REMAP = option(
    None, "A .npy list of codebook ids: only these are used, and tokens are indices into the list.", group=DATA
)
CHECKPOINT_GPT = option(None, "GPT checkpoint, ours or of GenerativeZoo (default: runs/DATASET/gpt.pt).", group=DATA)
DATASET_OF_GPT = option(None, "Take runs/DATASET/gpt.pt (default: the only GPT there is).", group=DATA)
N_HEAD = option(
    None, "For a GPT of GenerativeZoo: its attention heads, which the file does not store (default: 8).", group=DATA
)
DEVICE = option("auto", "auto, cpu, cuda, cuda:N or mps.", group=RUN)
PRECISION = option(
    "auto",
    "auto takes bf16 on a CUDA device that has it, and to train a GPT on a CPU that has it too, else fp32.",
    group=RUN,
)
SEED = option(0, "Seed of all random numbers.", group=RUN)
IMAGES_PER_PASS = option(256, "Images per pass of the encoder.", group=RUN)
SHOW = option(False, "Show the sheet on this terminal, where it can show images (kitty, iTerm2, sixel).", group=RUN)
BATCH_SIZE = option(256, "Images per optimiser step, over all processes.", group=TRAINING)
N_EPOCHS = option(100, "Passes over the training set.", group=TRAINING)
MAX_STEPS = option(None, "Stop after this many optimiser steps, if the epochs are longer.", group=TRAINING)
GRAD_CLIP = option(1.0, "Largest norm of the gradient; 0 for no limit.", group=TRAINING)
EMA = option(
    0.0, "Keep a moving average of the weights with this decay, and use it as the result; 0 for none.", group=TRAINING
)
SAMPLE_AND_SAVE_FREQ = option(
    20, "Every this many epochs: validate, save, and write samples or reconstructions.", group=TRAINING
)


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """What every command takes."""

    json: bool = option(False, "Print the result as one JSON object on stdout.", group=COMMON)
    quiet: bool = option(False, "Print errors and nothing else.", group=COMMON, short="-q")
    verbose: bool = option(
        False, "Show the whole configuration, not only what differs from the defaults.", group=COMMON, short="-v"
    )
    debug: bool = option(False, "Show the traceback of an error.", group=COMMON)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command of the pipeline takes."""

    recipe: Path | None = option(
        None, "A .toml file, or the name of one of the recipes that come with vqgpt.", group=COMMON
    )
    overwrite: bool = option(
        False,
        "Replace what the command writes if it exists; what is unfinished, with the same settings, is continued.",
        group=COMMON,
    )
    dry_run: bool = option(False, "Say what would be done, and write nothing.", group=COMMON)
    output: OutputFlags


def all_of_it(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a result that is shown: all."""
    return result


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. `run(config, flags, report)` returns its result, and its docstring is the help text.

    --json prints the whole result; `shown` gives what of it the screen shows.
    """

    words: str
    config: type
    run: Callable[[Any, Flags, Report], Mapping[str, Any]]
    shown: Callable[[Mapping[str, Any]], Mapping[str, Any]] = all_of_it
    takes_recipe: bool = True
    several_processes: bool = False

    @property
    def table(self) -> str:
        """Its table in a recipe."""
        return self.words.replace(" ", "-")

    @property
    def doc(self) -> str:
        """Its help text."""
        return self.run.__doc__ or ""

    @property
    def flags(self) -> type:
        """The class of its common options."""
        return Flags if self.takes_recipe else OutputFlags

    @property
    def options(self) -> list[Option]:
        """All its options, its own first."""
        return [*options_of(self.config), *options_of(self.flags)]

    @functools.cached_property
    def recipe_keys(self) -> dict[str, str]:
        """Its keys in a recipe, and the fields that they set."""
        return {item.key: item.name for item in options_of(self.config)}


def out_option(what: str, default: str) -> Any:
    """The option --out of a command: what it writes, and where if the user does not say."""
    return option(None, f"{what} (default: {default}).", group=DATA)


def check_seed(seed: int) -> None:
    """Raise UsageError if torch takes no such seed."""
    check(0 <= seed < 2**63, "seed", seed, "between 0 and 2^63 - 1")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how a training or sampling runs."""

    device: str = DEVICE
    precision: Literal["auto", "fp32", "bf16", "fp16"] = PRECISION
    seed: int = SEED

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Where a training's metrics go, beside metrics.jsonl."""

    wandb: bool | None = option(
        None,
        "Log to Weights & Biases too (default: where the package, extra 'wandb', is installed and has a login or "
        "WANDB_MODE=offline).",
        group=RUN,
    )
    tensorboard: bool = option(
        False, "Log for TensorBoard too, beside the result (package of the extra 'tensorboard').", group=RUN
    )
