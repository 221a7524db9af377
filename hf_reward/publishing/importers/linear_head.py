"""Layouts that differ in names alone: a backbone under some prefix, and beside it a head that is one linear layer."""

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
    """An importer of one such layout."""

    head: str
    """Name of the head."""
    backbone: str | None = None
    """How keys of the backbone start; None for the stock class's own prefix."""
    beside: tuple[str, ...]
    """How other keys of this layout start."""
    is_this: Callable[[Checkpoint], bool] = lambda checkpoint: True
    """What else tells the layout from others with a head of that name."""
    reads: str = LAST_TOKEN
    note: str

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether a folder is in this layout."""
        return f"{self.head}.weight" in checkpoint.weights and self.is_this(checkpoint)

    def convert(self, checkpoint: Checkpoint) -> ForeignWeights:
        """The folder's weights under stock names."""
        head = checkpoint.linear_head(self.head)
        prefix = self.backbone or f"{checkpoint.target.base_model_prefix}."
        backbone = checkpoint.backbone(prefix, beside=self.beside)
        return ForeignWeights(backbone=backbone, head=head, reads=self.reads, notes=[self.note])


def _has_keys_under(prefix: str) -> Callable[[Checkpoint], bool]:
    return lambda checkpoint: any(key.startswith(prefix) for key in checkpoint.weights)


def _is_token_classifier_of_one_label(checkpoint: Checkpoint) -> bool:
    is_named = any(arch.endswith("ForTokenClassification") for arch in checkpoint.architectures)
    return is_named and checkpoint.weights.shape("score.weight")[0] == 1


DEEPSPEED_CHAT = LinearHeadLayout(
    head="v_head",
    backbone="rwtransformer.",
    beside=("v_head.",),
    is_this=_has_keys_under("rwtransformer."),
    reads=BEFORE_FIRST_PAD,
    note="Texts of DeepSpeed-Chat are ' Human: {prompt} Assistant: {response}' and '<|endoftext|>' after that. It "
    "reads before the first pad token, which is EOS for all but Llama tokenizers: where '<|endoftext|>' is EOS, its "
    "reward is that of the text without it.",
)
"""DeepSpeed-Chat's `RewardModel`: the backbone under `rwtransformer.` and a `v_head` without bias."""
STARLING = LinearHeadLayout(
    head="v_head",
    backbone="transformer.",
    # The class also keeps the whole language model as `model`, whose backbone is the same tensors once more.
    beside=("v_head.", "model."),
    is_this=_has_keys_under("transformer."),
    reads=BEFORE_FIRST_PAD,
    note="Texts of Starling-RM-7B are in the format of Llama-2-Chat, those of Starling-RM-34B in that of Yi-34B-Chat. "
    "It reads before the first pad token, which is the unknown token for the 7B and id 0 for the 34B.",
)
"""Starling's `GPTRewardModel`, which came from trlX: the backbone under `transformer.` and a `v_head` without bias."""
ULTRARM = LinearHeadLayout(
    head="regression_head",
    backbone="model.",
    beside=("regression_head.",),
    note="Texts of UltraRM are 'Human: {prompt}\\n\\nAssistant: {response}' (the examples in its card have one "
    "newline), those of Eurus-RM '[INST] {prompt} [\\INST] {response}', both with BOS and without EOS.",
)
"""UltraRM and Eurus-RM: the backbone under `model.` and a `regression_head`."""
GRM = LinearHeadLayout(
    head="v_head.summary",
    beside=("v_head.",),
    is_this=lambda checkpoint: "vhead_layer_type" in checkpoint.settings,  # only GRM says of which kind its head is
    note="GRM formats texts by the tokenizer's chat template.",
)
"""GRM (generalizable reward models) with a linear value head; its usual MLP head fits no stock class."""
TOKEN_CLASSIFIER = LinearHeadLayout(
    head="score",
    beside=("score.",),
    is_this=_is_token_classifier_of_one_label,
    note="A token classifier gives a number for every token; the last one's is taken as the reward.",
)
"""Reward models saved as token classifiers with one label, as LLaMA-Factory v1 does: `score` with a bias."""
