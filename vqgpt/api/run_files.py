"""The files of a run, each opened when it is first asked for, and whether they go together. Nothing is written."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from vqgpt.api.options import EncoderOptions, SourceOptions, TrainConfig, VQGANTrainConfig
from vqgpt.api.render import load_its_vqgan
from vqgpt.api.sources import check_goes_with, check_same_codes
from vqgpt.data.table import held_out_or_none
from vqgpt.errors import InputError, MissingDataError, VQGPTError
from vqgpt.gpt.checkpoint import LoadedGPT, load_gpt
from vqgpt.options.codec import from_json
from vqgpt.options.paths import CachePath, cache_path
from vqgpt.progress import Report, silent
from vqgpt.runtime.device import select_device
from vqgpt.storage.checkpoint import is_ours, read_checkpoint_file
from vqgpt.tokens import TokenCache
from vqgpt.vqgan.model import VQGAN


def trained_by(config_class: type, path: Path) -> Any:
    """The configuration of a training, as its checkpoint holds it. Raises InputError if it has none of ours."""
    content = read_checkpoint_file(path)
    configuration = content.get("configuration") if is_ours(content) else None
    if not isinstance(configuration, dict):
        raise InputError(f"{path} does not say how it was trained", "train one with vqgpt")
    known = {name: value for name, value in configuration.items() if name != "perceptual_loss"}
    return from_json(config_class, known, str(path))


@dataclass(frozen=True, kw_only=True)
class Run:
    """The files of a run, each opened when it is first asked for; `tokens` is a token cache that is not its own."""

    folder: Path
    sources: SourceOptions
    n_head: int | None = None
    tokens: CachePath | None = None
    report: Report = silent

    @cached_property
    def device(self) -> torch.device:
        """What its networks run on."""
        return select_device(self.sources.device)

    @cached_property
    def gpt(self) -> LoadedGPT:
        """Its GPT."""
        return load_gpt(self.folder / "gpt.pt", self.device, self.n_head)

    @cached_property
    def samples(self) -> TokenCache:
        """Its samples."""
        return TokenCache(self.folder / "samples.zarr")

    @cached_property
    def dataset(self) -> str:
        """What it was trained on, by its GPT or its samples, or the name of the folder."""
        with suppress(VQGPTError):
            if self.gpt.description:
                return self.gpt.description.dataset
        with suppress(VQGPTError):
            return self.samples.description.dataset
        with suppress(VQGPTError):
            return trained_by(VQGANTrainConfig, self.folder / "vqgan.pt").images.dataset
        return self.folder.name

    @cached_property
    def cache(self) -> TokenCache:
        """The token cache that was given, else that its GPT was trained on, else that of its dataset."""
        if self.tokens is not None:
            return TokenCache(self.tokens)
        with suppress(VQGPTError):
            if path := trained_by(TrainConfig, self.folder / "gpt.pt").cache:
                return TokenCache(path)
        return TokenCache(cache_path(self.dataset))

    @cached_property
    def images(self) -> SourceOptions:
        """Where its images and its VQ-GAN are: as asked for, else where the VQ-GAN found them."""
        if self.sources.data_root is not None:
            return self.sources
        with suppress(VQGPTError):
            trained = trained_by(VQGANTrainConfig, self.folder / "vqgan.pt")
            return replace(self.sources, data_root=trained.images.data_root)
        return self.sources

    @cached_property
    def vqgan(self) -> VQGAN:
        """The VQ-GAN that made the tokens. Raises InputError if that of the run is another."""
        path = self.sources.checkpoint_vae or self.folder / "vqgan.pt"
        options = EncoderOptions(checkpoint_vae=path, remap=self.sources.remap, device=self.sources.device)
        return load_its_vqgan(self.cache.description, options).eval()

    @property
    def samples_of_cache(self) -> TokenCache:
        """Its samples. Raises InputError if their codes mean other things than those of the cache."""
        check_same_codes(self.cache, self.samples)
        return self.samples

    @property
    def gpt_of_cache(self) -> LoadedGPT:
        """Its GPT, on the grid of the cache. Raises InputError if it was trained on tokens of another kind."""
        path, grid = self.folder / "gpt.pt", self.cache.description.grid
        gpt = self.gpt if self.gpt.description else load_gpt(path, self.device, self.n_head, grid)
        check_goes_with(gpt.model.config, gpt.description, path, self.cache, self.report)
        return gpt

    @cached_property
    def held_out(self) -> str:
        """The held-out split. Raises MissingDataError if there is none."""
        split = held_out_or_none(self.cache.split_names)
        if split is None:
            raise MissingDataError(f"{self.cache.path} has no held-out split", "tokenize with --val-split 0.1")
        return split
