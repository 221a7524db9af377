"""Layouts that only differ in names: a backbone with a prefix, and a head with one linear layer."""

from collections.abc import Callable
from dataclasses import dataclass

from hf_reward.publishing.importers.foreign_checkpoint import (
    BEFORE_FIRST_PAD,
    LAST_TOKEN,
    Checkpoint,
    ForeignWeights,
)


@dataclass(frozen=True, kw_only=True)
class LinearHeadLayout:
    """Importer for one of these layouts."""

    head: str
    """Name of the head."""
    backbone: str | None = None
    """Prefix of the backbone's keys; None for the prefix of the stock class."""
    other: tuple[str, ...]
    """Prefixes of the other keys of this layout."""
    condition: Callable[[Checkpoint], bool] = lambda checkpoint: True
    """Further condition, to distinguish layouts with the same name of the head."""
    reads: str = LAST_TOKEN
    note: str

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether a folder has this layout."""
        return f"{self.head}.weight" in checkpoint.weights and self.condition(checkpoint)

    def convert(self, checkpoint: Checkpoint) -> ForeignWeights:
        """Return the weights of the folder under stock names."""
        head = checkpoint.linear_head(self.head)
        prefix = self.backbone or f"{checkpoint.target.base_model_prefix}."
        backbone = checkpoint.backbone(prefix, other=self.other)
        return ForeignWeights(backbone=backbone, head=head, reads=self.reads, notes=[self.note])


def _has_keys_under(prefix: str) -> Callable[[Checkpoint], bool]:
    return lambda checkpoint: any(key.startswith(prefix) for key in checkpoint.weights)


def _is_token_classifier_of_one_label(checkpoint: Checkpoint) -> bool:
    is_named = any(arch.endswith("ForTokenClassification") for arch in checkpoint.architectures)
    return is_named and checkpoint.weights.shape("score.weight")[0] == 1


DEEPSPEED_CHAT = LinearHeadLayout(
    head="v_head",
    backbone="rwtransformer.",
    other=("v_head.",),
    condition=_has_keys_under("rwtransformer."),
    reads=BEFORE_FIRST_PAD,
    note="DeepSpeed-Chat formats texts as ' Human: {prompt} Assistant: {response}<|endoftext|>'. It computes the "
    "reward before the first pad token, which is EOS except for Llama tokenizers. If '<|endoftext|>' is EOS, the "
    "reward is that of the text without it.",
)
"""DeepSpeed-Chat's `RewardModel`: the backbone under `rwtransformer.` and a `v_head` without bias."""
STARLING = LinearHeadLayout(
    head="v_head",
    backbone="transformer.",
    # The class also contains the complete language model as `model`, which repeats the tensors of the backbone.
    other=("v_head.", "model."),
    condition=_has_keys_under("transformer."),
    reads=BEFORE_FIRST_PAD,
    note="Starling-RM-7B uses the text format of Llama-2-Chat, Starling-RM-34B the format of Yi-34B-Chat. The reward "
    "is computed before the first pad token, which is the unknown token for the 7B model and id 0 for the 34B "
    "model.",
)
"""Starling's `GPTRewardModel`, from trlX: the backbone under `transformer.` and a `v_head` without bias."""
ULTRARM = LinearHeadLayout(
    head="regression_head",
    backbone="model.",
    other=("regression_head.",),
    note="UltraRM formats texts as 'Human: {prompt}\\n\\nAssistant: {response}' (the examples in its card have one "
    "newline), Eurus-RM as '[INST] {prompt} [\\INST] {response}'; both use BOS and no EOS.",
)
"""UltraRM and Eurus-RM: the backbone under `model.` and a `regression_head`."""
GRM = LinearHeadLayout(
    head="v_head.summary",
    other=("v_head.",),
    condition=lambda checkpoint: "vhead_layer_type" in checkpoint.settings,  # only GRM records the type of its head
    note="GRM formats texts with the chat template of the tokenizer.",
)
"""GRM (generalizable reward models) with a linear value head. Stock classes do not support its usual MLP head."""
TOKEN_CLASSIFIER = LinearHeadLayout(
    head="score",
    other=("score.",),
    condition=_is_token_classifier_of_one_label,
    note="A token classifier gives one number per token; the number of the last token is the reward.",
)
"""Reward models saved as token classifiers with one label, as LLaMA-Factory v1 does: `score` with a bias."""
