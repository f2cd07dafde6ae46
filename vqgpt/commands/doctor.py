"""`vqgpt doctor`: what is installed, which devices there are, and what is missing."""

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgpt.data.table import DATASETS
from vqgpt.options.definition import Command, Flags
from vqgpt.options.paths import CACHE_FOLDER, RUNS_FOLDER, default_data_root
from vqgpt.progress import Report
from vqgpt.runtime.process import keep_memory_pages

EXTRAS = {  # by distribution
    "lpips": ("lpips", "the perceptual loss LPIPS"),
    "stlpips-pytorch": ("stlpips", "the perceptual loss stlpips"),
    "wandb": ("wandb", "logging to Weights & Biases"),
}


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """A command without options of its own."""


def run(config: NoConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Show versions, devices, and what is missing."""
    import torch

    from vqgpt.runtime.process import LIBRARIES, installed_version

    extras = {name: f"not there; for {use}: pip install 'vqgpt[{extra}]'" for name, (extra, use) in EXTRAS.items()}
    needed = {name: f"missing: pip install {name}" for name in (*LIBRARIES, "medmnist", "scikit-learn")}
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) or remedy for name, remedy in (needed | extras).items()},
        "torchvision_operators": _torchvision_state(),
        "cpu": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        **_compiler_state(),
        "cuda": _cuda_state(),
        "mps": "available" if torch.backends.mps.is_available() else "not on this machine",
        "memory_pages_kept": keep_memory_pages(),
        "free_disk_gigabytes": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "data_root": default_data_root(),
        "datasets": ", ".join(DATASETS),
        "caches": _names(CACHE_FOLDER, "*.zarr") or "none: vqgpt tokenize makes one",
        "runs": _names(RUNS_FOLDER, "*") or "none yet",
    }


def _names(folder: Path, pattern: str) -> str:
    return ", ".join(sorted(path.name for path in folder.glob(pattern)))


def _compiler_state() -> dict[str, str]:
    """Whether it compiles all our C code, and if not, the last lines that it said."""
    from vqgpt.kernels.build import SOURCES, load_or_compile

    compiler = shutil.which("cc")
    if compiler is None:
        return {"c_compiler": "not there; with cc, training and sampling are faster on a CPU"}
    for source in SOURCES:
        try:
            load_or_compile(source)
        except OSError as error:
            fault = (
                f"{compiler}, which is of no use ({source.name}: {error}); training and sampling are slower on a CPU"
            )
            said = "\n".join(getattr(error, "__notes__", []))
            return {"c_compiler": fault} | ({"c_compiler_said": said} if said else {})
    return {"c_compiler": compiler}


def _torchvision_state() -> str:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return "missing: pip install torchvision"
    except RuntimeError:
        return "do not load (torch and torchvision are of different builds); vqgpt reads datasets without them"
    return "load"


def _cuda_state() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install the build for your driver from pytorch.org"
    return "no device found"


COMMAND = Command(words="doctor", config=NoConfig, run=run, takes_recipe=False)
