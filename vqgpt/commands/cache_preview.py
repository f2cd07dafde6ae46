"""`vqgpt cache preview`: random rows of a token cache, decoded next to the images that they were encoded from.

The images are encoded again: codes that differ from those in the cache are wrong, however well a GPT learns them.
Nothing is downloaded for it; where the images are not at hand, the decoded rows are shown alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgpt.api.options import EncoderOptions, SourceOptions
from vqgpt.data.options import Preprocessing
from vqgpt.data.table import DATASETS, find_dataset
from vqgpt.errors import InputError, MissingDataError
from vqgpt.options.codec import one_line, to_json
from vqgpt.options.definition import (
    CACHE,
    DATA,
    SEED,
    SPLIT_OF_ROWS,
    Command,
    Flags,
    check,
    check_positive,
    check_seed,
    option,
    out_option,
)
from vqgpt.options.paths import CachePath, beside
from vqgpt.progress import Notice, Report
from vqgpt.storage.files import write_atomically
from vqgpt.storage.write_lock import check_place, sole_writer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqgpt.tokens import Description, SplitTokens, TokenCache
    from vqgpt.vqgan.model import VQGAN

LEAST_AGREEMENT = 0.9  # other machines and bf16 change a few codes in a hundred; wrong codes differ nearly everywhere
MOST_DB_LOST = 1.0  # by imported codes: the image that they show was resized by another program
LEAST_BEYOND_CHANCE = 0.05  # of them: where the VQ-GAN has learned little, decibels tell nothing


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """`vqgpt cache preview`."""

    cache: CachePath = CACHE
    split: str | None = SPLIT_OF_ROWS
    num_images: int = option(16, "Rows to decode, chosen at random.", group=DATA)
    out: Path | None = out_option("The .png file to write", "the cache's name with -preview.png")
    seed: int = SEED
    sources: SourceOptions

    def __post_init__(self) -> None:
        check_positive(self, "num_images")
        check_seed(self.seed)
        check(self.out is None or self.out.suffix == ".png", "out", self.out, "a file name that ends in .png")

    @property
    def result(self) -> Path:
        """The picture to write."""
        return self.out or beside(self.cache, f"{self.cache.stem}-preview.png")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How n rows compare with their images: PSNR in dB (n,), agreement of codes with those encoded now (n,) 0 to 1.

    `best_psnr` (n,) is what the codes that were encoded now give, `chance` the agreement of codes that are as frequent
    as these and have nothing to do with each other.
    """

    psnr: "NDArray[np.float64]"
    best_psnr: "NDArray[np.float64]"
    agreement: "NDArray[np.float64]"
    chance: float

    __repr__ = one_line

    @property
    def db_lost(self) -> float:
        """Against the codes that were encoded now."""
        return float(self.best_psnr.mean() - self.psnr.mean())

    @property
    def beyond_chance(self) -> float:
        """Cohen's kappa (1960, eq. 1) of all codes: 1 where they are equal, 0 where they agree as if by chance."""
        agreement = float(self.agreement.mean())
        return 1.0 if agreement == 1 else (agreement - self.chance) / (1 - self.chance)

    def shows_wrong_codes(self, imported: bool) -> bool:
        """Whether the codes are not those of the images; imported ones may be of what another program resized."""
        if self.agreement.mean() >= LEAST_AGREEMENT:
            return False
        return not imported or self.db_lost > MOST_DB_LOST or self.beyond_chance < LEAST_BEYOND_CHANCE

    @property
    def figures(self) -> dict[str, Any]:
        """What the command shows."""
        return {
            "psnr_db": float(self.psnr.mean()),
            "psnr_db_of_codes_encoded_now": float(self.best_psnr.mean()),
            "equal_codes": float(self.agreement.mean()),
            "equal_rows": int((self.agreement == 1).sum()),
        }


