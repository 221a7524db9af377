"""Compare the rewards of saved models between formats and ways of scoring, and print the differences.

    python tests/faults/parity.py [ARCHITECTURE ...]

Tiny models with random weights and random heads are saved in every format of hf_reward: complete, as an adapter,
merged, in shards, in bfloat16. `verify` then loads each folder in a fresh process with stock transformers (and PEFT)
and scores the eight probes alone, in padded batches and through the pipeline. Offline, CPU, four minutes for all.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_reward import (
    AutoModelForRewardScoring,
    ExportRule,
    export_reward_model,
    prepare_tokenizer,
    save_merged,
    verify_checkpoint,
)
from hf_reward.modeling.probe_texts import PROBES
from hf_reward.modeling.reward_head import RewardModel
from hf_reward.publishing.verify import Verification

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
MLP = {"intermediate_size": 48}
GROUPED = {**MLP, "num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = {
    "llama": GROUPED,
    "qwen2": {**MLP, "num_key_value_heads": 2},
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma2": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "sliding_window": 8},
    "gpt2": {},
    "gpt_neox": MLP,
    "bert": {**MLP, "max_position_embeddings": 2048},
    "deberta-v2": {**MLP, "max_position_embeddings": 2048, "pooler_hidden_size": 32, "type_vocab_size": 0},
    "modernbert": MLP,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = ("complete", "adapter", "merged", "shards", "bfloat16")


def main(names: list[str]) -> None:
    """Save and verify the models, and print one table."""
    torch.set_num_threads(1)  # a second thread does not help with such small matrices
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = Table(title="Largest difference of rewards from those at saving, relative to max(1, |reward|)")
    columns = ("architecture", *KINDS[:-1], "bfloat16 weights", "... computed in bfloat16", "cast itself", "equal")
    for name in columns:
        table.add_column(name, justify="left" if name == "architecture" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        for name in names or ARCHITECTURES:
            found, cast = measure(name, Path(temporary))
            exact = [f"{difference(found[kind], 'float32'):.1e}" for kind in KINDS]
            half = f"{difference(found['bfloat16'], 'bfloat16', ways=('alone', 'right', 'pipeline')):.1e}"
            equal = all(each.equal for each in found.values())
            table.add_row(name, *exact, half, f"{cast:.1e}", "yes" if equal else "NO")
    table.caption = "float32 unless stated: allowed 1e-5; computed in bfloat16: allowed 2^-6 = 1.6e-2"
    Console(width=130).print(table)


def measure(name: str, root: Path) -> tuple[dict[str, Verification], float]:
    """Save one architecture in every format and verify each folder.

    Args:
        name: One of `ARCHITECTURES`.
        root: Folder for the models.

    Returns:
        The verification of each kind, and the change of rewards by the cast to bfloat16.
    """
    folder, tokenizer = root / name, make_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), pad_token_id=0, **SMALL, **ARCHITECTURES[name])
    AutoModel.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(folder / "base"))  # Qwen's class adds a normalizer
    complete = with_random_head(AutoModelForRewardScoring.from_pretrained(folder / "base"))
    save_merged(complete, tokenizer, folder / "complete", verify=False)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapter = with_random_head(AutoModelForRewardScoring.from_pretrained(folder / "base", peft_config=lora))
    save_merged(adapter, tokenizer, folder / "merged", verify=False)
    rules = {"shards": ExportRule(max_shard_size="40KB"), "bfloat16": ExportRule(dtype="bfloat16")}
    reports = {kind: export_reward_model(folder / "complete", folder / kind, rule) for kind, rule in rules.items()}
    found = {
        "complete": verify_checkpoint(folder / "complete"),
        "adapter": verify_checkpoint(folder / "merged" / "adapter"),
        "merged": verify_checkpoint(folder / "merged"),
        **{kind: report.verification for kind, report in reports.items() if report.verification is not None},
    }
    return found, reports["bfloat16"].differences["cast to bfloat16"]


def difference(found: Verification, dtype: str, ways: Sequence[str] | None = None) -> float:
    """Return the largest difference of rewards in one compute precision, over all or some ways of scoring."""
    names = {"alone": "each alone", "right": "padded on the right", "pipeline": "text-classification pipeline"}
    wanted = [f"rewards, {dtype}, {names[way]}" for way in ways] if ways else [f"rewards, {dtype},"]
    return found.largest_difference(*wanted)


def with_random_head(model: RewardModel) -> RewardModel:
    """Give a model a random head, because every comparison would pass with a zero head."""
    for name, parameter in model.named_parameters():
        if "score." in name or "classifier." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def texts() -> Iterator[str]:
    """Yield the texts for training the tokenizer."""
    for messages in PROBES.values():
        yield from (turn["content"] for turn in messages)


def make_tokenizer() -> PreTrainedTokenizerBase:
    """Make a byte-level tokenizer with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=special, chat_template=TEMPLATE
    )
    return prepare_tokenizer(tokenizer)


if __name__ == "__main__":
    main(sys.argv[1:])
