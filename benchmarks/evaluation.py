"""What evaluating samples costs: features against the bare network, and each figure of two sets of features.

    python benchmarks/evaluation.py [--images 256] [--rows 10000] [--dimensions 2048] [--rounds 3] [--device auto]

`features`: random images of 32 pixels through `make_features`, which reads, digests and keeps, and through the network
alone on the same batches; images per second, medians of interleaved rounds, and their ratio. Networks that are not
installed are left out. `figures`: seconds for all that `vqgpt evaluate samples` computes of two sets of correlated
random features and as many training rows, once. The parts are timed by themselves first; the total is that of
`sample_figures`, which includes them but for copies, and of `feature_figures`. Prints JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqgpt.data.image_sets import ImageSet
from vqgpt.evaluation.distances import (
    Moments,
    frechet_distance_at_infinity,
    frechet_estimate,
    kernel_distance,
    kernel_influences,
    monge_distance,
)
from vqgpt.evaluation.extractors import Extractor, PackagedKind, is_installed, load_inception, load_lite0
from vqgpt.evaluation.features import IMAGES_AT_ONCE, Features, make_features
from vqgpt.evaluation.memorisation import feature_figures
from vqgpt.evaluation.neighbours import manifolds
from vqgpt.evaluation.pixels import DIGEST_BYTES
from vqgpt.evaluation.samples import sample_figures
from vqgpt.progress import silent
from vqgpt.runtime.device import select_device
from vqgpt.runtime.process import keep_memory_pages

LOADERS: dict[PackagedKind, Callable[[torch.device], Extractor]] = {"inception": load_inception, "lite0": load_lite0}
SIDE = 32  # pixels
SHIFT = 0.05  # of all features of the samples


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def random_images(count: int) -> NDArray[np.uint8]:
    """(count, 3, 32, 32)."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)


def set_of(array: NDArray[np.uint8], stem: Path) -> ImageSet:
    """Images (N, C, H, W) that are in memory, whose features are kept at `stem`."""
    return ImageSet(
        name="random",
        sha256="0" * 64,
        labels=np.full(len(array), -1),
        class_names=(),
        shape=(3, SIDE, SIDE),
        features_stem=stem,
        rows=np.arange(len(array)),
        read=lambda batches: (array[list(rows)] for rows in batches),
    )


def kept(array: NDArray[np.uint8], extractor: Extractor) -> None:
    """As `vqgpt evaluate` makes features, into a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        make_features(set_of(array, Path(folder) / "set"), extractor, silent)


def bare(array: NDArray[np.uint8], extractor: Extractor) -> None:
    """The network alone, in the same batches."""
    for images in torch.from_numpy(array).split(IMAGES_AT_ONCE):
        extractor.compute(images).cpu()


def measure_features(count: int, rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Images per second of each network that is installed."""
    array = random_images(count)
    found: dict[str, dict[str, float]] = {}
    for kind, load in LOADERS.items():
        if not is_installed(kind):
            continue
        extractor = load(device)
        bare(array[:IMAGES_AT_ONCE], extractor)  # to warm up
        times: dict[str, list[float]] = {"kept": [], "bare": []}
        for _ in range(rounds):
            times["kept"].append(seconds(partial(kept, array, extractor)))
            times["bare"].append(seconds(partial(bare, array, extractor)))
        rate = {name: count / statistics.median(values) for name, values in times.items()}
        found[kind] = {
            "images_per_second": rate["kept"],
            "of_the_network_alone": rate["bare"],
            "ratio": rate["kept"] / rate["bare"],
        }
    return found


def random_features(rows: int, dimensions: int, seed: int, shift: float = 0.0) -> Features:
    """Features of so many images, positive and correlated, as those of a pooled network are."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(0)) / dimensions**0.5
    mixing *= torch.linspace(1, 0.1, dimensions)[:, None]
    values = (torch.randn(rows, dimensions, generator=generator) @ mixing + shift).relu_()
    digests = np.random.default_rng(seed).integers(0, 256, (rows, DIGEST_BYTES), dtype=np.uint8)
    return Features(
        about={},
        moments=Moments.of(values),
        rows=np.arange(rows),
        values=values,
        digests=digests,
        sharpness=np.ones(rows, np.float32),
    )


def frechet(a: torch.Tensor, b: torch.Tensor) -> None:
    """The distance and the influences; eigenvectors are computed once for both."""
    moments = Moments.of(a), Moments.of(b)
    frechet_estimate(*moments, a, b)


def measure_figures(rows: int, dimensions: int) -> dict[str, float]:
    """Seconds of each part, and of everything."""
    samples, reference, training = (
        random_features(rows, dimensions, seed, shift) for seed, shift in ((1, SHIFT), (2, 0.0), (3, 0.0))
    )
    a, b = samples.values, reference.values
    parts: dict[str, Callable[[], object]] = {
        "frechet": lambda: frechet(a, b),
        "frechet_at_infinity": lambda: frechet_distance_at_infinity(a, Moments.of(b), 0),
        "kid": lambda: kernel_distance(a, b, 0),
        "kid_influences": lambda: kernel_influences(a, b),
        "mind": lambda: monge_distance(a, b, 0),
        "manifolds": lambda: manifolds(a, b),
        "feature_figures": lambda: feature_figures(samples, reference, training, training.digests),
        "sample_figures": lambda: sample_figures(samples, reference, "FID", 0),
    }
    found = {name: seconds(call) for name, call in parts.items()}
    return {**found, "total": found["sample_figures"] + found["feature_figures"]}


def main() -> None:
    """Print both measurements as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_memory_pages()
    features = measure_features(arguments.images, arguments.rounds, select_device(arguments.device))
    figures = measure_figures(arguments.rows, arguments.dimensions)
    print(json.dumps({"threads": torch.get_num_threads(), "features": features, "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