def run(config: PreviewConfig, flags: Flags, report: Report) -> Mapping[str, Any]:
    """Check codes by eye and by figures: random rows, decoded next to their images."""
    from vqgpt.api.render import SEED_OF_COLORS, captions, columns, load_its_vqgan
    from vqgpt.pictures.sheet import comparison_sheet, contact_sheet, png_bytes, to_displayable
    from vqgpt.tokens import TokenCache
    from vqgpt.vqgan.coding import decode_in_passes

    cache = TokenCache(config.cache)
    description = cache.description
    split = config.split or cache.split_names[0]
    if not cache.rows(split):
        raise InputError(f"{cache.path}: split {split!r} is empty", "preview another split, with --split")
    check_place(config.result, config, flags.overwrite)
    sources = config.sources
    encoder = EncoderOptions(checkpoint_vae=sources.checkpoint_vae, remap=sources.remap, device=sources.device)
    model = load_its_vqgan(description, encoder)
    tokens = random_rows(cache, split, config.num_images, config.seed)
    plan: dict[str, Any] = {"picture": config.result, "split": split, "rows": len(tokens.codes)}
    if flags.dry_run:
        return plan
    with sole_writer(config.result, config, flags.overwrite):
        decoded = decode_in_passes(model, tokens.codes[:, 0], description.precision, report)
        images = source_images(config, description, split, tokens, report)
        shown = to_displayable(decoded, SEED_OF_COLORS)
        comparison = None
        if images is None:
            sheet = contact_sheet(shown, captions(tokens.labels, description), columns(description))
            figures: dict[str, Any] = {"compared": False}
        else:
            comparison = compare(model, images, tokens.codes, decoded, description.precision, report)
            pairs = zip(comparison.psnr, comparison.agreement, strict=True)
            texts = [f"{db:.1f} dB {share:.0%}" for db, share in pairs]
            sheet = comparison_sheet(to_displayable(images[:, 0], SEED_OF_COLORS), shown, texts)
            figures = {"compared": True, **comparison.figures}
        about = {**to_json(config), "cache_digest": cache.digest, "split": split}
        write_atomically(config.result, png_bytes(sheet, {**about, "source_index": tokens.source_index.tolist()}))
    if comparison and comparison.shows_wrong_codes(imported=bool(description.unverified)):
        raise InputError(
            f"{cache.path}: only {figures['equal_codes']:.1%} of the codes of {plan['rows']} rows match those that the "
            f"VQ-GAN gives for their images ({figures['psnr_db']:.1f} dB instead of "
            f"{figures['psnr_db_of_codes_encoded_now']:.1f}); {config.result} shows them",
            "do not train on this cache: make it again with `vqgpt tokenize`",
        )
    if comparison and figures["equal_codes"] < LEAST_AGREEMENT:
        report(
            Notice(
                text=f"{figures['equal_codes']:.1%} of the codes match those that the VQ-GAN gives here, at a loss of "
                f"{comparison.db_lost:.2f} dB; they were imported, and another program that resizes otherwise gives "
                "other codes"
            )
        )
    return {**plan, **figures}


