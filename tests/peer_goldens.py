"""What other systems' own code computed, on weights that need not be stored: `make_peer_goldens.py` wrote it.

A weight is a pure function of its name and shape, so a golden file holds only these, and what came out: images, codes
and reconstructions. Nothing here uses vqgpt, and it needs numpy and torch alone.
"""

import hashlib
import json
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"


class PeerGolden(NamedTuple):
    """Weights by name; images (N, C, H, W) uint8; codes (N, h, w); what they decode to, in [-1, 1] but not clamped."""

    state: dict[str, torch.Tensor]
    images: torch.Tensor
    codes: torch.Tensor
    decoded: torch.Tensor
    config: str


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers spread so that no norm, bias or shortcut could be left out unnoticed. The same on every machine."""
    numbers = np.frombuffer(hashlib.shake_256(name.encode()).digest(prod(shape)), np.int8).reshape(shape) / 128
    if "embedding" not in name and len(shape) > 1:
        numbers = numbers * (3 / prod(shape[1:])) ** 0.5
    elif len(shape) == 1:
        numbers = (1 if name.endswith("weight") else 0) + 0.3 * numbers
    return torch.from_numpy(numbers.astype(np.float32))


def images(channels: int, size: int) -> torch.Tensor:
    """Two images (2, C, size, size) uint8."""
    shape = (2, channels, size, size)
    return torch.from_numpy(
        np.frombuffer(hashlib.shake_256(b"images").digest(prod(shape)), np.uint8).reshape(shape).copy()
    )


def save(
    name: str, state: dict[str, torch.Tensor], codes: torch.Tensor, decoded: torch.Tensor, config: str = ""
) -> None:
    """Write a golden file. `config` is the text of a file that lies beside such weights."""
    np.savez_compressed(
        GOLDEN / f"vqgan-{name}.npz",
        shapes=np.array(json.dumps({key: list(tensor.shape) for key, tensor in state.items()})),
        codes=codes.numpy().astype(np.uint16),
        decoded=decoded.numpy(),
        config=np.array(config),
    )


def load(name: str) -> PeerGolden:
    """Read a golden file."""
    with np.load(GOLDEN / f"vqgan-{name}.npz") as file:
        state = {key: weight(key, tuple(shape)) for key, shape in json.loads(str(file["shapes"])).items()}
        decoded = torch.from_numpy(file["decoded"])
        codes = torch.from_numpy(file["codes"].astype(np.int64))
        return PeerGolden(state, images(*decoded.shape[1:3]), codes, decoded, str(file["config"]))
