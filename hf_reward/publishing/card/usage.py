"""Record, files and evaluation -> the code snippets to show, and the scale of the rewards."""

import inspect
import json
from typing import Any

import transformers

from hf_reward.modeling.custom_code import has_custom_code
from hf_reward.publishing.card.facts import CardFacts, read_json
from hf_reward.publishing.card.values import decimals, interval, number
from hf_reward.publishing.stock_scoring import load_adapter, with_images
from hf_reward.publishing.verify import needs_hf_reward


def snippet_choices(facts: CardFacts) -> dict[str, Any]:
    """Return the variables that select the snippets in the template."""
    config = read_json(facts.folder / "config.json", dict)
    tokens = read_json(facts.folder / "tokenizer_config.json", dict)
    architecture = str((config.get("architectures") or [""])[0])
    own_code = has_custom_code(facts.folder)
    is_stock = own_code or not architecture or hasattr(transformers, architecture)
    if facts.is_adapter:
        is_stock = _is_stock_adapter(facts)
    has_end = _has_written_end(facts, tokens)
    separator = str(facts.record.format.get("separator") or "")
    trust = ", trust_remote_code=True" if own_code else ""
    pictures = facts.record.probes.get("images") or {"conversations": []}
    quantization = facts.record.quantization  # the adapter was fitted to the quantised weights
    quantized = f", quantization_config={quantization!r}" if quantization else ""
    return {
        "own_code": own_code,
        "trust": trust,
        "id": facts.model_id,
        "served": "merged" if facts.is_adapter else facts.model_id,
        "has_id": facts.has_id,
        "kind": _kind(facts, tokens),
        "text": " + ".join(
            ["prompt", *([json.dumps(separator)] if separator else []), "response"]
            + (["tokenizer.eos_token"] if has_end else [])
        ),
        "adapter_code": inspect.getsource(load_adapter),
        "vllm_loads": all(each.loads for each in facts.compatibility if each.program == "vLLM"),
        "takes_images": "images" in facts.record.probes,
        "image_processor": pictures["processor"] if pictures["conversations"] else None,
        "image_code": inspect.getsource(with_images),
        "adapter_options": quantized + trust,
        "is_adapter": facts.is_adapter,
        "is_stock": is_stock,
        "sglang": _sglang(architecture),
        "has_probes": bool(facts.record.probes.get("conversations")),
    }


def _is_stock_adapter(facts: CardFacts) -> bool:
    """Return whether stock PEFT loads the adapter; assumed if the base model is not available."""
    try:
        return not needs_hf_reward(facts.folder)
    except (OSError, ValueError):
        return True


def _kind(facts: CardFacts, tokens: dict[str, Any]) -> str:
    """Return `chat`, `pair` (prompt and response as a text pair) or `text` (prompt, response and EOS token in one)."""
    if facts.record.template_hash:
        return "chat"
    probes = facts.record.probes.get("conversations") or []
    if probes:
        return "pair" if "text_pair" in probes[0] else "text"
    if tokens:
        return "pair" if tokens.get("cls_token") and tokens.get("sep_token") else "text"
    return "pair" if facts.record.reads == "pooled" else "text"


def _has_written_end(facts: CardFacts, tokens: dict[str, Any]) -> bool:
    """Return whether the text must contain the EOS token. The probes show whether the tokenizer adds it."""
    eos = tokens.get("eos_token")
    eos = eos.get("content") if isinstance(eos, dict) else eos
    texts = [probe["text"] for probe in facts.record.probes.get("conversations") or [] if "text" in probe]
    if texts and isinstance(eos, str):
        return texts[0].endswith(eos)
    return not tokens or (eos is not None and not tokens.get("add_eos_token"))


def _sglang(architecture: str) -> str | None:
    """Return which rewards SGLang 0.5.23 gives, or None if it has no reward head for the architecture."""
    shifted = "reward differences are correct, but each load of the model adds a random constant to all rewards"
    if architecture.startswith(("Qwen2For", "Qwen3For")):
        return f"for this architecture, {shifted}"
    if architecture.startswith(("LlamaFor", "Gemma2For")):
        return "it returns raw rewards"
    if architecture:
        return None
    return f"it returns raw rewards for Llama and Gemma 2; for Qwen2 and Qwen3, {shifted}"


_LN_2 = 0.6931


def temperature(facts: CardFacts) -> float | None:
    """Return the fitted temperature that divides reward differences, or None."""
    kept = facts.record.calibration or facts.record.reward_statistics  # older records store it in the statistics
    found = number(kept.get("temperature"))
    return found if found and found > 0 else None


def probability(facts: CardFacts) -> str:
    """Return the formula for the preference probability of two rewards."""
    fitted = temperature(facts)
    return f"sigmoid({'reward_a - reward_b' if fitted is None else f'(reward_a - reward_b) / {fitted:.3g}'})"


def scale_lines(facts: CardFacts) -> list[str]:
    """Return sentences on mean, standard deviation, calibration and temperature."""
    values, fitted = facts.values, temperature(facts)
    lines = _spread_lines(facts)
    loss = values.get("log_loss")
    if loss is not None:
        verdict = (
            "The probabilities are informative."
            if loss < _LN_2
            else "The probabilities are not better than chance. Use the rewards only to rank responses."
        )
        lines.append(f"Calibration: log loss {loss:.3f} (chance: ln 2 = 0.693). {verdict}")
    lines.append(
        "Temperature: not fitted."
        if fitted is None
        else f"Temperature: {fitted:.3g} (fitted). Divide reward differences by it."
    )
    stored = facts.record.length_correction
    if stored:
        lines.append(
            f"Length correction: fitted on {stored.get('num_responses')} responses and stored. The numbers in this "
            "card do not include it; `RewardScorer.from_pretrained(..., length_correction=True)` applies it."
        )
    return lines


def _spread_lines(facts: CardFacts) -> list[str]:
    values, kept = facts.values, facts.record.reward_statistics
    mean = values.get("mean_reward", number(kept.get("mean")))
    std = values.get("std_reward", number(kept.get("std")))
    if mean is None or std is None:
        return ["Mean and standard deviation of the rewards: not measured."]
    limits = interval(values.get("min_reward"), values.get("max_reward"), decimals)
    reach = f", range {limits}" if limits else ""
    lines = [f"On held-out responses: mean {mean:.3f}, standard deviation {std:.3f}{reach}."]
    if std > 0:
        lines.append(f"To normalise for RL: `(reward {'-' if mean >= 0 else '+'} {abs(mean):.4g}) / {std:.4g}`.")
    return lines
