"""Which training of the GPT pays: each against the recipes' own, at equal CPU time, on the tokens of one dataset.

    python benchmarks/gpt_trainings.py --cache MNIST.zarr --vqgan vqgan.pt [--seconds 240]

A GPT with classes (4 layers, width 128, raster, Muon) is trained on the cache by one thread. Every variant has the same
`--seconds` of CPU time: what a step takes is measured first, and as many are taken as fit, in one cycle of the learning
rate. Variants that tell views apart, or do not, need a cache of several (`--views-cache`), with the same codebook.

Then `vqgpt sample` draws 2,000 images and `vqgpt evaluate samples` judges them against the held-out images of the
cache, which are best a part of the training split (`vqgpt tokenize --val-split`): the test split is not for choosing.
Held-out bits per token; MIND and the Frechet distance in `--features`; the share classified as the class asked for;
copies. Mean and range over the seeds. Results are appended to the --out file as they come, and what is there is not run
again.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from comparison import TIMED_STEPS, steps_that_fit, table

from vqgpt.api.gpt_start import gpt_config, network_in_training
from vqgpt.api.options import TrainConfig
from vqgpt.api.train import load_token_grids
from vqgpt.data.table import held_out_split
from vqgpt.gpt.model import GPT
from vqgpt.gpt.training import GPTTraining
from vqgpt.options.definition import resolve
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.tokens import TokenCache
from vqgpt.training.schedule import Schedule

Record = dict[str, Any]

BASE: Record = {
    "condition": "class",
    "n_layer": 4,
    "n_head": 4,
    "embed_dim_t": 128,
    "dropout_t": 0.0,
    "batch_size": 64,
    "order": "raster",
    "optimizer": "muon",
    "lr": 2e-2,
}
WARMUP = 0.1  # of the steps
SAMPLES = 2000
RECIPES = "the recipes"
VARIANTS: dict[str, Record] = {
    RECIPES: {},
    "random to raster until 0.5, 0.75": {"random_until": 0.5},
    "token noise 1": {"token_noise": 1.0},
    "token noise 0.5": {"token_noise": 0.5},
    "token dropout 0.1": {"token_dropout": 0.1},
    "token noise 1 and token dropout 0.1": {"token_noise": 1.0, "token_dropout": 0.1},
    "dropout 0.1": {"dropout_t": 0.1},
    "labels never dropped": {"label_dropout": 0.0},
}
GUIDED: dict[str, tuple[str, float]] = {  # samples of a training, with guidance of a scale
    "guided samples, scale 1.5": (RECIPES, 1.5),
    "guided samples, scale 3": (RECIPES, 3.0),
    "token noise 1, guided samples, scale 1.5": ("token noise 1", 1.5),
}
OF_VIEWS: dict[str, Record] = {
    "views, not told": {},
    "views, told": {"condition_view": True},
}
ALL = (*VARIANTS, *GUIDED, *OF_VIEWS)
COLUMNS = {
    "bits_per_token": ("bits per token", ".3f"),
    "mind": ("MIND", ".2f"),
    "distance": ("Frechet distance", ".1f"),
    "consistency": ("class as asked for", ".3f"),
    "copies": ("copies", ".0f"),
    "steps": ("steps", ".0f"),
}


def steps_of(cache: TokenCache, options: Record, seconds: float) -> int:
    """How many steps take so many CPU seconds, by the first few of such a training."""
    config = resolve(TrainConfig, {"cache": cache.path, **options, "n_epochs": 1000, "max_steps": TIMED_STEPS})
    architecture, cpu = gpt_config(config, cache), torch.device("cpu")
    model = GPT(network_in_training(architecture, config.training))
    rows = load_token_grids(cache, "train", architecture, cpu)
    held_out = load_token_grids(cache, held_out_split(cache.split_names, str(cache.path)), architecture, cpu)
    schedule = Schedule(
        seed=0,
        num_rows=len(rows),
        batch_size=config.training.batch_size,
        n_epochs=1000,
        max_steps=TIMED_STEPS,
    )
    training = GPTTraining(model, rows, held_out, config.training, schedule, "fp32", architecture)
    return steps_that_fit(seconds, training)


def vqgpt(*words: object) -> Any:
    """The result of a command, by one thread."""
    command = [sys.executable, "-m", "vqgpt", *map(str, words), "--json", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def train(path: Path, options: Record, seconds: float, seed: int, out: Path) -> Record:
    """Train for so long; the result of the command, and the steps taken."""
    cache, flags = TokenCache(path), {**BASE, **options}
    steps = steps_of(cache, flags, seconds)
    rows, batch = cache.rows("train"), flags["batch_size"]
    epochs = -(-steps * batch // rows)
    flags |= {"n_epochs": epochs, "max_steps": steps, "warmup": WARMUP * steps * batch / rows}
    flags["sample_and_save_freq"] = epochs
    all_words = [word for name, value in flags.items() for word in _flag(name, value)]
    return {**vqgpt("train", "--cache", path, *all_words, "--seed", seed, "--out", out), "steps": steps}


def judge(arguments: argparse.Namespace, path: Path, gpt: Path, scale: float, folder: Path) -> Record:
    """The figures of 2,000 samples."""
    samples = folder / f"samples-{scale}.zarr"
    sample = ["sample", "--checkpoint-gpt", gpt, "--checkpoint-vae", arguments.vqgan, "--tokens-only"]
    vqgpt(*sample, "--cfg-scale", scale, "--num-samples", SAMPLES, "--seed", 0, "--out", samples)
    evaluate = ["evaluate", "samples", samples, "--checkpoint-vae", arguments.vqgan]
    evaluate += ["--against", arguments.against] if arguments.against else []
    evaluate += ["--data-root", arguments.data_root] if arguments.data_root else []
    evaluate += ["--cache", path, "--features", arguments.features, "--out", folder / f"evaluation-{scale}.json"]
    judged = vqgpt(*evaluate)
    figures = judged["figures"]
    distance = next(name for name in figures if name.startswith(("FD", "FID")))
    consistency = judged.get("class_consistency") or {}
    return {
        "mind": figures["MIND"]["value"],
        "distance": figures[distance]["value"],
        "consistency": consistency.get("samples", {}).get("share", float("nan")),
        "copies": (judged.get("copies_by_tokens") or {}).get("samples", {}).get("copies", 0),
    }


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def main() -> None:
    """Run what has not been run yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--views-cache", type=Path)
    parser.add_argument("--vqgan", type=Path, required=True)
    parser.add_argument("--against", help="real images, as vqgpt evaluate samples takes them (default: the held-out)")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--features", default="lite0")
    parser.add_argument("--seconds", type=float, default=240, help="CPU seconds for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=ALL, metavar="VARIANT")
    parser.add_argument("--out", type=Path, default=Path("gpt_trainings.jsonl"))
    arguments = parser.parse_args()
    keep_memory_pages()
    torch.set_num_threads(1)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    results = [json.loads(line) for line in lines]
    setting = {name: str(getattr(arguments, name)) for name in ("seconds", "features", "against", "vqgan")}
    for seed, training in itertools.product(arguments.seeds, (*VARIANTS, *OF_VIEWS)):
        path = arguments.views_cache if training in OF_VIEWS else arguments.cache
        key = {**setting, "seed": seed, "cache": TokenCache(path).digest if path else ""}
        samplings = {training: 1.0, **{name: scale for name, (of, scale) in GUIDED.items() if of == training}}
        missing = {
            variant: scale
            for variant, scale in samplings.items()
            if path and (arguments.variants is None or variant in arguments.variants)
            if not any({**key, "variant": variant}.items() <= result.items() for result in results)
        }
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            gpt, options = Path(folder) / "gpt.pt", {**VARIANTS, **OF_VIEWS}[training]
            trained = train(path, options, arguments.seconds, seed, gpt)
            figures = {"steps": trained["steps"], "bits_per_token": trained["held_out_bits_per_token"]}
            for variant, scale in missing.items():
                judged = judge(arguments, path, gpt, scale, Path(folder))
                results.append({**key, "variant": variant, **figures, **judged})
                with open(arguments.out, "a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print(table([result for result in results if setting.items() <= result.items()], "variant", ALL, COLUMNS))


if __name__ == "__main__":
    main()
