"""Imported once where test processes are forked: what each of them would begin with, and would take seconds for.

Torch's optimisers and FSDP import much at their first use, and our C code is compiled at its own.
"""

from pathlib import Path

import sklearn.datasets  # noqa: F401  (the digits)
import torch._dynamo
import torch.distributed.fsdp  # noqa: F401

import vqgpt
import vqgpt.api.library
import vqgpt.api.render
import vqgpt.api.sample
import vqgpt.api.sources
import vqgpt.api.tokenize
import vqgpt.api.train
import vqgpt.api.train_vqgan
import vqgpt.evaluation.likelihood
import vqgpt.evaluation.reconstruction
import vqgpt.tokens.third_party
from vqgpt.kernels.build import compiled_library

for source in Path(vqgpt.__file__).parent.rglob("*.c"):
    compiled_library(source)
