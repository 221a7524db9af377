"""The same rows scored in four ways (stock transformers, trainer, scorer, server), which must agree.

`assert_same_rewards(folder_or_trainer, rows)` is the whole interface; `tiny_tokenizer` and `tiny_reward_model` make a
saved reward model with a random head of any configuration.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from conftest import _byte_level
from saved_models import saved_model
from serving_scorers import asked
from training_runs import make_trainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from hf_reward import CheckpointRecord, RewardScorer, RewardTrainer
from hf_reward.data.score_request import requests_of_row
from hf_reward.modeling.checkpoint_record import template_hash
from hf_reward.publishing.card.render import is_generated, write_model_card

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")


def assert_same_rewards(
    model: str | Path | RewardTrainer,
    rows: Sequence[dict[str, Any]],
    *,
    stock_rows: Sequence[dict[str, Any]] | None = None,
    folder: Path | None = None,
    **settings: Any,
) -> np.ndarray:
    """Score every response in all four ways, require 1e-5 * max(1, |reward|), and return the rewards `(R, K)`.

    `model` is a saved folder, or a trainer, which is saved into `folder` (by default its `output_dir`). Rows are pairs
    (`chosen`, `rejected`, with `prompt` or without) or ranked lists (`prompt`, `responses`, `ranks`). `stock_rows` are
    what the model card's reader would pass, where that is not what the rows hold (content parts that were joined, a
    prompt that the sides repeat). `settings` are `RewardConfig` fields for the trainer made of a folder.
    """
    if isinstance(model, RewardTrainer):
        trainer, folder = model, folder or Path(str(model.args.output_dir))
        trainer.save_model(str(folder))
    else:
        folder = Path(model)
        trainer = trainer_of(folder, rows, **settings)
    found = {
        "stock transformers": stock_rewards(folder, stock_rows or rows),
        "trainer": trainer_rewards(trainer, rows),
        "scorer": scorer_rewards(scorer := RewardScorer.from_pretrained(folder, device="cpu"), rows),
        "server": server_rewards(scorer, rows),
    }
    expected = found["stock transformers"]
    assert np.isfinite(expected).all(), expected
    assert np.ptp(expected) > 1e-3, f"all rewards are equal, so the comparison says nothing: {expected}"
    for way, rewards in found.items():
        assert rewards.shape == expected.shape, f"{way}: {rewards.shape} rewards instead of {expected.shape}"
        difference = np.abs(rewards - expected) / np.maximum(1, np.abs(expected))
        place = np.unravel_index(difference.argmax(), difference.shape)
        assert difference.max() <= 1e-5, (
            f"{way} differs from stock transformers by {difference.max():.2e}, at (row, response) "
            f"{tuple(map(int, place))}: {rewards[place]} instead of {expected[place]}"
        )
    return expected


def trainer_of(folder: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> RewardTrainer:
    """A trainer of a saved model that formats rows as its record says, or without a limit if it has none."""
    record = CheckpointRecord.load(folder)
    known = {} if record is None else record.format
    settings = {"max_length": known.get("max_length"), "separator": known.get("separator", ""), **settings}
    return make_trainer(folder, None, folder.parent / f"{folder.name}-trainer", evaluation=list(rows), **settings)


def responses_of(row: dict[str, Any]) -> list[Any]:
    """The responses of a row in its own order."""
    return list(row["responses"]) if "responses" in row else [row["chosen"], row["rejected"]]


def stock_rewards(folder: Path, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Rewards by the code block of the model card, run once for each response with that response's values in it."""
    load, score = card_code(folder)
    names: dict[str, Any] = {}
    exec(compile(load, "card", "exec"), names)
    code = compile(score, "card", "exec")
    found = []
    for row in rows:
        options = {"tools": row.get("tools"), **(row.get("chat_template_kwargs") or {})}
        for response in responses_of(row):
            prompt = row.get("prompt")
            given = {"prompt": prompt or "", "response": response, "template_options": options}
            if not isinstance(response, str):
                given["messages"] = [*(prompt or []), *response]
            found.append(float(_run(code, {**names, **given})["reward"]))
    return np.array(found).reshape(len(rows), -1)


def _run(code: Any, names: dict[str, Any]) -> dict[str, Any]:
    exec(code, names)
    return names


