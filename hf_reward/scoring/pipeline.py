"""`pipeline("reward-scoring")`: a transformers pipeline for reward models.

Importing this module registers the task. `RewardScorer` is faster for lists, because it computes shared prompts once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils.generic import ModelOutput

from hf_reward.data.score_request import (
    ScoreRequest,
    read_request,
    request_from_messages,
    request_from_text,
    requests_of_row,
)
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.encoder import encoder_of
from hf_reward.modeling.end_tokens import logits_of
from hf_reward.modeling.reward_head import as_reward_model
from hf_reward.preprocessing.template_clock import without_clock
from hf_reward.scoring.loading import require_same_in_batches

TASK = "reward-scoring"


class RewardScoringPipeline(Pipeline):
    """Score a conversation, a dict of `prompt` and `response`, a (prompt, response) pair, or a formatted text.

    Returns `{"reward": float}` for each. Texts are formatted as in `RewardScorer`.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self.model
        name = model.name_or_path
        record = CheckpointRecord.find(name) if name else None
        self.model = as_reward_model(model)
        assert self.tokenizer is not None
        self.tokenizer = without_clock(self.tokenizer)
        require_same_in_batches(self.model, self.tokenizer, record)
        self.encoder = encoder_of(self.model, self.tokenizer, record, None)

    def _sanitize_parameters(self, allow_empty: bool | None = None, **unknown: Any) -> tuple[dict[str, Any], ...]:
        if unknown:
            raise TypeError(f"pipeline({TASK!r}) takes only `allow_empty`, but got {', '.join(unknown)}.")
        return ({} if allow_empty is None else {"allow_empty": allow_empty}), {}, {}

    def preprocess(self, input_: Any, allow_empty: bool = False, **_: Any) -> dict[str, Any]:
        """Tokenise one input.

        Args:
            input_: One input of the pipeline.
            allow_empty: Whether a response may be empty.

        Returns:
            The model's inputs, as a batch of one.

        Raises:
            ValueError: If it cannot be scored.
        """
        encoded = self.encoder.encode([_request(input_)], allow_empty=allow_empty)[0]
        if encoded.problem:
            raise ValueError(f"The input {str(input_)[:80]!r} cannot be scored: {encoded.problem}.")
        inputs = {"input_ids": [encoded.input_ids], "attention_mask": [[1] * len(encoded.input_ids)]}
        if encoded.token_type_ids is not None:
            inputs["token_type_ids"] = [encoded.token_type_ids]
        return {name: torch.tensor(values) for name, values in inputs.items()}

    def _forward(self, input_tensors: dict[str, Any], **_: Any) -> ModelOutput:
        return ModelOutput(reward=logits_of(self.model, input_tensors)[:, 0].float())

    def postprocess(self, model_outputs: ModelOutput, **_: Any) -> dict[str, float]:
        """Convert the output to a dict.

        Args:
            model_outputs: The reward as a tensor of one number.

        Returns:
            A dict with `reward`.
        """
        return {"reward": float(model_outputs["reward"])}


def _request(value: Any) -> ScoreRequest:
    messages = getattr(value, "messages", None)  # transformers wraps conversations in a class of its own
    if messages is not None:
        return request_from_messages(messages)
    if isinstance(value, Mapping):
        requests = requests_of_row(value)
        if len(requests) > 1:
            raise ValueError("A pipeline scores one response at a time. For `responses`, use RewardScorer.rank.")
        return requests[0]
    if isinstance(value, list | tuple) and len(value) == 2:
        return read_request(*value)
    return request_from_text(value)


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=RewardScoringPipeline, pt_model=AutoModelForSequenceClassification, type="text"
)
