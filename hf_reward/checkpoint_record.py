"""What travels with every saved model: `reward_config.json`.

It says how texts become tokens, how the reward is read, and on which scale rewards lie. Every other program ignores the
file; ours reads it to give the same reward again. Nothing in it is needed to load the weights.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

FILE_NAME = "reward_config.json"


@dataclass(kw_only=True)
class CheckpointRecord:
    """The content of `reward_config.json`."""

    format: dict[str, Any]
    """The fields of `FormatRule`."""
    reads: str
    """`last_token` for decoders, `pooled` for encoders."""
    pad_token_id: int | None
    template_hash: str | None
    """SHA-256 of the chat template, None without one."""
    tokenizer_hash: str
    loss: dict[str, Any] = field(default_factory=dict)
    """Name and settings of the training loss, tie parameter included."""
    reward_statistics: dict[str, float] = field(default_factory=dict)
    """`mean` and `std` of rewards on the evaluation split and their number, for those who normalise rewards in RL."""
    training: dict[str, Any] = field(default_factory=dict)
    """Rows, steps and data summaries."""
    base_model: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write the record into a model folder.

        Args:
            folder: The folder.

        Returns:
            The file.
        """
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "CheckpointRecord | None":
        """Read the record of a model folder, None if it has none."""
        path = Path(folder) / FILE_NAME
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """SHA-256 of the chat template, None without one."""
    template = tokenizer.chat_template
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the vocabulary and special tokens, which decide the ids together with the merges."""
    content = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        # Padding and truncation are left over from the last call, and say nothing about the tokenizer.
        content["backend"] = {name: value for name, value in settings.items() if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of what decides a reward."""
    return {name: version(name) for name in ("hf_reward", "torch", "transformers", "tokenizers", "peft")}
