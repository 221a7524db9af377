"""Score prepared (tokenised) rows, computing each shared prompt once where the model allows it."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset

from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.packing_check import Packing, may_pack
from hf_reward.modeling.reward_head import RewardModel, unwrap_model
from hf_reward.modeling.rewards import compute_rewards
from hf_reward.preprocessing.data_collator import DataCollatorForPreference
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.samplers import longest_first, longest_sequences
from hf_reward.preprocessing.token_budget import consecutive_batches


@torch.inference_mode()
def score_rows(
    model: RewardModel,
    data: Dataset,
    *,
    batch_size: int = 16,
    packing: Packing = "auto",
    max_tokens_per_batch: int | None = None,
) -> np.ndarray:
    """Score every response of prepared rows.

    Batches contain rows of similar length, longest first. Results are in the order of the data.

    Args:
        model: A reward model, optionally wrapped by PEFT, on the device to use. Its training mode is restored.
        data: Rows from `prepare_preferences`.
        batch_size: Maximum number of rows in a batch.
        packing: Compute each shared prompt once, without padding: "auto" where the model allows it, True (an error
            where it does not) or False.
        max_tokens_per_batch: Maximum number of tokens in a batch; a longer row is a batch of its own.

    Returns:
        Rewards, shape `(R, K)`, float32. NaN where a row has fewer responses than the longest list.

    Raises:
        ValueError: If `packing` is True and the model does not allow it.
    """
    bare, training = unwrap_model(model), model.training
    model.eval()
    try:
        collator = _collator(model, data, packing)
        rewards = np.full((len(data), max(map(len, data["ranks"][:]))), np.nan, dtype=np.float32)
        order = longest_first(longest_sequences(data))
        done = 0
        packs = isinstance(collator, DataCollatorForPackedPreference)
        with packed_model(bare) if packs else nullcontext():
            for rows in consecutive_batches(data, order, collator.tokens, batch_size, max_tokens_per_batch):
                found = compute_rewards(model, send_to_device(collator(rows), bare.device)).cpu().numpy()
                for place, row, values in zip(order[done : done + len(rows)], rows, found, strict=True):
                    rewards[place, : len(row["ranks"])] = values[: len(row["ranks"])]
                done += len(rows)
        return rewards
    finally:
        model.train(training)


def _collator(model: RewardModel, data: Dataset, packing: Packing) -> Any:
    padded = DataCollatorForPreference(unwrap_model(model).config.get_text_config().pad_token_id)
    packed = DataCollatorForPackedPreference()

    def trial() -> tuple[dict[str, Any], dict[str, Any]]:
        first = [data[place] for place in range(min(2, len(data)))]
        return padded(first), packed(first)

    return packed if may_pack(model, packing, trial) else padded