def card_code(folder: Path) -> tuple[str, str]:
    """The card's first code block: the lines that load, and those that score, whose example values are left out."""
    card = folder / "README.md"
    record = CheckpointRecord.load(folder)
    if not card.is_file() or not is_generated(card):  # PEFT writes one of its own
        if record is None:  # a folder of another library: what its reader would do has the same form
            tokenizer = AutoTokenizer.from_pretrained(folder)
            record = CheckpointRecord(
                format={}, reads="last_token", pad_token_id=None, template_hash=template_hash(tokenizer),
                tokenizer_hash="",
            )  # fmt: skip
        write_model_card(folder, record)
    block = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    start = re.search(r"^(messages = |prompt, response = ).*\n", block, flags=re.MULTILINE)
    assert start is not None, block
    loader = r'(from_pretrained|load_adapter)\("[^"]*"'
    load = re.sub(loader, lambda found: f"{found[1]}({str(folder)!r}", block[: start.start()])
    score = block[start.end() :]
    score = score.replace("apply_chat_template(messages, ", "apply_chat_template(messages, **template_options, ")
    return load, score.replace("tokenizer(prompt, response, ", "tokenizer(*filter(None, (prompt, response)), ")


def trainer_rewards(trainer: RewardTrainer, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Rewards that `predict` gives, as evaluation sees them."""
    return np.asarray(trainer.predict(list(rows)).predictions, dtype=np.float64)


def scorer_rewards(scorer: RewardScorer, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Rewards of `score`, or of the rows of a table where a row brings arguments for the template."""
    items = _items(rows)
    if any(name in item for item in items for name in TEMPLATE_COLUMNS):
        requests = [request for item in items for request in requests_of_row(item)]
        result = scorer.score_requests(requests)
        assert not result.problems, result.problems
        return result.rewards.reshape(len(rows), -1)
    if all("prompt" in item for item in items):
        found = scorer.score([item["prompt"] for item in items], [item["response"] for item in items])
    else:
        found = scorer.score_conversations([item["messages"] for item in items])
    return found.reshape(len(rows), -1)


def server_rewards(scorer: RewardScorer, rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """Rewards of `POST /score`."""
    found: list[Any] = []

    async def ask(client: httpx2.AsyncClient) -> None:
        answer = await client.post("/score", json={"items": _items(rows)})
        assert answer.status_code == 200, answer.text
        found.extend(answer.json()["rewards"])

    asked(scorer, ask)
    return np.array(found, dtype=np.float64).reshape(len(rows), -1)


def _items(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """An item for each response: `prompt` and `response`, or `messages` where there is no prompt."""
    items = []
    for row in rows:
        extra = {name: row[name] for name in TEMPLATE_COLUMNS if row.get(name)}
        for response in responses_of(row):
            has_prompt = row.get("prompt") is not None or isinstance(response, str)
            item = {"prompt": row.get("prompt") or "", "response": response} if has_prompt else {"messages": response}
            items.append({**item, **extra})
    return items


# --- models ----------------------------------------------------------------------------------------------------------


def tiny_tokenizer(
    special: Sequence[str] = ("<|pad|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"),
    *,
    template: str | None = None,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    pad: str | None = "<|pad|>",
    **names: Any,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that adds nothing by itself (`foreign_models.bos_adding_tokenizer` adds a BOS)."""
    given = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "chat_template": template}
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(list(special)),
        additional_special_tokens=list(special),
        **{name: value for name, value in given.items() if value is not None},
        **names,
    )


def tiny_reward_model(config: PretrainedConfig, tokenizer: Any, folder: Path, *, seed: int = 0, **options: Any) -> Path:
    """Save a tiny reward model of a configuration, with a random head; its language model lies beside it.

    `options` are those of `saved_models.saved_model` (`lora=True`, `save_options`, ...).
    """
    source = folder.parent / f"{folder.name}-base"
    torch.manual_seed(seed)
    causal = type(config) in AutoModelForCausalLM._model_mapping and not hasattr(config, "type_vocab_size")
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    auto.from_config(config).save_pretrained(source)
    tokenizer.save_pretrained(source)
    return saved_model(source, folder, **options)
