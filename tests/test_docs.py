"""What the documents say is true: the reference page, the reader in FORMAT.md, the commands of the README."""

import re
import shlex
import subprocess
import sys
import typing
from collections import Counter
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import description, write_cache
from vqgpt.cli.app import COMMANDS, GROUPS
from vqgpt.data.table import DATASETS
from vqgpt.options.definition import Flags, OutputFlags, options_of
from vqgpt.tokens import TokenCache

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]


def test_the_reference_page_is_up_to_date():
    made = subprocess.run([sys.executable, ROOT / "docs/make_reference.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs/reference.md").read_text() == made.stdout, "run: make format"


@pytest.mark.parametrize("codebook_size", [16, 1024])
def test_the_reader_in_the_format_page_reads_a_cache(tmp_path, codebook_size):
    code = re.search(r"```python\n(.*?)```", (ROOT / "cache/FORMAT.md").read_text(), re.DOTALL)[1]
    namespace: dict = {}
    exec(code, namespace)
    path = write_cache(tmp_path / "c.zarr", description(codebook_size=codebook_size))
    np.testing.assert_array_equal(namespace["read_codes"](path, "train"), TokenCache(path).read_split("train").codes)
    shard = path / "train/codes/c/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(AssertionError, match="shard 0 is damaged"):
        namespace["read_codes"](path, "train")


def commands_in(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```(?:sh|bash|console)?\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vqgpt ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documents_has_flags_that_exist(page):
    for words in commands_in(page):
        table = "-".join(words[:2]) if words[0] in GROUPS else words[0]
        configs = (COMMANDS[table].config, Flags if COMMANDS[table].takes_recipe else OutputFlags)
        known = {name for config in configs for option in options_of(config) for name in (option.flag, option.short)}
        for word in words:
            if word.startswith("-"):
                assert word.split("=")[0].replace("_", "-").replace("--no-", "--") in known, f"{page.name}: {words}"


def test_links_between_documents_lead_somewhere():
    for page in [*PAGES, ROOT / "cache/FORMAT.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_option_has_a_help_text_that_is_a_sentence():
    for command in COMMANDS.values():
        for option in options_of(command.config):
            assert option.help[0].isupper() or option.help.startswith(("auto", "fp32")), option.name
            assert option.help.endswith("."), option.name


def definitions_in(config_class):
    """Each field that defines an option of a class, by its identity: a shared one is one."""
    hints = typing.get_type_hints(config_class)
    found = {}
    for name, item in config_class.__dataclass_fields__.items():
        assert item.name == name
        if is_dataclass(hints[name]):
            found |= definitions_in(hints[name])
        elif "help" in item.metadata:
            found[id(item)] = item
    return found


def test_the_help_of_an_option_that_commands_share_is_no_copy():
    definitions = {}
    for command in COMMANDS.values():
        definitions |= definitions_in(command.config) | definitions_in(command.flags)
    helps = Counter(item.metadata["help"] for item in definitions.values())
    assert [text for text, count in helps.items() if count > 1] == []


def test_the_page_of_datasets_agrees_with_the_table():
    lines = (ROOT / "docs/datasets.md").read_text().splitlines()
    for name, row in DATASETS.items():
        if row.source != "yours":
            (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
            facts = [f"{count:,} {split}" for split, count in row.rows.items()]
            facts += [f"| {row.channels} x {row.default_size} |", f"| {' '.join(row.default_views)} |", row.licence]
            assert all(fact in line for fact in facts), line
