"""OpenRLHF: the class behind its reward server (`openrlhf.cli.serve_rm`), which uses the loader of its trainers.

The wheel is installed without its requirements. deepspeed and flash-attn, which need CUDA, are replaced by stubs: a
call of one of their functions raises an error. The attention is `eager` instead of the default `flash_attention_2`.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from exchange import column, run

STUBS = {
    "deepspeed": (),
    "flash_attn": (),
    "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
    "flash_attn.utils": (),
    "flash_attn.utils.distributed": ("all_gather",),
}
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


def add_stubs() -> None:
    """Add modules whose functions raise an error."""

    def missing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("a function of a stub was called")

    for name, functions in STUBS.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for function in functions:
            setattr(module, function, missing)
        sys.modules[name] = module


def load(request: dict[str, Any]) -> Any:
    """Build the server's class with its default options."""
    add_stubs()
    from openrlhf.cli.serve_rm import RewardModelProxy  # pyright: ignore[reportMissingImports]

    parts = {
        "reward": {"model_name_or_path": request["folder"], "normalize_enable": False},
        "ds": {
            "attn_implementation": "eager",
            "experts_implementation": None,
            "param_dtype": PRECISIONS[request["dtype"]],
            "load_in_4bit": False,
            "value_head_prefix": "score",
            "packing_samples": False,
        },
        "data": {"disable_fast_tokenizer": False, "max_len": 2048},
    }
    options = {name: SimpleNamespace(**values) for name, values in parts.items()}
    return RewardModelProxy(SimpleNamespace(batch_size=None, **options))


if __name__ == "__main__":
    run("openrlhf", load, {"text": lambda server, probes: server.get_reward(column(probes, "text"))})
