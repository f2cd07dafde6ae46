"""Stage two, `vqgpt sample`: a GPT checkpoint -> a token cache of origin `sampled`, and a picture of it.

Must not import the VQ-GAN, image data, torchvision or PIL at its head: where their code is absent, tokens are the
result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.api.filling import fill_cache
from vqgpt.api.options import EncoderOptions, RenderConfig, SampleConfig
from vqgpt.api.sources import check_dataset, check_heads, check_order, find_cache, find_gpt, warn_if_unknown
from vqgpt.errors import InputError, UsageError
from vqgpt.gpt.checkpoint import LoadedGPT, load_gpt
from vqgpt.gpt.generate import Asked, Sampler
from vqgpt.gpt.labels import KnownLabels, Prompts, check_same_tokens, is_prefix, no_label, read_prompts
from vqgpt.gpt.options import GPTConfig, SamplingOptions
from vqgpt.options.codec import one_line, to_json
from vqgpt.options.paths import CachePath, samples_path, vqgan_path
from vqgpt.progress import Notice, Report
from vqgpt.runtime.device import resolve_precision, select_device
from vqgpt.storage.checkpoint import weights_sha256
from vqgpt.storage.files import check_can_be_written
from vqgpt.tokens import Description, ShardRows, Split, TokenCache
from vqgpt.tokens.arrays import code_dtype, default_shard_rows

SPLIT = "samples"
SHARD_ROWS = 1024  # what a kill can cost, in images

FindPrompts = Callable[[GPTConfig, Description], Prompts | None]


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """What will be sampled: the GPT, the labels as `GPT.start` takes them, and the cache to write.

    Image i is of `labels[i % m]` (m, ...), and completes `known[i % n]` (n, h, w), if there are any, -1 where a code is
    to be drawn.
    """

    gpt: LoadedGPT
    codebook: NDArray[np.float32]
    checkpoint: Path
    labels: NDArray[np.int64]
    known: NDArray[np.int64] | None
    description: Description
    cache: CachePath

    __repr__ = one_line

    @property
    def summary(self) -> dict[str, Any]:
        """The plan as a result to show."""
        return {
            "cache": self.cache,
            "dataset": self.description.dataset,
            "images": self.description.splits[0].rows,
            "grid": self.description.grid,
            "checkpoint": self.checkpoint,
        }


def run(config: SampleConfig, overwrite: bool, dry_run: bool, report: Report) -> dict[str, Any]:
    """Sample as configured, and render where the VQ-GAN is at hand; the result names the cache and the picture.

    Raises what `plan` raises, and what rendering does, before the first code is drawn.
    """
    loaded: list[Any] = []  # the VQ-GAN, once it is needed: it encodes prompts, and decodes samples

    def vqgan_of(description: Description) -> Any:
        if not loaded:
            from vqgpt.api.render import load_its_vqgan

            options = EncoderOptions(checkpoint_vae=config.checkpoint_vae, device=config.run.device)
            loaded.append(load_its_vqgan(description, options))
        return loaded[0]

    def find_prompts(gpt: GPTConfig, description: Description) -> Prompts | None:
        def encode(path: Path, _: Description) -> NDArray[np.int64]:
            from vqgpt.api.render import encode_image

            return encode_image(path, description, lambda: vqgan_of(description))

        def mask(path: Path) -> NDArray[np.bool_]:
            from vqgpt.api.render import read_mask

            return read_mask(path)

        return read_prompts(config.prompt, config.keep, config.cache, gpt, description, encode, mask)

    planned = plan(config, find_prompts, report)
    vqgan = config.checkpoint_vae or vqgan_path(planned.description.dataset)
    known = planned.description.knows_its_vqgan
    at_hand = config.checkpoint_vae is not None or (known and vqgan.exists())
    rendering = _rendering() if at_hand and not config.tokens_only else None
    encoder = EncoderOptions(checkpoint_vae=vqgan, device=config.run.device)
    picture = RenderConfig(cache=planned.cache, vqgan=encoder, show=config.show)
    if rendering:
        rendering.check_place_and_form(picture, planned.description, overwrite)
        vqgan_of(planned.description)
    if dry_run:
        return planned.summary
    if rendering:
        check_can_be_written(picture.result)
    result = draw(planned, config, overwrite, report)
    if rendering:
        model = vqgan_of(planned.description)
        return {**result, "picture": rendering.render(picture, model, overwrite, False, report)["picture"]}
    if not config.tokens_only:
        report(Notice(text=f"no picture: {_why_no_picture(planned.cache, known, at_hand, vqgan)}"))
    return result


def _rendering() -> ModuleType | None:
    """`api.render`; None where the VQ-GAN's code cannot be imported."""
    try:
        from vqgpt.api import render
    except ImportError:
        return None
    return render


