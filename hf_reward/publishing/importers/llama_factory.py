"""LLaMA-Factory: a language model or an adapter, with the value head in a separate file."""

from hf_reward.publishing.importers.foreign_checkpoint import Checkpoint, ForeignWeights

HEAD = "v_head.summary"


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether the folder has a separate file with a value head."""
    return checkpoint.head_files is not None


def convert(checkpoint: Checkpoint) -> ForeignWeights:
    """Return the backbone (with a merged adapter) and the value head under stock names."""
    if checkpoint.head_files is None:
        raise ValueError(
            f"A model in the llama_factory format requires value_head.safetensors or value_head.bin, but "
            f"{checkpoint.folder} has neither."
        )
    head = checkpoint.linear_head(HEAD, checkpoint.head_files)
    if checkpoint.is_adapter:
        backbone = checkpoint.merged_backbone()
    else:
        backbone = checkpoint.backbone(f"{checkpoint.target.base_model_prefix}.", other=())
    note = (
        "LLaMA-Factory formats texts with the `template` of its training settings. It saves this template in the "
        "tokenizer only if the tokenizer had none, so compare the chat template of the tokenizer with it."
    )
    return ForeignWeights(backbone=backbone, head=head, notes=[note])
