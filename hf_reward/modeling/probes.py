"""The probes in the text format of a model, and their rewards, which verify a reloaded model."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hf_reward.data.preference_row import Message, PreferenceRow
from hf_reward.modeling.end_tokens import logits_of
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.probe_texts import PROBES, turns
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.preprocessing.tokenization import FormatRule, tokenize_rows
from hf_reward.preprocessing.tokenizer import render_chat, uses_text_pairs

logger = logging.getLogger(__name__)

FLOAT32_TOLERANCE = 1e-5
"""Rewards in float32 are equal if they differ by at most this, relative to max(1, |reward|)."""
HALF_TOLERANCE = 2.0**-6
"""The same for bfloat16 and float16: two units in the last place of bfloat16."""
COARSE_TOLERANCE = 2.0**-4
"""The same for rounded weights: quantised, or loaded in another precision."""
OTHER_DEVICE_TOLERANCE = 1e-4
"""The same in float32 between two device types, whose kernels sum in different orders."""
LONGEST = "longest"
"""Name of the probe with the maximum number of tokens in training."""
LONGEST_PROBE = 1024
"""Maximum length of this probe in tokens, because every save scores it."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A probe in the format of a tokenizer."""

    name: str
    messages: list[Message] | None
    """The conversation, if the tokenizer has a chat template."""
    text: str | None
    """Otherwise the text (the prompt of a text pair)."""
    text_pair: str | None
    """The response, if the input is a text pair."""
    input_ids: list[int]
    token_type_ids: list[int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the ids on one line for readability."""
        given = {"messages": self.messages, "text": self.text, "text_pair": self.text_pair}
        return {
            "name": self.name,
            **{key: value for key, value in given.items() if value is not None},
            "input_ids": " ".join(map(str, self.input_ids)),
        }


def format_probes(tokenizer: PreTrainedTokenizerBase, *, separator: str = "", limit: int | None = None) -> list[Probe]:
    """Format the probes in the same way as training rows.

    If the template refuses a system turn, the turn is prepended to the first user turn. Texts that are too long for the
    model are shortened. Texts that the template cannot render are left out.

    Args:
        tokenizer: Tokenizer of the model.
        separator: Text between prompt and response, without a chat template.
        limit: Length limit of training, in tokens. Up to `LONGEST_PROBE`, there is a probe of exactly this length.

    Returns:
        The probes.
    """
    rule = FormatRule(max_length=None, separator=separator)
    found = []
    for name, messages in PROBES.items():
        probe = _format(name, messages, tokenizer, rule)
        while probe is not None and limit is not None and len(probe.input_ids) > limit:
            messages = _halved(messages)
            probe = _format(name, messages, tokenizer, rule) if messages else None
        if probe is not None:
            found.append(probe)
    if limit is not None and limit <= LONGEST_PROBE:
        longest = longest_probe(tokenizer, limit, separator=separator)
        found += [] if longest is None else [longest]
    return found


def longest_probe(tokenizer: PreTrainedTokenizerBase, limit: int, *, separator: str = "") -> Probe | None:
    """Return a probe at (or just below) the length limit of training, to detect copies that truncate texts earlier.

    Args:
        tokenizer: Tokenizer of the model.
        limit: Length limit of training, in tokens.
        separator: Text between prompt and response, without a chat template.

    Returns:
        The probe, None if not even one word fits.
    """
    rule = FormatRule(max_length=None, separator=separator)
    words = "The river rose by a few centimetres and the ferry made its crossings as usual. "
    text = words * (limit // 8)  # exceeds the limit: each of these words has one or two tokens

    def of_length(characters: int) -> Probe | None:
        return _format(LONGEST, turns(text[:characters], "Yes."), tokenizer, rule)

    fitting, too_long = 0, len(text) + 1
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        probe = of_length(middle)
        if probe is None or len(probe.input_ids) > limit:
            too_long = middle
        else:
            fitting = middle
    return of_length(fitting) if fitting else None


def read_probes(conversations: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[Probe]:
    """Format the probes of a record, which may differ from `PROBES` of this version.

    Args:
        conversations: `conversations` of a `probe_record`.
        tokenizer: Tokenizer of the model.

    Returns:
        The probes with their current token ids.

    Raises:
        ValueError: If the chat template cannot render one of them.
    """
    found = []
    for each in conversations:
        messages, text, pair = each.get("messages"), each.get("text"), each.get("text_pair")
        texts: list[Any] = [[render_chat(tokenizer, messages) if messages else text]] + (
            [] if pair is None else [[pair]]
        )
        batch = tokenizer(*texts, add_special_tokens=not messages, return_attention_mask=False, verbose=False)
        types = batch["token_type_ids"][0] if pair is not None and "token_type_ids" in batch else None
        ids = list(batch["input_ids"][0])
        found.append(
            Probe(name=each["name"], messages=messages, text=text, text_pair=pair, input_ids=ids, token_type_ids=types)
        )
    return found


def _format(name: str, messages: list[Message], tokenizer: PreTrainedTokenizerBase, rule: FormatRule) -> Probe | None:
    for form in (messages, _without_system(messages)):
        prompt, response = form[:-1], form[-1]["content"]
        text = "\n\n".join(turn["content"] for turn in prompt)
        is_chat = tokenizer.chat_template is not None
        # A preference row requires two responses; the second one is not used.
        answers = [response, f"{response} Other."]
        responses = [[{"role": "assistant", "content": each}] for each in answers] if is_chat else answers
        row = PreferenceRow(prompt=prompt if is_chat else text, responses=responses, ranks=[0, 1])  # type: ignore[arg-type]
        try:
            tokens = tokenize_rows([row], tokenizer, rule)[0]
        except ValueError:
            continue
        if not tokens.input_ids:
            continue
        pair = not is_chat and uses_text_pairs(tokenizer)
        return Probe(
            name=name,
            messages=form if is_chat else None,
            text=None if is_chat else (text if pair else _with_eos(text + rule.separator + response, tokenizer)),
            text_pair=response if pair else None,
            input_ids=list(tokens.input_ids[0]),
            token_type_ids=None if tokens.token_type_ids is None else list(tokens.token_type_ids[0]),
        )
    logger.info("The chat template cannot render the probe %r, which is left out.", name)
    return None


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Append EOS to the text, unless the tokenizer does."""
    appends = tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    return text if appends or not tokenizer.eos_token else text + str(tokenizer.eos_token)


def _without_system(messages: list[Message]) -> list[Message]:
    if messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return [first, *messages[2:]]


def _halved(messages: list[Message]) -> list[Message]:
    """Return the conversation with its longest turn cut in half; no messages if that would empty a turn."""
    longest = max(range(len(messages)), key=lambda place: len(messages[place]["content"]))
    content = messages[longest]["content"]
    if len(content) < 2:
        return []
    cut = {**messages[longest], "content": content[: len(content) // 2]}
    return [*messages[:longest], cut, *messages[longest + 1 :]]


def probe_record(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rule: FormatRule | None = None,
    half: torch.dtype | None = None,
    float32: bool = True,
    probes: Sequence[Probe] | None = None,
    known: Sequence[float] | None = None,
    images: Any = None,
) -> dict[str, Any]:
    """Score the probes for `CheckpointRecord.probes`.

    Args:
        model: A reward model, with or without wrappers; its mode is restored. For a sharded model, all processes must
            call this function.
        tokenizer: Its tokenizer.
        rule: Text format of training; the position limit of the model also applies.
        half: Also score under autocast in this precision.
        float32: Whether rewards without autocast are float32; False for sharded models that cast internally.
        probes: Formatted probes, if available.
        known: Their rewards without autocast, if available.
        images: `ImageProcessing` of a vision-language model, to score pictures too.

    Returns:
        `conversations` (messages or text, and token ids), `rewards` by compute dtype, `left_padding` (whether rewards
        are the same in left-padded batches; None without float32 rewards), `device`, `weights_cast` if weights were
        rounded before use, and `images`, the result of `image_probe_record`.
    """
    bare: Any = classifier_of(model)
    rule = rule or FormatRule(max_length=None)
    limit = longest_sequence(bare, rule.max_length)
    if probes is None:
        probes = format_probes(tokenizer, separator=rule.separator, limit=limit)
    own = weight_dtype(bare) if float32 else (half or torch.float32)
    wanted: dict[torch.dtype, torch.dtype | None] = {own: None}
    if half is not None:
        wanted.setdefault(half, half)
    rewards = {
        str(dtype).removeprefix("torch."): list(known)
        if known is not None and cast is None
        else probe_rewards(model, probes, autocast=cast)
        for dtype, cast in wanted.items()
    }
    return {
        "conversations": [probe.to_dict() for probe in probes],
        "rewards": {name: [finite(value) for value in values] for name, values in rewards.items()},
        "left_padding": _supports_left_padding(model, probes, rewards["float32"]) if "float32" in rewards else None,
        "device": next(model.parameters()).device.type,
        **({} if float32 else {"weights_cast": True}),
        **({} if images is None else {"images": _image_probes(model, images, limit, wanted)}),
    }


def _image_probes(
    model: nn.Module, images: Any, limit: int | None, wanted: Mapping[torch.dtype, torch.dtype | None]
) -> dict[str, Any]:
    from hf_reward.modeling.image_probes import image_probe_record  # noqa: PLC0415 - not for text models

    precisions = {str(dtype).removeprefix("torch."): cast for dtype, cast in wanted.items()}
    return image_probe_record(model, images, max_length=limit, precisions=precisions)


@torch.no_grad()
def probe_rewards(
    model: nn.Module, probes: Sequence[Probe], *, autocast: torch.dtype | None = None, left: bool | None = None
) -> list[float]:
    """Score probes, each alone or all in one padded batch.

    Args:
        model: A reward model.
        probes: The probes.
        autocast: Compute in this precision under autocast.
        left: None to score each probe alone, otherwise the padding side of one batch: left (True) or right (False).

    Returns:
        One reward per probe.
    """
    device = next(model.parameters()).device
    pad = classifier_of(model).config.get_text_config().pad_token_id or 0
    batches = [[probe] for probe in probes]
    if left is not None:  # the longest probe is scored separately, to avoid excessive padding
        parts = ([probe for probe in probes if (probe.name == LONGEST) == longest] for longest in (False, True))
        batches = [part for part in parts if part]  # the longest probe is the last one
    context = torch.autocast(device.type, dtype=autocast) if autocast is not None else nullcontext()
    with evaluating(model), context, without_tf32():
        found = [logits_of(model, _padded(batch, pad, bool(left), device))[:, 0].float() for batch in batches]
    return torch.cat(found).tolist()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Disable TF32, which keeps 10 of the 23 bits of float32, so that recorded rewards are true float32."""
    kinds: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]  # modules may have different modes
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def classifier_of(model: nn.Module) -> Any:
    """Return the classifier without wrappers. DeepSpeed's wrapper has another `config`."""
    return unwrap_model(extract_model_from_parallel(model, keep_torch_compile=False))


def _padded(probes: Sequence[Probe], pad: int, left: bool, device: torch.device) -> dict[str, Tensor]:
    length = max(len(probe.input_ids) for probe in probes)

    def fill(values: list[int], filler: int) -> list[int]:
        rest = [filler] * (length - len(values))
        return [*rest, *values] if left else [*values, *rest]

    batch = {
        "input_ids": [fill(probe.input_ids, pad) for probe in probes],
        "attention_mask": [fill([1] * len(probe.input_ids), 0) for probe in probes],
    }
    if probes[0].token_type_ids is not None:
        batch["token_type_ids"] = [fill(probe.token_type_ids or [], 0) for probe in probes]
    return {name: torch.tensor(values, device=device) for name, values in batch.items()}


def _supports_left_padding(model: nn.Module, probes: Sequence[Probe], alone: Sequence[float]) -> bool:
    """Return whether a left-padded batch gives the same rewards as single texts (it does with relative positions)."""
    padded = [probe for probe in probes if probe.name != LONGEST]  # the others would be mostly padding
    known = [reward for probe, reward in zip(probes, alone, strict=True) if probe.name != LONGEST]
    return not padded or not differing(known, probe_rewards(model, padded, left=True), FLOAT32_TOLERANCE)


def weight_dtype(model: nn.Module) -> torch.dtype:
    """Return the precision of the backbone. The head (always float32) and packed 4-bit weights are ignored."""
    floating = [p.dtype for p in model.parameters() if p.is_floating_point() and p.dtype.itemsize >= 2]
    return min(floating, key=lambda dtype: dtype.itemsize)


def tolerance(dtype: str, *, same_device: bool = True) -> float:
    """Return the allowed difference relative to max(1, |reward|), by name of the compute dtype."""
    if dtype == "float32":
        return FLOAT32_TOLERANCE if same_device else OTHER_DEVICE_TOLERANCE
    return HALF_TOLERANCE


def relative_differences(
    expected: Sequence[float | None], found: Sequence[float | None], *, floor: float = 1.0
) -> list[float]:
    """Return |found - expected| / max(floor, |expected|), infinite if a value is not finite (NaN never equals NaN)."""
    return [
        math.inf if one is None or other is None else abs(other - one) / max(floor, abs(one))
        for one, other in zip(map(finite, expected), map(finite, found), strict=True)
    ]


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is not finite, because JSON has neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else value


def differing(expected: Sequence[float | None], found: Sequence[float | None], allowed: float) -> list[int]:
    """Return the indices whose difference exceeds `allowed` or is not finite."""
    differences = relative_differences(expected, found)
    return [place for place, value in enumerate(differences) if not math.isfinite(value) or value > allowed]
