"""Versions of this package and of the libraries that shape its results. Must not import any of them.

torchvision's Python modules, also where its compiled operators do not load.

A torchvision built for CUDA beside a torch built for the CPU stops at import with "operator torchvision::nms does not
exist". We use none of its operators, only its dataset readers and network definitions, so the module that registers
them is left out then.
"""

import importlib
import sys
import types
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

LIBRARIES = ("vqgpt", "torch", "torchvision", "numpy", "zarr", "numcodecs")


def installed_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str]:
    """What an artefact records about the software that made it."""
    return {name: installed_version(name) or "absent" for name in LIBRARIES}


def import_torchvision(name: str) -> ModuleType:
    """The module `torchvision.<name>`."""
    try:
        return importlib.import_module(f"torchvision.{name}")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == "torchvision"]:
        del sys.modules[loaded]
    registrations = "torchvision._meta_registrations"
    sys.modules[registrations] = types.ModuleType(registrations)
    return importlib.import_module(f"torchvision.{name}")
