"""Checkpoints that the peers' own code wrote, with what it computed from them. Skipped where they are not at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import run_here
from vqgpt.vqgan.checkpoint import load_vqgan

FIXTURES = Path(__file__).parent.parent.parent / "shared" / "fixtures"
GOLDEN = {"gz_vqgan.pt": "gz", "taming_vqgan.ckpt": "taming", "llamagen_vq.pt": "llamagen"}


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"there is no {FIXTURES.parent.name}/{FIXTURES.name} beside the project"
)
@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("name", GOLDEN)
def test_codes_and_images_are_those_of_their_home(here, name, imported):
    path = FIXTURES / name
    if imported:
        config = ["--config", str(FIXTURES / "taming_config.yaml")] if name.startswith("taming") else []
        outcome = run_here("vqgan", "import", str(path), *config, "--out", "ours.pt")
        assert outcome.code == 0, outcome.err
        path = Path("ours.pt")
    reference = np.load(FIXTURES / f"{GOLDEN[name]}_reference.npz")
    model = load_vqgan(path, "cifar10", torch.device("cpu"))
    indices = torch.from_numpy(reference["indices"]).view(-1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.encode(torch.from_numpy(reference["images"])), indices)
        images = model.decode_latents(model.quantize.codes_to_latents(indices))
    np.testing.assert_allclose(images, reference["reconstruction"], atol=1e-4, rtol=0)
