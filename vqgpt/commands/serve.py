"""`vqgpt serve`: a page to play with a trained pair, and the same as JSON over HTTP."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vqgpt.api.options import SourceOptions
from vqgpt.errors import MissingDataError
from vqgpt.options.definition import (
    CHECKPOINT_VAE,
    DATA,
    DEVICE,
    N_HEAD,
    PRECISION,
    REMAP,
    RUN,
    Command,
    Flags,
    argument,
    check,
    check_positive,
    option,
)
from vqgpt.options.paths import CachePath, expand_home
from vqgpt.progress import Report

SHORTEST_TOKEN = 16
MOST_IMAGES = 4096


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """`vqgpt serve`."""

    run: str = argument("The folder of a run, runs/NAME, with its GPT and its VQ-GAN.")
    host: str = option(
        "127.0.0.1", "Where to listen: other machines reach what is not loopback, and then need a token.", group=RUN
    )
    port: int = option(8000, "The port; 0 takes any free one.", group=RUN)
    token: str | None = option(
        None,
        "What clients have to know, at least 16 characters; better given as VQGPT_SERVE_TOKEN, as others see the words "
        "of a command (default: none on loopback, else a new one, which is shown).",
        group=RUN,
    )
    max_images: int = option(64, "The most images of one request, and of one pass of the networks.", group=RUN)
    max_waiting: int = option(512, "The most images that may wait; more are refused for the moment.", group=RUN)
    cache: CachePath | None = option(
        None, "Its token cache (default: the one that its GPT was trained on, else cache/DATASET.zarr).", group=DATA
    )
    n_head: int | None = N_HEAD
    checkpoint_vae: Path | None = CHECKPOINT_VAE
    remap: Path | None = REMAP
    device: str = DEVICE
    precision: Literal["auto", "fp32", "bf16"] = PRECISION

    def __post_init__(self) -> None:
        check(0 <= self.port < 2**16, "port", self.port, "between 0 and 65535")
        check(0 < self.max_images <= MOST_IMAGES, "max_images", self.max_images, f"between 1 and {MOST_IMAGES}")
        check_positive(self, "max_waiting", "n_head")
        fits = self.token is None or re.fullmatch(f"[A-Za-z0-9_-]{{{SHORTEST_TOKEN},}}", self.token) is not None
        check(fits, "token", "(not shown)", f"at least {SHORTEST_TOKEN} letters, digits, - and _")


def run(config: ServeConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Open a page on this machine on which one plays with a trained pair; the same as JSON over HTTP."""
    try:
        from vqgpt.serve import server
    except ImportError as error:
        raise MissingDataError(f"{error.name} is not installed", "pip install 'vqgpt[serve]'") from None
    from vqgpt.api.run_files import Run
    from vqgpt.serve.pair import Pair

    sources = SourceOptions(checkpoint_vae=config.checkpoint_vae, remap=config.remap, device=config.device)
    folder = Path(expand_home(config.run, "run"))
    run = Run(folder=folder, sources=sources, n_head=config.n_head, tokens=config.cache, report=report)
    token = config.token
    if token is None and server.needs_token(config.host):
        check(not flags.output.quiet, "quiet", True, "left out, or the token given: a new one could not be shown")
        token = secrets.token_hex(16)
    pair = Pair.open(run, config.precision)
    listener = server.bound(config.host, config.port)
    server.serve(pair, listener, config.max_images, config.max_waiting, token, report)
    return {"served": pair.name}


COMMAND = Command(words="serve", config=ServeConfig, run=run, takes_recipe=False)
