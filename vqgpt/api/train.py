"""Stage two, `vqgpt train`: a token cache -> a GPT checkpoint and metrics.

Reads the cache and nothing else: must not import the VQ-GAN, image data, torchvision or PIL.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqgpt.api.gpt_start import (
    empty_gpt,
    gpt_config,
    identity_of,
    load_start,
    network_in_training,
)
from vqgpt.api.options import TrainConfig
from vqgpt.api.sources import check_dataset, find_cache
from vqgpt.data.table import held_out_split
from vqgpt.errors import InputError, ResourceError, UsageError
from vqgpt.gpt.checkpoint import KIND, gpt_content
from vqgpt.gpt.generate import Asked, sample_codes
from vqgpt.gpt.model import GPT
from vqgpt.gpt.options import GPTConfig, SamplingOptions
from vqgpt.gpt.token_grids import BalancedGrids, StreamedGrids, TokenGrids, TrainingRows
from vqgpt.gpt.training import GPTTraining
from vqgpt.options.codec import num_parameters, one_line, to_json
from vqgpt.options.paths import gpt_path, vqgan_path
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import (
    derived_seed,
    deterministic,
    process_group,
    rank,
    resolve_precision_of_products,
    select_device,
    world_size,
)
from vqgpt.runtime.process import out_of_memory
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.storage.files import write_atomically
from vqgpt.tokens import Description, TokenCache
from vqgpt.tokens.arrays import names_without, occurring
from vqgpt.training.loop import train
from vqgpt.training.run import Job, check_result
from vqgpt.training.schedule import Schedule, StreamOrder

SHOWN_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class GPTJob(Job):
    """A GPT on a token cache. `labels_seen` are the classes or bits that some training image has.

    `sheet_of` makes a PNG of codes (n, h, w), or None where their VQ-GAN is not at hand.
    """

    kind = KIND
    judged_by = "held_out_nats_per_token"
    lower_is_better = True

    training: GPTTraining
    cache: TokenCache
    codebook: Tensor
    labels_seen: frozenset[int]
    sheet_of: Callable[[NDArray[np.int64]], bytes | None]

    __repr__ = one_line

    def validate(self) -> dict[str, float]:
        """The held-out loss; draws samples given the labels of the first held-out images: a picture, or their codes."""
        training, (sheet, codes_file) = self.training, self.pictures
        figures, weights = training.validate(), training.result_weights()
        if rank() > 0:
            return figures
        shown = GPT(training.result_config).to(training.device)
        shown.load_state_dict(weights)
        labels = training.held_out.labels[:SHOWN_SAMPLES].cpu()
        fast = training.precision == "bf16" and training.device.type != "cpu"  # whose kernel draws in fp32
        precision = "bf16" if fast else "fp32"
        with deterministic(False):  # on CUDA torch refuses a cumulative sum, and no weight depends on these codes
            sampled = sample_codes(
                shown, Asked.of_one_seed(labels, training.schedule.seed, SamplingOptions()), precision
            )
            codes = torch.cat([codes for codes, _ in sampled]).numpy()
        picture = self.sheet_of(codes)
        if picture is None:
            buffer = io.BytesIO()
            np.save(buffer, codes)
            write_atomically(codes_file, buffer.getvalue())
        else:
            write_atomically(sheet, picture)
        return figures

    def content(self, figures: dict[str, float]) -> dict[str, Any]:
        """A GPT checkpoint, with the description and the codebook of the cache."""
        architecture, weights = self.training.result_config, self.training.result_weights()
        of_cache = to_json(self.cache.description), self.cache.digest, self.codebook
        return gpt_content(architecture, weights, *of_cache, self.configuration, figures, self.labels_seen)


def run(config: TrainConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Train as configured; the result names the checkpoint and the held-out figures."""
    with deterministic(config.deterministic), process_group(select_device(config.run.device)) as device:
        return _run(config, overwrite, dry_run, report, device)


