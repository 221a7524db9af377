"""Name of a model -> its tokenizer, and a model that knows its tokenizer's pad token."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_reward.modeling.adapters import number_of_embeddings
from hf_reward.modeling.sharding import whole_parameters
from hf_reward.preprocessing.template_clock import freeze_clock
from hf_reward.preprocessing.tokenizer import has_vocabulary, prepare_tokenizer, token_id


def load_tokenizer(*names: str | Path | None, **kwargs: Any) -> PreTrainedTokenizerBase | None:
    """Load the first tokenizer that one of some names has; a folder of weights alone has none.

    A chat template that prints today's date gets a fixed one; see `template_clock`.

    Args:
        *names: Folders or Hub ids; None is passed over.
        **kwargs: As for transformers' `from_pretrained`; what a tokenizer does not take is left out.

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
    """Tell the model a pad token with which no formatted sequence ends.

    Args:
        model: A reward model without adapter.
        tokenizer: Its tokenizer, if it has one.
        keep_existing: Keep the model's own, as of a loaded reward model: stock classes read its reward by it.

    Returns:
        The same model.
    """
    if tokenizer is None or (keep_existing and model.config.get_text_config().pad_token_id is not None):
        return model
    return match_pad_token(model, prepare_tokenizer(tokenizer))


def match_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Give the model its tokenizer's pad token, with an embedding for it (zero) if it is new, in place.

    Args:
        model: A reward model without adapter.
        tokenizer: A prepared tokenizer.

    Returns:
        The same model.
    """
    pad, known = token_id(tokenizer.pad_token_id), number_of_embeddings(model)
    if len(tokenizer) > known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        if pad >= known:  # never read; a random one would make each start of the same run another run
            layer: Any = model.get_input_embeddings()
            with torch.no_grad(), whole_parameters(layer.parameters()):
                layer.weight[pad].zero_()
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad
    return model


def config_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the options of a model that hold for its configuration and its tokenizer."""
    names = ("revision", "trust_remote_code", "cache_dir", "token", "local_files_only", "subfolder", "gguf_file")
    return {"trust_remote_code": False} | {name: kwargs[name] for name in names if name in kwargs}
