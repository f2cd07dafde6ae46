"""torchvision's Python modules, also where its compiled operators do not load.

A torchvision built for CUDA beside a torch built for the CPU stops at import with "operator torchvision::nms does not
exist". We use none of its operators, only its dataset readers and network definitions, so the module that registers
them is left out then.
"""

import importlib
import sys
import types
from types import ModuleType


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
