"""Model, tokenizer and record -> the `ResponseEncoder` that tokenizes texts in the same way as training."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.reward_head import RewardModel, reads_positions, unwrap_model
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, TEXT, ResponseEncoder
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import without_added_tokens


def encoder_of(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, record: CheckpointRecord | None, max_length: int | None
) -> ResponseEncoder:
    """Return the encoder of a model: with the format of its record, or the default format of other models.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        record: Its record, if there is one.
        max_length: Length limit that replaces the recorded one.

    Returns:
        The encoder.
    """
    bare = unwrap_model(model)
    is_text = _scores_text(tokenizer, None if record is None else record.rows)
    rule = FormatRule(max_length=None) if record is None else record.rule
    foreign = record is None and reads_positions(model)
    pad = bare.config.get_text_config().pad_token_id if foreign else None
    return ResponseEncoder(
        tokenizer=tokenizer,
        rule=replace(rule, max_length=longest_sequence(model, max_length or rule.max_length)),
        rows=TEXT if is_text else CONVERSATIONS,
        ignored_end_token=pad,
    )


def tokenizer_to_save(tokenizer: PreTrainedTokenizerBase, rows: str | None) -> PreTrainedTokenizerBase:
    """Return the tokenizer that is saved with a model, so that stock programs get the token ids of training.

    Args:
        tokenizer: The tokenizer of training; it is not changed.
        rows: `rows` of the model's record.

    Returns:
        For models that score conversations, a tokenizer that adds no special tokens to those of the chat template.
    """
    return tokenizer if _scores_text(tokenizer, rows) else without_added_tokens(tokenizer)


def _scores_text(tokenizer: PreTrainedTokenizerBase, rows: str | None) -> bool:
    return tokenizer.chat_template is None or rows == TEXT
