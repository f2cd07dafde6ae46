"""How fast the VQ-GAN trains on images that are decoded while it trains, beside images that are in memory.

    python benchmarks/streamed_training.py [--batch 32] [--rounds 5] [--workers 2]

The default network (32 x 32 RGB, losses of the pixels) on a folder of JPEG files of 500 x 375 pixels, of smooth noise,
made here. A round is a few steps on images in memory, as many on streamed ones, and as many on random crops. Images per
second of processor time, that of the threads that decode included, so that other work on the machine counts little; the
ratio as the median over the rounds; and which part of the time the training waited for images.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vqgpt.data.augmentation import Augmentation
from vqgpt.data.file_trees import open_tree
from vqgpt.data.images import FileImages, ImageSplit, load_tensor
from vqgpt.data.options import Preprocessing, PreprocessingOptions
from vqgpt.data.training_images import LoadedImages, StreamedImages
from vqgpt.progress import silent
from vqgpt.runtime.process import keep_memory_pages
from vqgpt.training.schedule import Schedule
from vqgpt.vqgan.architecture import VQGANConfig
from vqgpt.vqgan.model import VQGAN
from vqgpt.vqgan.options import VQGANOptions, VQGANTrainingOptions
from vqgpt.vqgan.training import TrainingImages, VQGANTraining

SIZE = 32
FILES = 256
STEPS = 4  # of a round


def write_photos(folder: Path) -> ImageSplit:
    """JPEG files of 500 x 375 pixels, about 40 kB each."""
    random = np.random.default_rng(0)
    for number in range(FILES):
        rough = Image.fromarray(random.integers(0, 256, (75, 100, 3), dtype=np.uint8))
        rough.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=90)
    tree = open_tree(folder)
    return ImageSplit.whole(FileImages(tree, tuple(tree.sizes), (255, 255, 255)), np.zeros(FILES, dtype=np.int64))


def new_training(images: TrainingImages, schedule: Schedule) -> VQGANTraining:
    """A training of the default network."""
    torch.manual_seed(0)
    model = VQGAN(VQGANConfig.of(VQGANOptions(), 3, SIZE))
    options = VQGANTrainingOptions(batch_size=schedule.batch_size, n_epochs=schedule.n_epochs, disc_weight=0.0)
    held_out = partial(images.passes, torch.arange(1), 1)
    return VQGANTraining(model, None, images, held_out, options, schedule, "fp32", lambda *_: None)


def main() -> None:
    """Print the speeds, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    keep_memory_pages()
    how = Preprocessing(size=SIZE, channels=3, options=PreprocessingOptions())
    schedule = Schedule(seed=0, num_rows=FILES, batch_size=arguments.batch, n_epochs=1000)
    crops = Augmentation(kinds=("crop",), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        split = write_photos(Path(folder))
        start = time.process_time()
        loaded = LoadedImages(load_tensor(split, how, 0, "photos", silent))
        print(f"decodes and resizes {FILES / (time.process_time() - start):.0f} images per processor second")
        streams = {
            "streamed": StreamedImages(split, how, arguments.workers, schedule),
            "streamed, crops": StreamedImages(split, how, arguments.workers, schedule, crops),
        }
        sources: dict[str, TrainingImages] = {"loaded": loaded, **streams}
        trainings = {name: new_training(images, schedule) for name, images in sources.items()}
        steps = {name: schedule.steps(0) for name in trainings}
        speeds: dict[str, list[float]] = {name: [] for name in trainings}
        seconds = dict.fromkeys(trainings, 0.0)
        for number in range(arguments.rounds + 1):
            for name, training in trainings.items():
                start, begun = time.process_time(), time.perf_counter()
                for _ in range(STEPS):
                    training.take_step(next(steps[name]))
                seconds[name] += time.perf_counter() - begun
                if number:  # the first is to warm up
                    speeds[name].append(STEPS * arguments.batch / (time.process_time() - start))
        for name, values in speeds.items():
            ratios = [value / other for value, other in zip(values, speeds["loaded"], strict=True)]
            waited = trainings[name].waited / seconds[name]
            figures = f"{statistics.median(values):6.1f} images/s  {statistics.median(ratios):5.3f} of loaded"
            print(f"{name:16} {figures} ({min(ratios):.3f} to {max(ratios):.3f})  waiting {waited:.1%}")
        for stream in streams.values():
            stream.close()


if __name__ == "__main__":
    main()