def _why_no_picture(cache: CachePath, known: bool, at_hand: bool, vqgan: Path) -> str:
    """Why samples were not rendered, and what would: nothing, if their VQ-GAN is not `known`."""
    if not known:
        return "the GPT learned tokens that were imported without their VQ-GAN, so it is not known what decodes them"
    if at_hand:
        return f"the VQ-GAN's code cannot be imported here; where it can, `vqgpt render {cache}` makes one"
    return f"there is no VQ-GAN at {vqgan}; with the one that made the tokens, `vqgpt render {cache}` makes one"


def plan(config: SampleConfig, find_prompts: FindPrompts, report: Report) -> SamplePlan:
    """Load the GPT and settle what to sample.

    Raises UsageError for classes that the GPT does not know, and what `find_prompts` raises; a notice tells of prompts
    that it does not see whole.
    """
    device = select_device(config.run.device)
    checkpoint = find_gpt(config.checkpoint_gpt, config.dataset)
    gpt = load_gpt(checkpoint, device, config.n_head)
    if gpt.description is None or gpt.codebook is None:
        trained_on, codebook = what_it_was_trained_on(config, gpt.model.config, checkpoint)
        gpt = load_gpt(checkpoint, device, config.n_head, trained_on.grid)
    else:
        trained_on, codebook = gpt.description, gpt.codebook.numpy()
        if config.cache:
            check_same_tokens(TokenCache(config.cache), trained_on)
    architecture = gpt.model.config
    check_dataset(config.dataset, trained_on.dataset, checkpoint)
    check_heads(config.n_head, architecture, checkpoint)
    known_labels = KnownLabels.of(architecture, trained_on.class_names, gpt.labels_seen)
    if config.sampling.cfg_scale != 1:
        check_can_guide(gpt, checkpoint)
    prompts = find_prompts(architecture, trained_on)
    if prompts or config.cache:
        warn_if_unknown(trained_on.tokenizer_sha256, report)
    if prompts and not config.classes:
        labels = prompts.labels
        known_labels.check_seen(labels)
    else:
        each = len(prompts.labels) if prompts else 1
        labels = [label for label in known_labels.cycle(config.classes, report) for _ in range(each)]
    if no_label(architecture) in labels:
        check_knows_unlabelled(gpt, checkpoint, "tell the label with --class")
    check_order(config.sampling.draw_order, architecture.options, checkpoint, "--draw-order")
    if prompts and not architecture.options.any_order and not is_prefix(prompts.known, gpt.model.cells.cpu().numpy()):
        report(
            Notice(
                text="some known tokens come after sampled ones in the order in which this GPT reads the grid "
                f"({architecture.options.order}): a sampled token cannot see the known tokens after it. A GPT that was "
                "trained with --order random sees all of them"
            )
        )
    row_bytes = architecture.block_size * np.dtype(code_dtype(trained_on.codebook_size)).itemsize
    description = replace(
        trained_on,
        origin="sampled",
        label_kind=architecture.options.condition,
        source_sha256=weights_sha256(gpt.model, architecture.identity),
        splits=(Split(name=SPLIT, rows=config.sampling.num_samples),),
        limit=None,
        views=("identity",),
        precision=resolve_precision(config.run.precision, device),
        sampling={
            **recorded_options(config.sampling, architecture),
            "classes": labels,
            "prompts": prompts.known.tolist() if prompts else [],
            "seed": config.run.seed,
            "log_prob": True,
        },
        shard_rows=min(SHARD_ROWS, default_shard_rows(row_bytes)),
    )
    return SamplePlan(
        gpt=gpt,
        codebook=codebook,
        checkpoint=checkpoint,
        labels=np.array(labels),
        known=prompts.known if prompts else None,
        description=description,
        cache=config.out or samples_path(trained_on.dataset),
    )