def random_rows(cache: "TokenCache", split: str, count: int, seed: int) -> "SplitTokens":
    """`count` rows of a split, or all if it has no more, chosen by the seed alone; in their order."""
    import numpy as np

    from vqgpt.tokens import SplitTokens

    total, shard_rows = cache.rows(split), cache.description.shard_rows
    rows = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    parts = []
    for shard in np.unique(rows // shard_rows).tolist():  # one at a time in memory
        tokens = cache.read_split(split, [shard])
        inside = rows[rows // shard_rows == shard] - shard * shard_rows
        parts.append((tokens.codes[inside], tokens.labels[inside], tokens.source_index[inside]))
    codes, labels, source_index = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return SplitTokens(codes=codes, labels=labels, source_index=source_index)


def source_images(
    config: PreviewConfig, description: "Description", split: str, tokens: "SplitTokens", report: Report
) -> "NDArray[np.uint8] | None":
    """The images of rows, (n, V, C, H, W) uint8, as the encoder sees them; None, with a notice, if they are not here.

    Raises InputError if those at hand are not the ones that the cache was encoded from.
    """
    import numpy as np

    from vqgpt.api.sources import tokenize_config
    from vqgpt.data.images import prepared_batches, row_batches
    from vqgpt.data.reading import images_at_hand, read_dataset
    from vqgpt.vqgan.coding import images_per_pass

    why_alone = ""
    if description.origin == "sampled":
        why_alone = "the tokens were sampled from a model, so there are no images to compare with"
    elif tokens.source_index.min() < 0:
        why_alone = "the imported file does not say which image is which: the decoded rows are shown alone"
    elif description.dataset not in DATASETS:
        unknown = f"{description.dataset!r} is a dataset that this vqgpt does not know"
        why_alone = f"{unknown}: the decoded rows are shown alone"
    if why_alone:
        report(Notice(text=why_alone))
        return None
    made_by = tokenize_config(config.cache, description, config.sources)
    dataset, options, size = find_dataset(description.dataset), made_by.images, description.image_size[0]
    found = None
    if images_at_hand(dataset, options):
        try:
            found = read_dataset(dataset, options, size, report)
        except MissingDataError as error:
            report(Notice(text=error.message))
    if found is None:
        where = options.root if dataset.reader != "folder" or options.data_root else "a folder that is not given"
        report(
            Notice(
                text=f"the images of {dataset.name} are not in {where}: the decoded rows are shown alone, "
                "and nothing is compared; set --data-root to their folder"
            )
        )
        return None
    is_known = not description.unverified
    if split not in found.splits or (is_known and found.sha256 != description.source_sha256):
        raise InputError(
            f"the images of {dataset.name} found here ({found.sha256[:12]}) are not those that {config.cache} was "
            f"encoded from ({description.source_sha256[:12]})",
            f"give those with --data-root; `vqgpt render {config.cache}` shows the decoded rows alone",
        )
    of_rows = replace(found.splits[split], labels=tokens.labels, source_index=tokens.source_index)
    if not 0 <= tokens.source_index.min() <= tokens.source_index.max() < len(of_rows.source):
        raise InputError(f"{config.cache}: source_index names images that do not exist", "make the cache again")
    preprocessing = Preprocessing(
        size=size, channels=description.image_channels, options=options.preprocessing, views=description.views
    )
    batches = row_batches(0, len(of_rows), images_per_pass(size, size))
    return np.concatenate(list(prepared_batches(of_rows, batches, preprocessing, options.workers)))


def compare(
    model: "VQGAN",
    images: "NDArray[np.uint8]",
    codes: "NDArray[np.unsignedinteger]",
    decoded: "NDArray[np.uint8]",
    precision: str,
    report: Report,
) -> Comparison:
    """Images (n, V, C, H, W), their codes (n, V, h, w) in the cache, and what view 0 decodes to, (n, C, H, W)."""
    import numpy as np
    import torch

    from vqgpt.vqgan.coding import decode_in_passes, encode_images, images_per_pass, psnr

    at_once = max(1, images_per_pass(*images.shape[3:]) // images.shape[1])
    batches = (images[start : start + at_once] for start in range(0, len(images), at_once))
    now = np.concatenate([encode_images(model, batch, precision) for batch in batches])
    best = decode_in_passes(model, now[:, 0], precision, report)
    originals = torch.from_numpy(np.ascontiguousarray(images[:, 0]))
    measured, reachable = (psnr(originals, torch.from_numpy(result)).numpy() for result in (decoded, best))
    agreement = (now == codes).reshape(len(codes), -1).mean(axis=1)
    shares = [np.bincount(each.ravel(), minlength=model.config.codebook_size) / each.size for each in (now, codes)]
    return Comparison(psnr=measured, best_psnr=reachable, agreement=agreement, chance=float(shares[0] @ shares[1]))


COMMAND = Command(words="cache preview", config=PreviewConfig, run=run)
