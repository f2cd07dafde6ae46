"""torchvision's datasets, also where its compiled operators do not load.

A torchvision built for CUDA beside a torch built for the CPU stops at import with "operator torchvision::nms does not
exist". We use none of its operators, only its dataset readers, so the module that registers them is left out then.
"""

import importlib
import sys
import types
from types import ModuleType


def import_torchvision_datasets() -> ModuleType:
    """The module `torchvision.datasets`."""
    try:
        return importlib.import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    registrations = "torchvision._meta_registrations"
    sys.modules[registrations] = types.ModuleType(registrations)
    return importlib.import_module("torchvision.datasets")
