"""Who imports whom: what the linter cannot see is tried in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_GPT, description, write_cache

BLOCKED = {"torchvision", "medmnist", "sklearn", "PIL"}
TORCH_FREE = {  # what options are made of
    "vqgpt.vqgan",
    "vqgpt.vqgan.options",
    "vqgpt.data",
    "vqgpt.data.options",
    "vqgpt.data.table",
}
BLOCK = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("vqgpt.vqgan", "vqgpt.data")) and name not in {TORCH_FREE}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Blocker())
sys.modules.update(dict.fromkeys({BLOCKED}))  # None for a module: it cannot be imported
"""


def test_stage_two_runs_where_the_vqgan_cannot_be_imported(here):
    """Trains, samples, scores and exports where the VQ-GAN, image data and their libraries cannot be imported."""
    write_cache(Path("cache/a.zarr"), description())
    code = (
        BLOCK
        + f"""
from vqgpt.cli.app import main
for command in (
    ["train", "--out", "x.pt", *{TINY_GPT!r}],
    ["sample", "--checkpoint-gpt", "x.pt", "--tokens-only", "--out", "x.zarr", "--num-samples", "3"],
    ["score", "x.zarr", "--checkpoint-gpt", "x.pt"],
    ["export", "x.safetensors", "--to", "safetensors", "--checkpoint-gpt", "x.pt"],
    ["cache", "verify", "x.zarr"],
):
    try:
        main(command)
    except SystemExit as leaving:
        assert not leaving.code, (command, leaving.code)
imported = {{name for name in sys.modules if name.startswith(("vqgpt.vqgan", "vqgpt.data"))}}
assert imported <= {TORCH_FREE}, imported
"""
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (here / "x.zarr/zarr.json").exists()


def test_without_the_vqgans_code_there_is_no_picture_and_an_import_is_told_as_what_is_missing(pipeline):
    code = (
        BLOCK
        + """
from vqgpt.cli.app import main
for command, expected in (
    (["sample", "--prompt", "cache:train/17", "--num-samples", "2", "--out", "x.zarr"], 0),
    (["render", "x.zarr"], 4),
):
    try:
        main(command)
    except SystemExit as leaving:
        assert leaving.code == expected, (command, leaving.code)
"""
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no picture" in result.stderr
    assert "report it as a bug" not in result.stderr
    assert (pipeline / "x.zarr/zarr.json").exists()
    assert not (pipeline / "x.png").exists()


@pytest.mark.parametrize("module", ["vqgpt", "vqgpt.tokens", "vqgpt.cli.app", "vqgpt.api.options", "vqgpt.api.sources"])
def test_these_import_no_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_imports_neither_numpy_nor_zarr():
    code = "import sys, vqgpt.cli.app; assert not {'numpy', 'zarr', 'PIL', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands_that_look_after_caches_need_no_torch(pipeline):
    cache = "cache/digits.zarr"
    code = f"""
import sys
sys.modules["torch"] = None
from vqgpt.cli.app import main
for command in (
    ["cache", "list"],
    ["cache", "info", {cache!r}],
    ["cache", "verify", {cache!r}],
    ["cache", "export", {cache!r}, "--out", "exported"],
    ["datasets"],
):
    try:
        main(command)
    except SystemExit as leaving:
        assert leaving.code == 0, command
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_typers_own_click_is_enough():
    """typer carries a click of its own; another one may be absent."""
    code = "import sys; sys.modules['click'] = None\nfrom vqgpt.cli.app import main\nmain(['--version'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("vqgpt ")
