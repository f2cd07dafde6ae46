"""What was measured of a run, kept beside it: runs/NAME/evaluation.json, which later commands read.

    {"samples": [entry, ...], "tokenizer": [...], "gpt": [...]}    the latest entry of each kind last

`of` in an entry says what was measured and how: digests, options, the number of images. An entry with the same `of` as
an earlier one takes its place; all others stay. Must not import torch.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from vqgpt.errors import InputError, UsageError
from vqgpt.options.definition import command_line, flat_values, options_of
from vqgpt.options.paths import EVALUATION_FILE
from vqgpt.storage.files import canonical_json, check_plain, read_regular, write_atomically
from vqgpt.storage.write_lock import WriteLock

Kind = Literal["samples", "tokenizer", "gpt"]
LARGEST = 2**26  # bytes


def picture_path(record: Path, name: str) -> Path:
    """Where a picture of an evaluation lies: beside its record, with the record's name where that is another."""
    stem = "" if record.name == EVALUATION_FILE else f"{record.stem}-"
    return record.with_name(f"{stem}{name}.png")


def read_evaluations(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All entries by kind; {} if there is no file. Raises InputError if it is not such a file."""
    try:
        content = json.loads(read_regular(path, LARGEST), parse_constant=_no_number)
        check_plain(content)
        canonical_json(content)  # which has no infinite numbers, as 1e999 is one
        sound = isinstance(content, dict) and all(
            isinstance(entries, list) and all(_is_entry(entry) for entry in entries) for entries in content.values()
        )
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        sound, content = False, {}
    if not sound:
        raise InputError(f"{path} is not a record of evaluations", "move it elsewhere, or delete it")
    return dict(content)


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("of"), dict)


def latest_evaluation(path: Path, kind: Kind) -> dict[str, Any] | None:
    """The entry that was kept last, None if there is none. Raises what `read_evaluations` raises."""
    return next(reversed(read_evaluations(path).get(kind, [])), None)


def keep_evaluation(path: Path, kind: Kind, entry: Mapping[str, Any]) -> None:
    """Add an entry, which has its `of`, in one step. Raises what `read_evaluations` raises, and OSError."""
    with WriteLock(path) as lock:
        lock.wait()
        kept = read_evaluations(path)
        others = [earlier for earlier in kept.get(kind, []) if earlier.get("of") != entry["of"]]
        write_atomically(path, canonical_json({**kept, kind: [*others, dict(entry)]}))


def check_replaceable(path: Path, pictures: Collection[Path], overwrite: bool) -> None:
    """Raise UsageError if one of the pictures of an evaluation would replace a file that no evaluation made."""
    made = {picture for entries in read_evaluations(path).values() for entry in entries for picture in _pictures(entry)}
    for picture in pictures:
        if picture.exists() and not overwrite and str(picture) not in made:
            raise UsageError(f"{picture} exists, and no evaluation made it", "give --overwrite to replace it")


def short(digest: str) -> str:
    """The start of a digest, as a line shows it."""
    return digest[:12]


def command_text(words: str, config: Any) -> str:
    """The command that has this configuration, for a shell: its arguments, and what differs from the defaults."""
    values, options = flat_values(config), list(options_of(type(config)))
    given = {item.name: values[item.name] for item in options if item.is_argument or values[item.name] != item.default}
    return command_line(words, options, given)


def _pictures(entry: Mapping[str, Any]) -> list[str]:
    pictures = entry.get("pictures", {})
    return list(map(str, pictures.values())) if isinstance(pictures, dict) else []
