"""Reading a safetensors file, its tensors not loaded until they are asked for. Knows neither images nor tokens.

path -> the strings of its header (metadata), and a StoredTensor by name
"""

import functools
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from vqgpt.errors import InputError
from vqgpt.torch_files import StoredTensor, check_is_file

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Metadata and tensors. Raises MissingDataError if there is no file, InputError if it is damaged or another."""
    check_is_file(path, "check the path")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
            tensors = {
                name: StoredTensor(
                    shape=tuple(part.get_shape()),
                    dtype=DTYPES.get(part.get_dtype(), torch.uint8),
                    complete=True,
                    read=functools.partial(_read_tensor, path, name),
                )
                for name, part in slices.items()
            }
            return dict(file.metadata() or {}), tensors
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is truncated ({error})", "get the file again") from None


def _read_tensor(path: Path, name: str) -> Tensor:
    with safetensors.safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
