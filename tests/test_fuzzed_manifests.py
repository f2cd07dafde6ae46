"""Changed manifests of token caches, most with digests that hold: what reads one uses it, or refuses it with a line.

FUZZ_SECONDS=600 pytest tests/test_fuzzed_manifests.py changes those of each kind of cache for ten minutes, and for as
long runs commands on them.
"""

import contextlib
import json
import random

import pytest

from tests.conftest import run_here
from tests.fuzzing import ODD_VALUES, REFUSED, SECONDS, SEED, changed_bytes, changed_values, fuzz
from tests.test_hostile_caches import message_of
from tests.test_lying_manifests import write_each_kind
from vqgpt.api.options import SourceOptions
from vqgpt.api.sources import recorded_prompts, sample_config, tokenize_config
from vqgpt.commands import cache_info
from vqgpt.options.definition import Flags, OutputFlags
from vqgpt.progress import silent
from vqgpt.storage.files import canonical_json, sha256
from vqgpt.tokens import TokenCache, find_faults, read_manifest
from vqgpt.tokens.store import to_document

LARGEST = 10**6  # bytes of a changed manifest, so that many can be tried


def signed_text(body: dict, **layout) -> str:
    """A root document as a hostile author would write it: with a digest that holds, where there can be one."""
    with contextlib.suppress(ValueError):  # NaN, and text that is no Unicode, have none
        body = {**body, "digest": sha256(canonical_json(body))}
    usual = {"sort_keys": True, "indent": 1, "ensure_ascii": False}
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"vqgpt": body}}
    return json.dumps(document, **{**usual, **layout}) + "\n"


def body_of(data: bytes) -> dict:
    body = json.loads(data)["attributes"]["vqgpt"]
    return {key: value for key, value in body.items() if key != "digest"}


def changed_manifest(data: bytes, chance: random.Random) -> bytes:
    """Another value in one place of it or several, signed again."""
    body = body_of(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        body = changed_values(body, chance)
    text = signed_text(body).encode("utf-8", "surrogatepass")
    return text if len(text) < LARGEST else data


def changed_description(data: bytes, chance: random.Random) -> bytes:
    """The same, but always in the description, on which everything else rests."""
    body = body_of(data)
    for _ in range(chance.choice([1, 1, 2])):
        body["description"] = changed_values(body["description"], chance)
    return signed_text(body).encode("utf-8", "surrogatepass")


def changed_text(data: bytes, chance: random.Random) -> bytes:
    """JSON that reads as the same values, written otherwise, or as JSON cannot be; the digest is that of the values."""
    body = body_of(data)
    layout = chance.choice([{"indent": None}, {"ensure_ascii": True}, {"sort_keys": False}, {"indent": 2}, {}, {}, {}])
    lines = signed_text(body, **layout).splitlines(keepends=True)
    number = chance.randrange(len(lines))
    key, colon, _ = lines[number].partition('": ')
    value = chance.choice([json.dumps(chance.choice(ODD_VALUES)), "NaN", "-Infinity", "1e999", "01", "1" * 9_999])
    if colon:
        lines[number : number + chance.choice([0, 1])] = [f"{key}{colon}{value},\n"]
    return "".join(lines).encode(chance.choice(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"]))


def again(path):
    """The configuration that `cache verify --repair` and `cache preview` make of what is recorded."""
    what, sources = read_manifest(path).description, SourceOptions()
    if what.origin == "encoded":
        return tokenize_config(path, what, sources)
    return sample_config(path, what, sources, None), recorded_prompts(what)


def read_all(path):
    cache = TokenCache(path)
    return repr(cache), cache.codebook(), [cache.read_split(split) for split in cache.split_names]


def info(path):
    return cache_info.run(cache_info.CacheConfig(cache=path), Flags(output=OutputFlags()), silent)


USES = (find_faults, info, again, read_all)  # each works with a manifest that was read, or refuses with a line
USED = 0.2  # share of those manifests, so that many can be tried


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return write_each_kind(tmp_path_factory.mktemp("caches"))


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", ["encoded-class", "encoded-bits", "sampled-class", "sampled-bits"])
def test_a_changed_manifest_is_used_or_refused(caches, kind):
    path = caches / f"{kind}.zarr"
    root = path / "zarr.json"
    original, chance = root.read_bytes(), random.Random(f"{SEED} uses of {kind}")

    def outcome(change):
        manifest = read_manifest(path)
        assert to_document(manifest) == root.read_bytes()
        if chance.random() > USED:
            return "read"
        refused = [message for act in USES if (message := message_of(lambda act=act: act(path)))]
        assert all(str(path) in message for message in refused), refused
        return "refused later" if refused else "used"

    changes = [changed_manifest, changed_manifest, changed_description, changed_description, changed_text]
    try:
        outcomes = fuzz(kind, root, original, [*changes, changed_bytes], outcome, named=path)
        assert outcomes[REFUSED] > 0
    finally:
        root.write_bytes(original)


COMMANDS = [
    ["cache", "info", "CACHE"],
    ["cache", "list"],
    ["cache", "verify", "CACHE"],
    ["cache", "verify", "CACHE", "--repair"],
    ["cache", "preview", "CACHE", "--out", "p.png", "--overwrite"],
    ["cache", "export", "CACHE", "--format", "npz", "--out", "e.npz", "--overwrite"],
    ["render", "CACHE", "--out", "r.png", "--overwrite"],
    ["score", "CACHE", "--out", "s.npz", "--overwrite"],
    ["sample", "--cache", "CACHE", "--prompt", "cache:train/0", "--num-samples", "1", "--out", "n.zarr", "--overwrite"],
    ["train", "--cache", "CACHE", "--out", "t.pt", "--dry-run", "-q"],
]


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("origin", ["encoded", "sampled"])
def test_no_changed_manifest_ends_a_command_with_an_unexpected_error(pipeline, origin):
    (path,) = (path for path in pipeline.rglob("*.zarr") if read_manifest(path).description.origin == origin)
    chance = random.Random(f"{SEED} commands on {origin}")

    def outcome(change):
        for command in chance.sample(COMMANDS, 2):
            words = [str(path) if word == "CACHE" else word for word in command]
            ended = run_here(*words)
            assert ended.code in (0, 3, 4), (words, ended.err)
        return "used"

    changes = [changed_manifest, changed_description]
    fuzz(f"commands {origin}", path / "zarr.json", (path / "zarr.json").read_bytes(), changes, outcome, fewest=5)
