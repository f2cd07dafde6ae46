"""`vqgpt doctor`: what is installed, which devices there are, and what is missing."""

import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from vqgpt.data.table import DATASETS
from vqgpt.kernels import build as compiled
from vqgpt.options.paths import CACHE_FOLDER, RUNS_FOLDER, default_data_root
from vqgpt.runtime.libraries import LIBRARIES, installed_version
from vqgpt.runtime.process import keep_memory_pages

EXTRAS = {"lpips": "the perceptual loss", "wandb": "logging to Weights & Biases"}


def run() -> dict[str, Any]:
    """A line per fact; what is missing says how to get it."""
    result: dict[str, Any] = {"python": platform.python_version()}
    for name in (*LIBRARIES, "medmnist", "scikit-learn"):
        result[name] = installed_version(name) or f"missing: pip install {name}"
    for name, use in EXTRAS.items():
        result[name] = installed_version(name) or f"not there; for {use}: pip install 'vqgpt[{name}]'"
    result["torchvision_operators"] = _torchvision_state()
    result["cpu"] = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    result |= _compiler_state()
    result["cuda"] = _cuda_state()
    result["mps"] = "available" if torch.backends.mps.is_available() else "not on this machine"
    result["memory_pages_kept"] = keep_memory_pages()
    result["free_disk_gigabytes"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    result["data_root"] = default_data_root()
    result["datasets"] = ", ".join(DATASETS)
    result["caches"] = (
        ", ".join(sorted(path.name for path in CACHE_FOLDER.glob("*.zarr"))) or "none: vqgpt tokenize makes one"
    )
    result["runs"] = ", ".join(sorted(path.name for path in RUNS_FOLDER.glob("*"))) or "none yet"
    return result


def _compiler_state() -> dict[str, str]:
    """Whether it compiles all our C code, and if not, the last lines that it said."""
    compiler = shutil.which("cc")
    if compiler is None:
        return {"c_compiler": "not there; with cc, training and sampling are faster on a CPU"}
    for source in compiled.SOURCES:
        try:
            compiled.load_or_compile(source)
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
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    if torch.version.cuda is None:
        return "this torch is built without CUDA; install the build for your driver from pytorch.org"
    return "no device found"
