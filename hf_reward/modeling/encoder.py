"""A model, its tokenizer and its record -> the encoder that reads texts as training did."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.position_limits import longest_sequence
from hf_reward.modeling.reward_head import RewardModel, reads_positions, unwrap_model
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, TEXT, ResponseEncoder
from hf_reward.preprocessing.tokenization import FormatRule


def encoder_of(
    model: RewardModel, tokenizer: PreTrainedTokenizerBase, record: CheckpointRecord | None, max_length: int | None
) -> ResponseEncoder:
    """Decide how a model's texts become token ids: as its record says, else by the rule for foreign models.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        record: Its record.
        max_length: Another limit than the record's.

    Returns:
        The encoder.
    """
    bare = unwrap_model(model)
    is_text = tokenizer.chat_template is None or (record is not None and record.rows == TEXT)
    rule = FormatRule(max_length=None) if record is None else record.rule
    foreign = record is None and reads_positions(model)
    pad = bare.config.get_text_config().pad_token_id if foreign else None
    return ResponseEncoder(
        tokenizer=tokenizer,
        rule=replace(rule, max_length=longest_sequence(model, max_length or rule.max_length)),
        rows=TEXT if is_text else CONVERSATIONS,
        ignored_end_token=pad,
    )
