"""Imported once where test processes are forked: what each of them would begin with, and would take seconds for.

Torch's optimisers and FSDP import much at their first use, and our C code is compiled at its own.
"""

from pathlib import Path

import sklearn.datasets  # noqa: F401  (the digits)
import torch._dynamo
import torch.distributed.fsdp  # noqa: F401

import vqgpt
import vqgpt.stages.export_model
import vqgpt.stages.import_cache
import vqgpt.stages.import_vqgan
import vqgpt.stages.preview
import vqgpt.stages.reconstruct
import vqgpt.stages.render
import vqgpt.stages.sample
import vqgpt.stages.score
import vqgpt.stages.tokenize
import vqgpt.stages.train_gpt
import vqgpt.stages.train_vqgan
from vqgpt.compiled import compiled_library

for source in Path(vqgpt.__file__).parent.rglob("*.c"):
    compiled_library(source)
