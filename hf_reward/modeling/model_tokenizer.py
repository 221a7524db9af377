"""Load the tokenizer of a model, and set the pad token in the configuration of the model."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.modeling.adapters import number_of_embeddings
from hf_reward.modeling.sharding import gathered_parameters
from hf_reward.preprocessing.template_clock import freeze_clock
from hf_reward.preprocessing.tokenizer import has_vocabulary, prepare_tokenizer, token_id


def load_tokenizer(*names: str | Path | None, **kwargs: Any) -> PreTrainedTokenizerBase | None:
    """Load the first available tokenizer of the given names.

    The date in a chat template that prints today's date is fixed; see `template_clock`.

    Args:
        *names: Folders or Hub ids; None is skipped.
        **kwargs: As for transformers' `from_pretrained`; options that do not apply to tokenizers are ignored.

    Returns:
        The tokenizer, or None.
    """
    for name in names:
        if name is None:
            continue
        try:
            found = AutoTokenizer.from_pretrained(name, **config_options(kwargs))
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if has_vocabulary(found):
            return freeze_clock(found)
    return None


def set_pad_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, keep_existing: bool = False
) -> PreTrainedModel:
    """Set a pad token of the model that never ends a formatted sequence.

    Args:
        model: A reward model without adapter.
        tokenizer: Its tokenizer, if it has one.
        keep_existing: Keep the pad token of a trained reward model, which stock classes use to find the last token.

    Returns:
        The same model.
    """
    if tokenizer is None or (keep_existing and model.config.get_text_config().pad_token_id is not None):
        return model
    return match_pad_token(model, prepare_tokenizer(tokenizer))


def match_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Set the pad token of the model to that of its tokenizer, in place; a new pad token gets a zero embedding.

    Args:
        model: A reward model without adapter.
        tokenizer: A prepared tokenizer.

    Returns:
        The same model.
    """
    pad, known = token_id(tokenizer.pad_token_id), number_of_embeddings(model)
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if pad >= known:  # unused, but random values would make runs differ
            layer: Any = model.get_input_embeddings()
            with torch.no_grad(), gathered_parameters(layer.parameters()):
                layer.weight[pad].zero_()
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad
    return model


def config_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a model that apply to its configuration and its tokenizer."""
    names = ("revision", "trust_remote_code", "cache_dir", "token", "local_files_only", "subfolder", "gguf_file")
    return {"trust_remote_code": False} | {name: kwargs[name] for name in names if name in kwargs}
