"""Configuration of a saved model -> which programs load it, and whether they give the same reward.

For Llama models, the verdicts follow from runs of the programs (`program_results`, `make interop`). For other
architectures, and for programs that were not run, they follow from source code. `Verdict.evidence` states which.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig

from hf_reward.modeling.architectures import has_stock_class
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.modeling.custom_code import has_custom_code
from hf_reward.publishing.program_results import LLAMA_MODELS, evidence_of

SAME, SHIFTED, WITH_OPTION, CANNOT = "same reward", "same up to a constant", "same with an option", "cannot load"
OTHER = "another reward"

_VLLM_DECODERS = frozenset(
    (
        *("Llama", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3Next", "Qwen3_5", "Mistral", "Mixtral"),
        *("Ministral3", "Gemma", "Gemma2", "Phi", "Phi3", "Olmo", "Olmo2", "Olmo3", "GPT2"),
        *("GPTBigCode", "GPTNeoX", "GPTJ", "OPT", "Bloom", "Falcon", "Mpt", "SmolLM3", "StableLm"),
        *("Starcoder2", "DeepseekV2", "DeepseekV3", "Glm", "Glm4", "GptOss", "Jamba", "Zamba2", "SeedOss"),
        *("Nemotron", "Exaone4", "Arcee", "Persimmon", "MiniCPM3", "Granite", "GraniteMoe", "Cohere"),
        *("Cohere2", "Olmoe", "Bamba"),
    )
)
_VLLM_VISION = {
    "Qwen2VL": "Qwen2-VL",
    "Qwen2_5_VL": "Qwen2.5-VL",
    "Qwen3VL": "Qwen3-VL",
    "InternVL": "InternVL",
    "SmolVLM": "SmolVLM",
    "LlavaOnevision": "LLaVA-OneVision",
    "Gemma3": "Gemma 3",
}
"""Vision-language architectures, and their names in the results of the interop suite."""
_VLLM_ENCODERS = frozenset(("Bert", "Roberta", "XLMRoberta", "ModernBert"))
_SGLANG = {"Llama": SAME, "Gemma2": SAME, "Qwen2": SHIFTED, "Qwen3": SHIFTED}
_SGLANG_ENCODERS = frozenset(("Bert", "XLMRoberta"))
_TEI = frozenset(("Bert", "Camembert", "Roberta", "XLMRoberta", "DistilBert", "DebertaV2", "ModernBert"))
SERVERS = ("vLLM", "SGLang", "TEI")
CROSS_ENCODER = "sentence-transformers (CrossEncoder)"


class Verdict(NamedTuple):
    """Whether one program gives the rewards of a saved model."""

    program: str
    outcome: str
    """`SAME`, `SHIFTED`, `WITH_OPTION`, `OTHER` or `CANNOT`."""
    note: str = ""
    evidence: str = ""
    """Whether the program was run or its source was read, with its version."""

    @property
    def consumer(self) -> str:
        """Deprecated name of `program`, removed in version 0.3."""
        message = "`Verdict.consumer` is now `program`; the old name will be removed in version 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.program

    @property
    def loads(self) -> bool:
        """Whether the program loads the model."""
        return self.outcome != CANNOT


def compatibility_of_config(
    config: PretrainedConfig, *, is_stock: bool = True, is_decoder: bool = True, own_code: bool = False
) -> list[Verdict]:
    """Return which programs load a model.

    Args:
        config: Configuration of the saved classifier.
        is_stock: Whether transformers has the class of the classifier.
        is_decoder: Whether a `score` layer without bias computes the reward at the last token.
        own_code: Whether the model requires code from its own folder.

    Returns:
        A verdict for each program.
    """
    if own_code:
        return [
            Verdict("transformers, pipeline", WITH_OPTION, "`trust_remote_code=True` runs the model's own code"),
            Verdict("TRL (reward_funcs)", WITH_OPTION, "pass the loaded model, not its name"),
        ]
    architecture = (config.architectures or ["?"])[0]
    kind = architecture.removesuffix("ForSequenceClassification")
    if is_stock:
        transformers = Verdict("transformers, pipeline", SAME)
        trl = Verdict("TRL (reward_funcs)", SAME, "pads on the right and uses raw logits")
    else:
        note = f"transformers has no {architecture}; import `hf_reward` and call `register_classifier` first"
        transformers = Verdict("transformers, pipeline", WITH_OPTION, note)
        trl = Verdict("TRL (reward_funcs)", WITH_OPTION, note)
    vllm, sglang = _vllm(kind, is_decoder), _sglang(kind)
    verdicts = [
        transformers,
        trl,
        _cross_encoder(is_decoder, is_stock),
        _rewardbench(is_stock),
        vllm,
        sglang,
        _tei(kind),
        _infinity(is_decoder, is_stock),
        _open_rlhf(is_decoder, is_stock),
        _verl(_best(vllm, sglang), kind) if is_decoder else Verdict("verl", CANNOT),
    ]
    models = LLAMA_MODELS if kind == "Llama" else tuple(filter(None, [_VLLM_VISION.get(kind)]))
    return [each._replace(evidence=evidence_of(each.program, models)) for each in verdicts]


def can_be_served(verdicts: list[Verdict]) -> bool:
    """Return whether at least one server loads the model."""
    return any(verdict.loads for verdict in verdicts if verdict.program in SERVERS)


def _vllm(kind: str, is_decoder: bool) -> Verdict:
    if kind in ("Gemma3Text", "Qwen3_5Text"):
        name = kind.removesuffix("Text")
        option = f"""--hf-overrides '{{"architectures": ["{name}ForSequenceClassification"]}}'"""
        return Verdict("vLLM", WITH_OPTION, option)
    if kind in _VLLM_VISION:
        return _vllm_with_images(kind)
    if kind in _VLLM_DECODERS or kind in _VLLM_ENCODERS:
        return Verdict("vLLM", SAME, "--runner pooling --dtype float32; `problem_type` disables the sigmoid")
    if is_decoder:
        return Verdict("vLLM", WITH_OPTION, """--pooler-config '{"pooling_type": "LAST"}'""")
    return Verdict("vLLM", CANNOT, "it does not support this encoder")


def _vllm_with_images(kind: str) -> Verdict:
    options = "--runner pooling --dtype float32; images as `image_url` parts"
    notes = {
        "SmolVLM": f"{options}. It resizes with torchvision: rewards differ from those of PIL",
        "LlavaOnevision": f"{options}. It processes each of several images as if it were the only one: other rewards",
    }
    if kind == "Gemma3":
        return Verdict("vLLM", CANNOT, "vLLM 0.32 fails to load its classifier")
    return Verdict("vLLM", OTHER if kind in notes else SAME, notes.get(kind, options))


def _sglang(kind: str) -> Verdict:
    if kind in _SGLANG_ENCODERS:
        return Verdict("SGLang", SAME, "--is-embedding")
    if kind not in _SGLANG:
        return Verdict("SGLang", CANNOT, "it has no score head for this architecture and would return an embedding")
    if _SGLANG[kind] == SHIFTED:
        return Verdict("SGLang", SHIFTED, "--is-embedding; loading a Qwen head adds a random constant to all rewards")
    return Verdict("SGLang", SAME, "--is-embedding; use /classify: /v1/classify applies a softmax")


def _tei(kind: str) -> Verdict:
    if kind in _TEI:
        return Verdict("TEI", WITH_OPTION, 'set "raw_scores": true in the request to disable the sigmoid')
    return Verdict("TEI", CANNOT, "it only serves encoder classifiers")


def _cross_encoder(is_decoder: bool, is_stock: bool) -> Verdict:
    if not is_stock:
        return Verdict(CROSS_ENCODER, CANNOT, "it requires a class in transformers")
    if is_decoder:
        return Verdict(CROSS_ENCODER, WITH_OPTION, "pass lists of messages; pairs are joined without the chat template")
    return Verdict(CROSS_ENCODER, SAME)


def _rewardbench(is_stock: bool) -> Verdict:
    if is_stock:
        return Verdict("rewardbench", WITH_OPTION, "--not_quantized --torch_dtype float32 --max_length 2048")
    return Verdict("rewardbench", CANNOT, "it requires a class in transformers")


def _infinity(is_decoder: bool, is_stock: bool) -> Verdict:
    if not is_stock:
        return Verdict("infinity-emb", CANNOT, "it requires a class in transformers")
    if is_decoder:
        return Verdict("infinity-emb", OTHER, "it only reranks pairs, joined without the chat template")
    return Verdict("infinity-emb", WITH_OPTION, 'set "raw_scores" to disable the sigmoid')


def _verl(outcome: str, kind: str) -> Verdict:
    # It removes a BOS that the chat template writes, and relies on a tokenizer that adds one (verl 0.10.dev 1dda039,
    # `_preprocess_reward_inputs`). Tokenizers saved by hf_reward add none.
    note = "served by vLLM or SGLang; if the chat template writes BOS, use a reward function instead"
    return Verdict("verl", outcome, f"{note}; not checked for images" if kind in _VLLM_VISION else note)


def _open_rlhf(is_decoder: bool, is_stock: bool) -> Verdict:
    if is_decoder and is_stock:
        note = "its loader computes in bfloat16, including the head; use `--reward.remote_url` with hf-reward serve"
        return Verdict("OpenRLHF", WITH_OPTION, note)
    return Verdict("OpenRLHF", CANNOT, "it only supports decoders with a `score` head")


def _best(*verdicts: Verdict) -> str:
    order = (SAME, WITH_OPTION, SHIFTED, OTHER, CANNOT)
    return min((verdict.outcome for verdict in verdicts), key=order.index)


def compatibility_of_folder(folder: str | Path) -> list[Verdict] | None:
    """Return the verdicts on a saved model, or None for an adapter, which most programs require to be merged."""
    folder = Path(folder)
    if not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        return None
    if has_custom_code(folder):
        return compatibility_of_config(PretrainedConfig(), own_code=True)
    record = CheckpointRecord.load(folder)
    config = AutoConfig.from_pretrained(folder)
    decoder = record is None or record.reads == "last_token"
    return compatibility_of_config(config, is_stock=has_stock_class(config), is_decoder=decoder)


def why_unserved(config: Any, verdicts: list[Verdict]) -> str:
    """Return why no server loads a model, with the remedy."""
    reasons = "; ".join(f"{each.program}: {each.note}" for each in verdicts if each.program in SERVERS)
    return (
        f"No server (vLLM, SGLang, TEI) can load {(config.architectures or ['?'])[0]} ({reasons}). Train another "
        "backbone, or export it for transformers and `hf-reward serve` only, with `allow_unserved=True` "
        "(`--allow-unserved`)."
    )
