"""Restaurant reviews, written by a small grammar, so that nothing is downloaded; good or bad, with negations."""

import random

import torch

LENGTH = 12
_THINGS = ["food", "soup", "bread", "service", "waiter", "wine", "coffee", "dessert", "music", "place"]
_GOOD = ["good", "great", "tasty", "friendly", "fresh", "lovely", "perfect", "warm"]
_BAD = ["bad", "awful", "stale", "rude", "cold", "dull", "terrible", "slow"]
_DEGREES = ["", "very", "really", "quite"]
_WORDS = ["<pad>", "<mask>", "the", "was", "not", "and", "but", *_DEGREES[1:], *_THINGS, *_GOOD, *_BAD]
VOCABULARY = {word: number for number, word in enumerate(_WORDS)}
MASK = VOCABULARY["<mask>"]


def _clause(draw, good):
    negated = draw.random() < 0.4
    word = draw.choice(_GOOD if good != negated else _BAD)
    return ["the", draw.choice(_THINGS), "was", *(["not"] if negated else []), draw.choice(_DEGREES), word]


def reviews(count, seed):
    """Tokens, shape ``(count, LENGTH)``, and classes: 1 for a good review.

    The last clause decides: after "but" comes what the writer means.
    """
    draw = random.Random(seed)
    tokens, labels = torch.zeros(count, LENGTH, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    for row in range(count):
        good = draw.random() < 0.5
        words = _clause(draw, good)
        if draw.random() < 0.5:
            contrast = draw.random() < 0.5
            words = [*_clause(draw, good != contrast), "but" if contrast else "and", *words]
        known = [VOCABULARY[word] for word in words if word][-LENGTH:]
        tokens[row, : len(known)] = torch.tensor(known)
        labels[row] = int(good)
    return tokens, labels
