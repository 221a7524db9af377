"""The four scoring methods agree on models with past differences, and the comparison detects a difference.

Rows that once gave other rewards are in `test_row_parity`.
"""

from datetime import datetime
from typing import Any

import pytest
import torch
from conftest import DECODERS, ENCODERS
from foreign_models import LLAMA3_TEMPLATE, bos_adding_tokenizer
from reward_parity import assert_same_rewards, tiny_reward_model, tiny_tokenizer
from saved_models import edit_weights, reward_model, saved_model, tokenizer_of
from tokenizers import processors
from training_runs import make_trainer
from transformers.utils import chat_template_utils

from hf_reward.modeling.checkpoint_record import describe
from hf_reward.publishing.export import save_adapter
from hf_reward.publishing.saved_model import SavedModel

QWEN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_conversations_of_a_saved_decoder(make_model_folder, tmp_path, chat_pairs, lora):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved", lora=lora)
    whole = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in chat_pairs[:2]]
    rewards = assert_same_rewards(folder, chat_pairs[:3])
    assert rewards.shape == (3, 2)
    assert assert_same_rewards(folder, whole) == pytest.approx(rewards[:2], rel=1e-5)


@pytest.mark.slow
def test_text_rows_of_an_encoder_and_of_a_trainer(
    make_model_folder, tmp_path, text_pairs, text_tokenizer, pair_tokenizer
):
    folder = tiny_reward_model(ENCODERS["bert"](len(pair_tokenizer)), pair_tokenizer, tmp_path / "bert")
    assert_same_rewards(folder, text_pairs[:3])
    source = make_model_folder("gpt2", tokenizer=text_tokenizer)
    trainer = make_trainer(source, text_pairs, tmp_path / "run", max_steps=2, separator="\n\n", learning_rate=1e-2)
    trainer.train()
    assert_same_rewards(trainer, text_pairs[:3])


def test_a_tokenizer_that_adds_its_end_token_gets_no_second_one_by_the_cards_code(tmp_path, text_pairs):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    folder = tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, tmp_path / "model")
    assert_same_rewards(folder, text_pairs[:2])


def test_ranked_lists_with_arguments_for_the_template(tmp_path):
    template = QWEN.replace("'\n' + m['content']", "'\n' + style | default('') + m['content']")
    tokenizer = tiny_tokenizer(template=template, eos="<|im_end|>")
    folder = tiny_reward_model(DECODERS["qwen3"](len(tokenizer)), tokenizer, tmp_path / "qwen")
    row = {
        "prompt": [{"role": "user", "content": "Q"}],
        "responses": [[{"role": "assistant", "content": each}] for each in ("a", "b b", "c")],
        "ranks": [0, 1, 2],
    }
    plain = assert_same_rewards(folder, [row])
    styled = assert_same_rewards(folder, [{**row, "chat_template_kwargs": {"style": "(brief) "}}])
    assert abs(plain - styled).max() > 1e-3, "the argument reached the template"


def test_a_difference_between_methods_is_detected(make_model_folder, tmp_path, chat_pairs):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    trainer = make_trainer(folder, None, tmp_path / "run", evaluation=chat_pairs)
    with torch.no_grad():
        trainer.model.score.weight += 0.1

    def change(tensors):
        tensors["score.weight"] += 0.2

    trainer.save_model(str(tmp_path / "run"))
    edit_weights(tmp_path / "run" / "model.safetensors", change)
    trainer.save_model = lambda folder: None
    with pytest.raises(AssertionError, match="trainer differs from stock transformers"):
        assert_same_rewards(trainer, chat_pairs[:2])


# --- lengths up to the limit -----------------------------------------------------------------------------------------

_RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
LENGTHS: dict[str, tuple[dict[str, Any], int | None, int]] = {
    "llama": ({}, 48, 48),  # the recorded `max_length` alone limits rotary positions
    "qwen3": ({"max_position_embeddings": 32}, None, 70),  # ... and without one nothing does
    "gpt2": ({"n_positions": 64}, None, 64),
    "opt": ({"max_position_embeddings": 64}, 1024, 64),
    "bert": ({"max_position_embeddings": 64}, None, 64),
    "roberta": ({"max_position_embeddings": 64}, 1024, 63),  # less its `padding_idx + 1`
    "deberta_v2": ({"max_position_embeddings": 32, **_RELATIVE}, 48, 48),
}


@pytest.mark.parametrize("arch", LENGTHS)
def test_rows_up_to_the_last_token_that_training_reads(arch, tmp_path, caplog, pair_tokenizer):
    changes, max_length, longest = LENGTHS[arch]
    tokenizer = pair_tokenizer if arch in ENCODERS else tiny_tokenizer(template=QWEN, eos="<|im_end|>")
    config = {**DECODERS, **ENCODERS}[arch](len(tokenizer))
    config.update(changes)
    folder = tiny_reward_model(config, tokenizer, tmp_path / "model")
    rows = [row_of(tokenizer, length) for length in (32, *range(longest - 4, longest + 1))]
    trainer = make_trainer(folder, None, tmp_path / "run", evaluation=rows, max_length=max_length)
    rewards = assert_same_rewards(trainer, rows)
    assert len(set(rewards[:, 0].round(4))) == len(rows), "each token counts"
    assert not any("longer than" in message for message in caplog.messages), "nothing was cut"


