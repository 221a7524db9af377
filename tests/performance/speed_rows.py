"""Rows and tokenizers of `speed.py`: synthetic text, synthetic token ids, or the user's pairs.

The lengths of token ids are drawn from the distributions `HH_LIKE`, `LONG_RESPONSES` and `LISTS`, so that training
benchmarks do not depend on a tokenizer and every machine gets the same rows.
"""

import json
import random
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy import stats
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import to_preference_row
from hf_reward.preprocessing.preparation import TOKENIZED_FEATURES, PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule

MEAN_WORDS = {"prompt": 95, "chosen": 30, "rejected": 38}
"""Mean lengths of synthetic text in words, about 125, 40 and 50 tokens: those of Anthropic's HH harmless-base."""

BATCH_SIZE = 8
_FIRST_ID = 3  # the ids below are the special tokens of `small_tokenizer`, the first of them its pad token

Row = dict[str, Any]


# --- text ------------------------------------------------------------------------------------------------------------


def read_rows(path: Path, limit: int) -> list[Row]:
    """Read the first rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(limit), strict=False)]


def synthetic_rows(count: int, seed: int = 0) -> list[Row]:
    """Make text rows with an implicit prompt, with exponential lengths and Zipf-like words."""
    pick = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "ar", "en", "is", "or")]
    words = ["".join(pick.choices(syllables, k=1 + place % 4)) for place in range(8000)]
    weights = [1 / (place + 10) for place in range(len(words))]

    def text(mean: int) -> str:
        return " ".join(pick.choices(words, weights, k=1 + int(pick.expovariate(1 / mean)))) + "."

    rows = []
    for _ in range(count):
        prompt = f"\n\nHuman: {text(MEAN_WORDS['prompt'])}\n\nAssistant: "
        rows.append({side: prompt + text(MEAN_WORDS[side]) for side in ("chosen", "rejected")})
    return rows


def text_and_tokenizer(options: Namespace, limit: int) -> tuple[list[Row], PreTrainedTokenizerBase]:
    """Return at most `limit` rows of the user, or synthetic ones, in the requested layout, and the tokenizer."""
    rows = read_rows(options.data, limit) if options.data else synthetic_rows(limit)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer) if options.tokenizer else small_tokenizer(rows)
    return (as_conversations(rows) if options.layout == "hh" else rows), tokenizer


def as_conversations(rows: list[Row]) -> list[Row]:
    """Convert HH transcripts to message lists; rows that are not transcripts are omitted."""
    conversations = []
    for row in rows:
        try:
            parsed = to_preference_row(row, layout="hh")
        except PreferenceFormatError:
            continue
        chosen, rejected = parsed.responses
        conversations.append({"prompt": parsed.prompt, "chosen": chosen, "rejected": rejected})
    return conversations


def small_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 4,000 tokens on the rows, with a ChatML template."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[misc]
    backend.decoder = decoders.ByteLevel()  # type: ignore[misc]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator((row["chosen"] for row in rows[:1000]), trainer)
    message = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    template = "{% for message in messages %}" + message + "{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=template)


# --- token ids -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """A distribution of token counts."""

    mean: float
    shape: float
    """Sigma of the lognormal or shape of the gamma distribution."""
    family: str = "lognormal"

    def draw(self, count: int, chance: np.random.Generator) -> np.ndarray:
        """Draw a stratified sample of token counts of at least 1, in random order.

        There is one draw from each of `count` equal quantile ranges, so that small samples match the distribution too.
        """
        places = chance.permutation((np.arange(count) + chance.random(count)) / count)
        if self.family == "gamma":
            values = stats.gamma.ppf(places, self.shape, scale=self.mean / self.shape)
        else:
            values = stats.lognorm.ppf(places, self.shape, scale=self.mean * np.exp(-(self.shape**2) / 2))
        return np.maximum(1, values.round()).astype(int)

    def __str__(self) -> str:
        return f"{self.mean:g} {self.family} {self.shape:g}"


@dataclass(frozen=True)
class RowLengths:
    """Length distributions of the shared prefix and of the responses, best first."""

    source: str
    prefix: Lengths
    responses: tuple[Lengths, ...]

    def __str__(self) -> str:
        return f"drawn from {', '.join(map(str, dict.fromkeys((self.prefix, *self.responses))))}: {self.source}"


_HH_PREFIX = Lengths(125, 1.2, "gamma")
HH_LIKE = RowLengths("fitted to HH harmless-base test", _HH_PREFIX, (Lengths(40, 0.88), Lengths(50, 0.93)))
"""Its 2,312 rows with SmolLM2's tokenizer have these means, and 10%, 50% and 90% quantiles of 19, 98, 273 (here 18, 92,
275) for the prefix, 9, 28, 88 (9, 27, 84) for chosen and 10, 36, 108 (10, 32, 107) for rejected. Batches of 8 pairs,
padded as TRL pads them, have 3.9 (here 3.8) times the tokens that exist; without rows beyond 512 tokens 3.5 (3.5)."""

LONG_RESPONSES = RowLengths(
    "chosen to look like UltraFeedback, not measured from it",
    Lengths(60, 0.6),
    (Lengths(260, 0.6), Lengths(220, 0.6)),
)
LISTS = RowLengths("lists of 4, prompts and responses as long as those of HH", _HH_PREFIX, (Lengths(45, 0.9),) * 4)
LONG_LISTS = RowLengths("lists of 16, as long as those of HH", _HH_PREFIX, (Lengths(45, 0.9),) * 16)
UKP_LIKE = RowLengths("fitted to UKPConvArg1 train", Lengths(21, 0.3), (Lengths(61, 0.61),) * 5)
"""Its 26 prompts have 21 tokens (SmolLM2's tokenizer) and 33 responses on average, with 10%, 50% and 90% quantiles of
21, 55 and 113 (here 23, 51, 111). Eight rows that `group_by_prompt` selects compare about 5 of them."""
FINE_GRAINED_LIKE = RowLengths("fitted to FineGrained QA", Lengths(691, 0.35), (Lengths(99, 0.45),) * 4)
"""Its 488 questions with passages have 321, 677 and 959 tokens (here 415, 650, 1,018), and four responses with 49, 96
and 152 (here 50, 89, 160), of which 5.4 of the 6 pairs have a preference."""


@dataclass(frozen=True)
class Group:
    """Token ids of the responses to one prompt, the prompt included, best first."""

    responses: list[list[int]]

    @property
    def prefix_length(self) -> int:
        """Length of the common prefix, shorter than the shortest response."""
        most = min(map(len, self.responses)) - 1
        differ = (place for place in range(most) if len({ids[place] for ids in self.responses}) > 1)
        return next(differ, most)

    @property
    def useful_tokens(self) -> int:
        """Number of tokens, with the shared prefix counted once."""
        return sum(map(len, self.responses)) - (len(self.responses) - 1) * self.prefix_length

    @property
    def attended(self) -> int:
        """Number of (query, key) pairs in causal attention."""
        prefix = self.prefix_length
        own = [len(ids) - prefix for ids in self.responses]
        return prefix * (prefix + 1) // 2 + sum(length * prefix + length * (length + 1) // 2 for length in own)

    @property
    def pairs(self) -> list[tuple[list[int], list[int]]]:
        """All (better, worse) pairs."""
        return list(combinations(self.responses, 2))


def synthetic_groups(
    lengths: RowLengths, count: int, *, max_length: int, vocabulary: int, seed: int = 0
) -> list[Group]:
    """Make groups of random ids without over-length rows.

    Args:
        lengths: Distributions to draw from; rows beyond `max_length` are discarded.
        count: Number of groups.
        max_length: Longest sequence, prefix included.
        vocabulary: Size of the vocabulary.
        seed: Random seed.

    Returns:
        The groups.

    Raises:
        ValueError: If nearly all rows are over length.
    """
    drawn = count
    while drawn <= 20 * count:
        chance = np.random.default_rng(seed)
        parts = [part.draw(drawn, chance) for part in (lengths.prefix, *lengths.responses)]
        sizes = [row for row in zip(*parts, strict=True) if row[0] + max(row[1:]) <= max_length]
        if len(sizes) >= count:
            return [_random_group(row, vocabulary, chance) for row in sizes[:count]]
        drawn += count - len(sizes)  # no more than needed, so that the sample stays stratified
    raise ValueError(f"`max_length={max_length}` is below the length of nearly all rows; raise it.")


def _random_group(sizes: Sequence[int], vocabulary: int, chance: np.random.Generator) -> Group:
    prefix, *responses = (chance.integers(_FIRST_ID, vocabulary, size).tolist() for size in sizes)
    return Group([prefix + response for response in responses])


def groups_of_text(
    rows: list[Row], count: int, *, tokenizer: PreTrainedTokenizerBase, max_length: int, vocabulary: int
) -> list[Group]:
    """Make groups of a user's pairs, in random order, without over-length rows.

    Args:
        rows: Pairs in any layout of hf_reward.
        count: Number of groups.
        tokenizer: The tokenizer.
        max_length: Longest sequence.
        vocabulary: Size of the model's vocabulary.

    Returns:
        The groups.

    Raises:
        ValueError: If there are too few rows, or the tokenizer's ids do not fit the model.
    """
    rule = PreparationRule(format=FormatRule(max_length=max_length, over_length="drop"))
    rows = random.Random(0).sample(rows, len(rows))
    prepared: Any = prepare_preferences(rows[: 4 * count], tokenizer, rule)[0]
    groups = [Group([ids for _, ids in sorted(zip(row["ranks"], row["input_ids"], strict=True))]) for row in prepared]
    if len(groups) < count:
        raise ValueError(f"{count} rows of at most {max_length} tokens are needed, but the data has {len(groups)}.")
    largest = max(token for group in groups for ids in group.responses for token in ids)
    if largest >= vocabulary:
        raise ValueError(f"The tokenizer makes id {largest}, but the model has {vocabulary} embeddings.")
    return groups[:count]


# --- datasets of the two sides ---------------------------------------------------------------------------------------


def rows_of_pairs(lists: list[Group], pairs: int, seed: int = 0) -> list[Group]:
    """Make a row of each of some pairs of each list, which keep the order of the lists, as `group_by_prompt` does."""
    chance = random.Random(seed)
    return [Group(list(pair)) for each in lists for pair in chance.sample(each.pairs, pairs)]


def trl_dataset(warm_up: list[Group], counted: list[Group], batch_size: int = BATCH_SIZE) -> Dataset:
    """Make a dataset with a row for each pair of each group; of the warm-up groups only the first batch of pairs.

    The pairs of a list stay together, which favours TRL: a batch contains only one or two prompts.
    """
    pairs = [pair for group in warm_up for pair in group.pairs][:batch_size]
    pairs += [pair for group in counted for pair in group.pairs]
    return Dataset.from_list([{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs])


def our_dataset(warm_up: list[Group], counted: list[Group]) -> Dataset:
    """Make a dataset with a row for each group, in the format of `prepare_preferences`."""
    rows = [_prepared_row(number, group) for number, group in enumerate([*warm_up, *counted])]
    return Dataset.from_list(rows, features=TOKENIZED_FEATURES)


def _prepared_row(number: int, group: Group) -> Row:
    return {
        **dict.fromkeys(TOKENIZED_FEATURES),
        "input_ids": group.responses,
        "ranks": list(range(len(group.responses))),
        "prefix_length": group.prefix_length,
        "length": sum(map(len, group.responses)),
        "weight": 1.0,
        "group": number,
        "row": number,
        "source": "speed",
        "content_hash": number,
        "cut_tokens": 0,
        "merged": 0,
        "prompts_differed": False,
        "remarks": [],
        "problem": "",
    }


def describe(groups: list[Group], batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Compute the mean lengths of rows and the padding of TRL's batches.

    Args:
        groups: Groups with the same number of responses.
        batch_size: Pairs in a batch of TRL.

    Returns:
        `prefix` and `responses`, mean numbers of tokens; `padded_to_existing`, the tokens of TRL's padded batches
        divided by the tokens of the pairs with each prefix counted once; `attended_per_token`, the mean number of
        tokens in the causal context of a token, itself included.
    """
    prefixes = [group.prefix_length for group in groups]
    own = [[len(ids) - group.prefix_length for ids in group.responses] for group in groups]
    pairs = [pair for group in groups for pair in group.pairs]
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    padded = sum(2 * len(batch) * max(len(ids) for pair in batch for ids in pair) for batch in batches)
    existing = sum(Group(list(pair)).useful_tokens for pair in pairs)
    return {
        "prefix": float(np.mean(prefixes)),
        "responses": [float(mean) for mean in np.mean(own, axis=0)],
        "padded_to_existing": padded / existing,
        "attended_per_token": sum(group.attended for group in groups) / sum(group.useful_tokens for group in groups),
    }
