"""What takes seconds, and processes that are forked from one have from their start: imports, and C code compiled."""

from pathlib import Path

import sklearn.datasets  # noqa: F401
import torch._dynamo  # noqa: F401  (which torch's optimisers import)

import vqgpt
import vqgpt.stages.render
import vqgpt.stages.sample
import vqgpt.stages.tokenize
import vqgpt.stages.train_gpt
import vqgpt.stages.train_vqgan
from vqgpt.compiled import compiled_library

for source in Path(vqgpt.__file__).parent.rglob("*.c"):
    compiled_library(source)
