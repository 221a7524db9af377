"""Are a saved model's rewards the same everywhere? `python recipes/parity.py` prints the largest differences.

For tiny models with random weights and random heads: the model in this process against the same model reloaded,
and, in a fresh process that never imports hf_reward, against stock `AutoModelForSequenceClassification`, the
`text-classification` pipeline, and a LoRA model that was merged on saving. Offline, CPU, half a minute.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"

import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from hf_reward import (
    AutoModelForRewardScoring,
    DataCollatorForPreference,
    compute_rewards,
    prepare_preferences,
    prepare_tokenizer,
    save_merged,
)
from hf_reward.reward_head import RewardModel
from hf_reward.tokenization import token_id

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}
MLP = {"intermediate_size": 48}
GROUPED = {**MLP, "num_key_value_heads": 2, "head_dim": 8}
ARCHITECTURES = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma3_text": {**GROUPED, "sliding_window": 8},
    "gpt2": {},
    "bert": MLP,
    "modernbert": MLP,
}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [
    {
        "prompt": [{"role": "user", "content": f"What is {number} times seven?" + " Show each step." * (number % 4)}],
        "chosen": [{"role": "assistant", "content": f"It is {number * 7}." + " Here is why." * (number % 3)}],
        "rejected": [{"role": "assistant", "content": f"Perhaps {number * 7 + 1}, who knows" + "?" * (number % 5)}],
    }
    for number in range(32)
]
STOCK = """
import json, sys
from pathlib import Path
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

torch.set_num_threads(1)
root = Path(sys.argv[1])
texts, found = json.loads((root / "texts.json").read_text()), {}
for folder in sorted(path for path in root.glob("*/*") if path.name in ("plain", "merged")):
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        stock = model(**inputs).logits[:, 0].tolist()
    # The texts are whole already, so the tokenizer must not add its special tokens once more.
    classify = pipeline("text-classification", model=str(folder), batch_size=8)
    scored = classify(texts, add_special_tokens=False)
    found[f"{folder.parent.name}/{folder.name}"] = [stock, [result["score"] for result in scored]]
assert "hf_reward" not in sys.modules
(root / "stock.json").write_text(json.dumps(found))
"""


def main() -> None:
    """Make the models, score the rows in every way, and print one table."""
    torch.set_num_threads(1)  # on matrices this small a second thread only waits
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    table = Table(title=f"Largest |difference of rewards|, {len(ROWS)} chat pairs, float32")
    for name in ("architecture", "std of rewards", "reload", "stock", "pipeline", "merged LoRA", "of allowed"):
        table.add_column(name, justify="left" if name == "architecture" else "right")
    with tempfile.TemporaryDirectory() as temporary:
        for row in measure(Path(temporary)):
            table.add_row(row[0], f"{row[1]:.2f}", *(f"{number:.1e}" for number in row[2:6]), f"{row[6]:.0%}")
    table.caption = "of allowed: the largest |difference| / (1e-5 max(1, |reward|)) of the row"
    Console(width=110).print(table)


def measure(root: Path) -> list[tuple[str, float, float, float, float, float, float]]:
    """The differences of every architecture: its name, the spread of its rewards, and the table's other columns."""
    tokenizer = make_tokenizer()
    texts = [
        tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False)
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    (root / "texts.json").write_text(json.dumps(texts))
    data = list(prepare_preferences(ROWS, tokenizer)[0])
    collate = DataCollatorForPreference(pad_token_id=token_id(tokenizer.pad_token_id))
    batches = [collate(data[start : start + 8]) for start in range(0, len(data), 8)]
    ours = {arch: save_and_reload(arch, root / arch, tokenizer, batches) for arch in ARCHITECTURES}
    subprocess.run([sys.executable, "-c", STOCK, str(root)], check=True, capture_output=True, text=True)
    stock = {name: torch.tensor(values) for name, values in json.loads((root / "stock.json").read_text()).items()}

    rows = []
    for arch, (trained, reloaded, adapted) in ours.items():
        plain, merged = stock[f"{arch}/plain"], stock[f"{arch}/merged"]
        pairs = ((reloaded, trained), (plain[0], trained), (plain[1], trained), (merged, adapted))
        rows.append((arch, float(trained.std()), *largest_differences(pairs)))
    return rows


def largest_differences(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[float]:
    """The largest difference of each pair, and the largest of all as a share of what is allowed."""
    differences = [(one - other).abs() for one, other in pairs]
    allowed = [1e-5 * other.abs().clamp(min=1) for _, other in pairs]
    share = max(float((found / most).max()) for found, most in zip(differences, allowed, strict=True))
    return [*(float(found.max()) for found in differences), share]


def save_and_reload(arch: str, folder: Path, tokenizer: PreTrainedTokenizerBase, batches: list) -> list[torch.Tensor]:
    """Rewards of a model, of the same model reloaded, and of the same backbone with LoRA; all are left on disk."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, vocab_size=len(tokenizer), pad_token_id=0, **SMALL, **ARCHITECTURES[arch])
    AutoModel.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")

    model = with_random_head(AutoModelForRewardScoring.from_pretrained(folder / "base"))
    trained = score(model, batches)
    save_merged(model, tokenizer, folder / "plain")
    reloaded = score(AutoModelForRewardScoring.from_pretrained(folder / "plain"), batches)

    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    adapter = with_random_head(AutoModelForRewardScoring.from_pretrained(folder / "base", peft_config=lora))
    adapted = score(adapter, batches)
    save_merged(adapter, tokenizer, folder / "merged")
    return [trained, reloaded, adapted]


def with_random_head(model: RewardModel) -> RewardModel:
    """A new head is zero, and with a zero head every comparison would pass."""
    for name, parameter in model.named_parameters():
        if "score." in name or "classifier." in name:
            torch.nn.init.normal_(parameter)
    return model


def score(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Rewards as training and evaluation compute them, chosen before rejected."""
    model.eval()
    with torch.no_grad():
        return torch.cat([compute_rewards(model, batch).flatten() for batch in batches])


def make_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([row["prompt"][0]["content"] for row in ROWS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", additional_special_tokens=special, chat_template=TEMPLATE
    )
    return prepare_tokenizer(tokenizer)


if __name__ == "__main__":
    main()
