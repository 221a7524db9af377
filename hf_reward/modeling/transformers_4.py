"""Add to a saved folder what programs with transformers 4 read, so that they give the same rewards or load at all."""

import json
from pathlib import Path
from typing import Any


def add_transformers_4_fields(folder: str | Path) -> None:
    """Add the fields of transformers 4 to `config.json` and `tokenizer_config.json`, in place.

    transformers 5 writes the RoPE base and scaling only as `rope_parameters`. transformers 4 ignores this field and
    silently computes other rewards with the default base. It also rejects the tokenizer class and the list of special
    tokens that transformers 5 writes. transformers 5 reads both formats.

    Args:
        folder: A saved model or adapter. Without one of the files, the other one is changed.
    """
    folder = Path(folder)
    for name, change in (("config.json", _add_rope), ("tokenizer_config.json", _rename_tokenizer)):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            changed = change(content)
            if changed != content:
                text = json.dumps(changed, indent=2, sort_keys=True, ensure_ascii=False)
                path.write_text(f"{text}\n", encoding="utf-8")


def _add_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the RoPE fields of transformers 4, if all layers have the same parameters."""
    parameters = dict(config.get("rope_parameters") or {})
    theta, share = parameters.pop("rope_theta", None), parameters.pop("partial_rotary_factor", None)
    if theta is None:  # no RoPE, or parameters by type of layer
        return config
    is_neox = config.get("model_type") == "gpt_neox"
    names = ("rotary_emb_base", "rotary_pct") if is_neox else ("rope_theta", "partial_rotary_factor")
    fields = {name: value for name, value in zip(names, (theta, share), strict=True) if value is not None}
    if parameters.get("rope_type", "default") != "default":
        fields["rope_scaling"] = parameters
    return {**config, **fields}


def _rename_tokenizer(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the names of transformers 4 for the generic class and for further special tokens."""
    result = dict(config)
    if result.get("tokenizer_class") == "TokenizersBackend":
        result["tokenizer_class"] = "PreTrainedTokenizerFast"
        # The default of transformers 5. That of transformers 4 has token types, which decoders do not accept.
        result.setdefault("model_input_names", ["input_ids", "attention_mask"])
    if isinstance(result.get("extra_special_tokens"), list):
        result["additional_special_tokens"] = result.pop("extra_special_tokens")
    return result