def recorded_options(sampling: SamplingOptions, gpt: GPTConfig) -> dict[str, Any]:
    """What a cache records of them: the order where it is not the GPT's own, for there were caches before it."""
    recorded = dict(to_json(sampling))
    if sampling.draw_order in (None, gpt.options.own_order):
        del recorded["draw_order"]
    return recorded


def draw(plan: SamplePlan, config: SampleConfig, overwrite: bool, report: Report) -> dict[str, Any]:
    """Sample as planned; the result names the cache."""
    guided = config.sampling.cfg_scale != 1
    sampler = Sampler(plan.gpt.model, plan.description.precision, guided, plan.known is not None)

    def rows_of(shard: ShardRows) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        labels = torch.from_numpy(cycled(plan.labels, shard))
        known = None if plan.known is None else torch.from_numpy(cycled(plan.known, shard))
        asked = Asked.of_one_seed(labels, config.run.seed, config.sampling, known, shard.start)
        for codes, log_prob in sampler.codes(asked):
            yield codes.numpy()[:, None], log_prob.numpy()

    def labels_of(shard: ShardRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        labels = cycled(plan.labels, shard)
        if description.label_kind == "bits":
            labels = np.maximum(labels, 0)
        return labels, np.arange(shard.start, shard.stop)

    description = plan.description
    manifest = fill_cache(plan.cache, description, plan.codebook, overwrite, "sample", rows_of, labels_of, report)
    return {**plan.summary, "digest": manifest.digest}


def cycled(values: NDArray[np.int64], shard: ShardRows) -> NDArray[np.int64]:
    """Of values (n, ...) that images cycle through, those of the images of a shard."""
    return values[np.arange(shard.start, shard.stop) % len(values)]


def check_can_guide(gpt: LoadedGPT, checkpoint: Path) -> None:
    """Raise UsageError if a GPT has no label to guide towards, or was never shown an image without one."""
    if not gpt.model.config.num_classes:
        raise UsageError(
            f"{checkpoint} was trained without classes, so there is nothing to guide towards", "leave --cfg-scale out"
        )
    check_knows_unlabelled(gpt, checkpoint, "leave --cfg-scale out")


def check_knows_unlabelled(gpt: LoadedGPT, checkpoint: Path, remedy: str) -> None:
    """Raise UsageError if a GPT that knows classes or bits was never shown an image without."""
    if gpt.model.config.num_classes and gpt.label_dropout == 0:
        raise UsageError(
            f"{checkpoint} was trained with --label-dropout 0: it never saw an image without its label",
            f"{remedy}, or train one with --label-dropout 0.1",
        )


def what_it_was_trained_on(
    config: SampleConfig, gpt: GPTConfig, checkpoint: Path
) -> tuple[Description, NDArray[np.float32]]:
    """The description and codebook of the token cache that goes with a GPT of GenerativeZoo, whose file has neither.

    Raises InputError if codes or tokens per image are not as many as the GPT has.
    """
    cache = TokenCache(find_cache(config.cache, config.dataset))
    theirs = (cache.description.codebook_size, int(np.prod(cache.description.grid)))
    if theirs != (gpt.codebook_size, gpt.block_size):
        raise InputError(
            f"{cache.path} has {theirs[0]} codes and {theirs[1]} tokens per image, {checkpoint} "
            f"{gpt.codebook_size} and {gpt.block_size}",
            "give --cache, a token cache of the tokenizer that the GPT was trained with",
        )
    return cache.description, cache.codebook()