def _run(config: TrainConfig, overwrite: bool, dry_run: bool, report: Report, device: torch.device) -> dict[str, Any]:
    options = config.training
    if options.shard and world_size() == 1:
        raise UsageError(
            "--shard cuts the network among processes, and there is one",
            "start several with torchrun (docs/cluster.md), or leave --shard out",
        )
    precision = resolve_precision_of_products(config.run.precision, device)
    cache = TokenCache(find_cache(config.cache, config.dataset))
    check_dataset(config.dataset, cache.description.dataset, cache.path)
    report(Notice(text=f"training on {cache.path}"))
    doubt = f"its codes were imported; `vqgpt cache preview {cache.path}` checks whether they are right"
    if not cache.description.knows_its_vqgan:
        doubt = "its codes were imported without their VQ-GAN (--checkpoint-vae), so nothing can check them"
    if cache.description.unverified or not cache.description.knows_its_vqgan:
        report(Notice(text=doubt))
    architecture, codebook = gpt_config(config, cache), torch.from_numpy(cache.codebook())
    result = check_result(config.out or gpt_path(cache.description.dataset), overwrite)
    torch.manual_seed(derived_seed(config.run.seed, "initialisation"))
    in_training = network_in_training(architecture, options)
    model = GPT(in_training) if config.checkpoint_gpt is None else load_start(config.checkpoint_gpt, in_training)
    plan = {
        "parameters": num_parameters(model if in_training == architecture else empty_gpt(architecture)),
        "tokens_per_image": architecture.block_size,
        "cache": cache.path,
        "checkpoint": result,
    }
    if dry_run:
        return plan
    held_out_name, rows = held_out_split(cache.split_names, str(cache.path)), cache.rows("train")
    for split in ("train", held_out_name):
        if not cache.rows(split):
            raise InputError(f"{cache.path}: split {split!r} is empty", "tokenize a dataset with images in it")
    train_rows, stream = training_rows(config, cache, architecture, device)
    held_out = load_token_grids(cache, held_out_name, architecture, device)
    if options.batch_size > rows:
        report(Notice(text=f"a step takes all {rows} rows: --batch-size is {options.batch_size}"))
    identity = {
        "architecture": architecture.identity,
        "training": identity_of(options),
        "cache": cache.digest,
        "start": weights_sha256(model, {}),
        "seed": config.run.seed,
        "precision": precision,
    }
    schedule = Schedule(
        seed=config.run.seed,
        num_rows=rows,
        batch_size=options.batch_size,
        n_epochs=options.n_epochs,
        max_steps=options.max_steps,
        stream=stream,
    )
    job = GPTJob(
        training=GPTTraining(model.to(device), train_rows, held_out, options, schedule, precision, architecture),
        result=result,
        pictures=[result.with_suffix(suffix) for suffix in (".samples.png", ".samples.npy")],
        identity=identity,
        configuration=to_json(config),
        logging=config.logging,
        overwrite=overwrite,
        report=report,
        every_epochs=options.sample_and_save_freq,
        patience=options.patience,
        keep_last=options.keep_last,
        cache=cache,
        codebook=codebook,
        labels_seen=labels_seen(cache, architecture, report),
        sheet_of=sheets(cache.description),
    )
    try:
        return {**plan, **train(job)}
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            half = ", or try --precision bf16" if precision == "fp32" else ""
            raise ResourceError(
                f"out of memory at --batch-size {options.batch_size}, --grad-accum {options.grad_accum}, "
                f"--precision {precision}",
                f"raise --grad-accum, which changes nothing else; or lower --batch-size{half}",
            ) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).splitlines()[0]
            raise UsageError(f"the network cannot be compiled here ({reason})", "give --compile off") from error
        raise


def sheets(description: Description) -> Callable[[NDArray[np.int64]], bytes | None]:
    """What makes a PNG of codes (n, h, w); None where their VQ-GAN, or its code, is not at hand.

    The VQ-GAN is loaded at the first picture, and stays.
    """
    try:
        from vqgpt.api import render
    except ImportError:
        return lambda codes: None
    vqgan = functools.cache(lambda: render.vqgan_at(vqgan_path(description.dataset), description))
    return lambda codes: render.plain_sheet(codes, model, description) if (model := vqgan()) else None


def labels_seen(cache: TokenCache, architecture: GPTConfig, report: Report) -> frozenset[int]:
    """The classes or bits that some training image has; a notice names those that none has."""
    if not architecture.num_classes:
        return frozenset()
    seen = occurring(cache.labels("train"))
    unseen = names_without(seen, cache.description.class_names)
    if unseen:
        report(Notice(text=f"no training image has the label {unseen}: the GPT cannot learn it"))
    return seen


def training_rows(
    config: TrainConfig, cache: TokenCache, architecture: GPTConfig, device: torch.device
) -> tuple[TrainingRows, StreamOrder | None]:
    """The training split, in memory or as a stream in the order given. Raises InputError if it is damaged."""
    load = functools.partial(load_token_grids, cache, "train", architecture, device)
    if config.training.class_balance:
        return BalancedGrids(load(), config.training.class_balance, config.run.seed), None
    if not config.training.stream:
        return load(), None
    order = StreamOrder(
        seed=config.run.seed,
        num_rows=cache.rows("train"),
        shard_rows=cache.description.shard_rows,
        buffer_rows=config.training.shuffle_buffer,
    )
    views = len(cache.description.views)
    return StreamedGrids(order, config.training.n_epochs, load, views, device), order


def load_token_grids(
    cache: TokenCache, split: str, architecture: GPTConfig, device: torch.device, shards: Sequence[int] | None = None
) -> TokenGrids:
    """A split, or some of its shards, on the device. Raises InputError if it is damaged."""
    tokens = cache.read_split(split, shards)
    codes = tokens.codes if tokens.codes.itemsize == 1 else tokens.codes.view(np.int16)
    return TokenGrids.of(torch.from_numpy(codes).to(device), torch.from_numpy(tokens.labels).to(device), architecture)
