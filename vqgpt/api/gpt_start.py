"""How a training of the GPT starts: its architecture, its network, and what tells it from other trainings.

Must not import the VQ-GAN, image data, torchvision or PIL.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from vqgpt.api.options import TrainConfig
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.checkpoint import load_gpt
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, GPTTrainingOptions
from vqgpt.options.codec import differences, to_json
from vqgpt.tokens import TokenCache

LATER_OPTIONS = {"random_until", "anneal_until", "token_noise", "token_noise_until"}


def gpt_config(config: TrainConfig, cache: TokenCache) -> GPTConfig:
    """The architecture for a cache. Raises UsageError if an option contradicts what the cache knows."""
    description = cache.description
    height, width = description.grid
    if config.block_size not in (None, height * width):
        raise UsageError(
            f"--block-size {config.block_size} contradicts {cache.path}: {height} x {width} = {height * width} tokens",
            "leave the flag out",
        )
    if config.model.any_order and config.training.begins_in_any_order:
        raise UsageError(
            "--order random reads images in random orders to the end: there is no other order to come to",
            "leave --random-until and --anneal-until out, or give the --order to end with",
        )
    if config.training.begins_in_any_order and config.model.architecture.positions == "rotary":
        raise UsageError(
            f"--arch {config.model.arch} cannot begin in random orders: it has no table of positions for one order",
            "use --arch gpt2, or --order random to the end",
        )
    condition = config.model.condition
    if condition not in ("none", description.label_kind):
        there_are = "no classes" if condition == "class" else "no bits"
        remedy = "none" if description.label_kind == "none" else f"{description.label_kind} or none"
        raise UsageError(
            f"{cache.path} has {there_are} to condition on (labels: {description.label_kind})",
            f"use --condition {remedy}",
        )
    if config.model.condition_view and (description.views[0] != "identity" or len(description.views) == 1):
        raise UsageError(
            f"{cache.path} has the views {', '.join(description.views)}: to be told the view, a GPT wants identity and "
            "others after it",
            "tokenize with --views identity,rot90 or the like, or leave --condition-view out",
        )
    return GPTConfig(
        options=config.model,
        codebook_size=description.codebook_size,
        grid=description.grid,
        num_classes=0 if condition == "none" else len(description.class_names),
        num_views=len(description.views) if config.model.condition_view else 0,
    )


def network_in_training(result: GPTConfig, options: GPTTrainingOptions) -> GPTConfig:
    """The architecture that is trained, for a result of this one: for any order, where random orders come first."""
    if not options.begins_in_any_order:
        return result
    return replace(result, options=replace(result.options, order="random"))


def empty_gpt(config: GPTConfig) -> GPT:
    """A network of which there are only the shapes."""
    with torch.device("meta"):
        return GPT(config)


def load_start(path: Path, architecture: GPTConfig) -> GPT:
    """A GPT to start from. Raises InputError if it is of another architecture; another dropout rate is welcome."""
    hint, cpu = "leave --checkpoint-gpt out to start from scratch", torch.device("cpu")
    start = load_gpt(path, cpu, architecture.options.n_head, architecture.grid, hint).model
    if architecture.options.any_order != start.config.options.any_order:
        orders = {True: "random orders", False: "one order"}
        raise InputError(
            f"{path} was trained in {orders[start.config.options.any_order]}, and this training begins in "
            f"{orders[architecture.options.any_order]}",
            "start random orders (--order random, --random-until) from a GPT of --order random, others from another",
        )
    same_dropout = replace(start.config.options, dropout_t=architecture.options.dropout_t)
    different = differences(to_json(architecture), to_json(replace(start.config, options=same_dropout)))
    if different:
        raise InputError(
            f"{path} is of another architecture ({different})", "give options and a cache that agree with it"
        )
    model = GPT(architecture)
    model.load_state_dict(start.state_dict())
    return model


def identity_of(options: GPTTrainingOptions) -> dict[str, Any]:
    """Those of the options that tell one training from another.

    `LATER_OPTIONS` count only where they are not the default: there are unfinished trainings from before them.
    """
    as_ever = {item.name for item in fields(options) if getattr(options, item.name) == item.default}
    left_out = {"keep_last", "shard", *(as_ever & LATER_OPTIONS)}
    return {name: value for name, value in to_json(options).items() if name not in left_out}
