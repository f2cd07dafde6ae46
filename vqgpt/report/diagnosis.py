"""What looks wrong with a run, in plain sentences: what its figures, curves and tokens say together.

    RunFacts  ->  sentences, the gravest first; none where nothing stands out

Findings of the evaluations are taken over; a user should not have to know the metrics. Must not import torch.
"""

from collections.abc import Iterator
from itertools import chain

from vqgpt.report.facts import RunFacts
from vqgpt.tokens.arrays import LOW_RANK

FEW_CODES = 0.9  # share of the codebook in use
OVERFITTED = 1.01  # times the lowest held-out loss
NEAR, FAR = 0.7, 0.4  # of the samples' distance, that of reconstructions: which stage limits the samples
TOKENIZER_LIMITS = "the tokenizer limits the samples"  # as an evaluation of samples says it too
FEWEST_OF_A_CLASS = 10  # samples, on average, for a share to say something
MOST_NAMES = 5
FAILING = 0.5  # of the share of samples that show the class asked for


def findings(facts: RunFacts) -> list[str]:
    """All of them."""
    found = chain(
        facts.goes_together,
        of_codebook(facts),
        of_training(facts),
        of_classes(facts),
        of_the_limiting_stage(facts),
        *(entry.get("findings", []) for entry in facts.evaluations.values()),
    )
    return list(dict.fromkeys(map(str, found)))


def of_codebook(facts: RunFacts) -> Iterator[str]:
    """Codes that say nothing, and codes that nothing vouches for."""
    codebook = facts.codebook
    if codebook is None:
        return
    if codebook.unverified:
        names = ", ".join(codebook.unverified)
        yield f"the token cache was imported and nothing vouches for its {names}; `vqgpt cache preview` shows its rows"
    size = len(codebook.counts)
    if codebook.counts.sum() >= size and codebook.dead > (1 - FEW_CODES) * size:
        yield f"{codebook.dead:,} of {size:,} codes are dead: no training image uses them"
    if 0 < codebook.rank < LOW_RANK and size > codebook.dead + 1:
        yield f"the codes in use lie on a line (rank {codebook.rank:.2f}): the codebook has collapsed"


def of_training(facts: RunFacts) -> Iterator[str]:
    """A GPT that learned its training images by heart."""
    epochs, losses = facts.curve("train", "held_out_bits_per_token")
    if len(losses) < 2:
        return
    best = losses.index(min(losses))
    if losses[-1] > OVERFITTED * losses[best]:
        yield (
            f"the GPT overfits since epoch {epochs[best]:.0f}: {losses[best]:.3f} bits per token of held-out images "
            f"then, {losses[-1]:.3f} in the end; gpt.best.pt is of that epoch"
        )


def of_classes(facts: RunFacts) -> Iterator[str]:
    """Classes that samples do not show when they are asked for."""
    consistency = facts.evaluations.get("samples", {}).get("class_consistency") or {}
    samples, accuracy = consistency.get("samples") or {}, consistency.get("real_held_out_images", {}).get("share", 1.0)
    shares = samples.get("by_class", {})
    if not shares or samples["images"] < FEWEST_OF_A_CLASS * len(shares):
        return
    failing = [f"{name} ({share:.0%})" for name, share in shares.items() if share < FAILING * accuracy]
    if failing:
        classes = "the class" if len(failing) == 1 else "the classes"
        more = f" and {len(failing) - MOST_NAMES} more" if len(failing) > MOST_NAMES else ""
        named = f"{', '.join(failing[:MOST_NAMES])}{more}"
        yield f"samples seldom show {classes} {named}: the share that is classified as what was asked for"


def of_the_limiting_stage(facts: RunFacts) -> Iterator[str]:
    """Whether tokenizer or GPT limits the samples, where both were measured in the same features."""
    samples, tokenizer = (facts.evaluations.get(kind) for kind in ("samples", "tokenizer"))
    if not samples or not tokenizer or any(TOKENIZER_LIMITS in str(said) for said in samples.get("findings", [])):
        return
    same = samples.get("features", {}).get("weights") == tokenizer.get("features", {}).get("weights")
    distance, limit = samples["figures"].get("MIND", {}).get("value"), tokenizer.get("held_out_MIND")
    if not same or distance is None or limit is None or distance <= 0:
        return
    both = f"reconstructions have MIND {limit:.1f}, samples {distance:.1f}"
    if limit > NEAR * distance:
        yield f"{TOKENIZER_LIMITS}: {both}. Train the VQ-GAN for longer, or give it more codes or channels"
    elif limit < FAR * distance:
        yield f"the GPT limits the samples: {both}. Train it for longer, or a wider one"