def row_of(tokenizer: Any, length: int) -> dict[str, Any]:
    """Return a pair whose chosen text has the given number of tokens."""
    for count in range(1, 4 * length):
        prompt: Any = "a" * count
        if not tokenizer.chat_template:
            row = {"prompt": prompt, "chosen": "Yes.", "rejected": "No"}
            ids = tokenizer(prompt, "Yes.")["input_ids"]
        else:
            turns = [{"role": "assistant", "content": content} for content in ("Yes.", "No")]
            prompt = [{"role": "user", "content": prompt}]
            row = {"prompt": prompt, "chosen": turns[:1], "rejected": turns[1:]}
            text = tokenizer.apply_chat_template([*prompt, turns[0]], tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == length:
            return row
    raise AssertionError(f"no prompt gives {length} tokens")


# --- tokenizers and templates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("date", ["strftime_now('%d %b %Y')", "date_string | default(strftime_now('%d %b %Y'))"])
@pytest.mark.slow
def test_a_template_that_prints_the_current_date(tmp_path, monkeypatch, chat_pairs, date):
    def set_day(month: int) -> None:
        day = type("Day", (datetime,), {"now": classmethod(lambda cls, tz=None: datetime(2026, month, 1))})
        monkeypatch.setattr(chat_template_utils, "datetime", day)

    set_day(3)
    tokenizer = tiny_tokenizer(template="{{ " + date + " }}" + QWEN, eos="<|im_end|>")
    folder = tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, tmp_path / "model")
    trainer = make_trainer(folder, None, tmp_path / "run", evaluation=chat_pairs[:2])
    rewards = assert_same_rewards(trainer, chat_pairs[:2])
    set_day(9)
    assert assert_same_rewards(tmp_path / "run", chat_pairs[:2]) == pytest.approx(rewards, rel=1e-5)


def test_an_adapter_with_a_new_pad_token(make_model_folder, tmp_path, text_tokenizer, text_pairs):
    base = make_model_folder("llama", tokenizer=text_tokenizer)
    model, tokenizer, folder = reward_model(base, lora=True), tokenizer_of(base), tmp_path / "lora"
    assert len(tokenizer) == len(text_tokenizer) + 1
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), folder)
    assert_same_rewards(folder, text_pairs[:3])


def test_a_tokenizer_that_adds_a_bos_to_that_of_its_template(tmp_path, chat_pairs):
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[PAD]"]
    tokenizer = bos_adding_tokenizer(special, LLAMA3_TEMPLATE, bos=special[0], eos=special[1], pad="[PAD]")
    folder = tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, tmp_path / "model")
    assert_same_rewards(folder, chat_pairs[:3])


# Like DeepSeek's, which prints tool calls only without content, and like others, which need empty content.
_CALLS = "{% for call in m.tool_calls %}{{ call.function.name + ' ' + call.function.arguments | tojson }}{% endfor %}"
_TURN = "{{ '<|im_start|>' + m['role'] + '\n' }}"
NO_CONTENT = {
    "calls instead of content": (
        f"{{% if m.content is defined %}}{{{{ m.content }}}}{{% else %}}{_CALLS}{{% endif %}}",
        None,
    ),
    "content is joined": (f"{{{{ m['content'] + '' }}}}{_CALLS}", ""),
    "content is printed": (f"{{{{ m.content }}}}{_CALLS}", None),
}


@pytest.mark.parametrize("name", NO_CONTENT)
def test_tool_calls_without_content(tmp_path, name):
    content, meant = NO_CONTENT[name]
    template = f"{{% for m in messages %}}{_TURN}{content}{{{{ '<|im_end|>\n' }}}}{{% endfor %}}"
    tokenizer = tiny_tokenizer(template=template, eos="<|im_end|>")
    folder = tiny_reward_model(DECODERS["llama"](len(tokenizer)), tokenizer, tmp_path / "model")

    def row(**content: Any) -> dict[str, Any]:
        called = [{"function": {"name": "weather", "arguments": {"city": city}}} for city in ("Paris", "Rome")]
        answers = [[{"role": "assistant", **content, "tool_calls": [call]}] for call in called]
        return {"prompt": [{"role": "user", "content": "Weather?"}], "chosen": answers[0], "rejected": answers[1]}

    rewards = assert_same_rewards(folder, [row(), row(content=None)], stock_rows=[row(content=meant)] * 2)
    assert abs(rewards[:, 0] - rewards[:, 1]).min() > 1e-3, "the tool call is read"
    if meant is None and "instead" in name:
        with pytest.raises(
            ValueError, match="2 identical responses"
        ):  # the stock template drops the calls next to an empty text
            assert_same_rewards(folder, [row(content="")] * 2)
