"""How good the digits pipeline is: run it after `make all`, in the same folder.

Prints the held-out PSNR and codebook use of the VQ-GAN, the GPT's held-out loss beside the unigram entropy of the
tokens, and for 500 samples (50 per class, sampled with the recipe's settings but another seed) the share that
classifiers trained on the real digits recognise as the class asked for, and the share whose tokens equal those of a
training image.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from vqgpt.data.images import load_tensor
from vqgpt.data.options import ImageOptions, Preprocessing
from vqgpt.data.reading import read_dataset
from vqgpt.data.table import find_dataset
from vqgpt.options.definition import resolve
from vqgpt.options.paths import cache_path, gpt_path, vqgan_path
from vqgpt.progress import silent
from vqgpt.tokens import TokenCache
from vqgpt.tokens.arrays import code_statistics
from vqgpt.vqgan.checkpoint import load_vqgan
from vqgpt.vqgan.coding import decode_in_passes, figures_of, reconstruct

NUM_SAMPLES = 500
SEED = 1


def main() -> None:
    """Print the figures as JSON."""
    device = torch.device("cpu")
    model = load_vqgan(vqgan_path("digits"), "digits", device)
    size, options = model.config.size, resolve(ImageOptions)
    assert size is not None  # vqgpt trained it
    splits = read_dataset(find_dataset("digits"), options, size, silent).splits
    preprocessing = Preprocessing(size=size, channels=1, options=options.preprocessing)
    train, test = (load_tensor(splits[name], preprocessing, 0, name, silent) for name in ("train", "test"))
    train_labels, test_labels = splits["train"].labels, splits["test"].labels
    cache = TokenCache(cache_path("digits"))
    train_codes = cache.read_split("train").codes[:, 0]
    unigram = code_statistics(cache.read_split("test").codes, cache.description.codebook_size)
    gpt = torch.load(gpt_path("digits"), weights_only=True)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.zarr"
        flags = [
            "--recipe",
            "digits",
            "--num-samples",
            str(NUM_SAMPLES),
            "--seed",
            str(SEED),
            "--tokens-only",
            "--out",
            str(path),
            "-q",
        ]
        subprocess.run([sys.executable, "-m", "vqgpt", "sample", *flags, *sys.argv[1:]], check=True)
        samples = TokenCache(path).read_split("samples")
    codes, classes = samples.codes[:, 0], samples.labels
    pixels = decode_in_passes(model, codes, "fp32", silent).reshape(len(codes), -1)
    training_rows = {row.tobytes() for row in train_codes}
    distances = (codes[:, None] != train_codes[None]).sum(axis=(2, 3)).min(axis=1)

    reconstructions, test_codes = reconstruct(model, test)
    counts = torch.bincount(test_codes.flatten(), minlength=model.config.codebook_size)
    figures: dict[str, float] = figures_of(test, reconstructions, counts)
    figures["codebook_size"] = cache.description.codebook_size
    figures["unigram_nats_per_token"] = unigram.entropy_bits_per_token * math.log(2)
    figures["gpt_held_out_nats_per_token"] = gpt["figures"]["held_out_nats_per_token"]
    real_train = train.flatten(1).numpy() / 255
    real_test = test.flatten(1).numpy() / 255
    for name, classifier in (("svm", SVC(C=10)), ("knn", KNeighborsClassifier(3))):
        classifier.fit(real_train, train_labels)
        figures[f"{name}_recognises_real"] = classifier.score(real_test, test_labels)
        figures[f"{name}_recognises_samples"] = classifier.score(pixels / 255, classes)
    figures["identical_to_a_training_image"] = float(
        np.mean([row.tobytes() in training_rows for row in codes.astype(train_codes.dtype)])
    )
    figures["mean_tokens_unlike_the_nearest_training_image"] = float(distances.mean())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
