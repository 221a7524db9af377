"""The four ways to score agree on ordinary models, and the comparison notices a difference."""

import pytest
import torch
from conftest import DECODERS, ENCODERS
from reward_parity import assert_same_rewards, tiny_reward_model, tiny_tokenizer
from saved_models import edit_weights, saved_model
from training_runs import make_trainer

QWEN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_conversations_of_a_saved_decoder(make_model_folder, tmp_path, chat_pairs, lora):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved", lora=lora)
    whole = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in chat_pairs[:2]]
    rewards = assert_same_rewards(folder, chat_pairs[:3])
    assert rewards.shape == (3, 2)
    assert assert_same_rewards(folder, whole) == pytest.approx(rewards[:2], rel=1e-5)


def test_text_rows_of_an_encoder_and_of_a_trainer(
    make_model_folder, tmp_path, text_pairs, text_tokenizer, pair_tokenizer
):
    folder = tiny_reward_model(ENCODERS["bert"](len(pair_tokenizer)), pair_tokenizer, tmp_path / "bert")
    assert_same_rewards(folder, text_pairs[:3])
    source = make_model_folder("gpt2", tokenizer=text_tokenizer)
    trainer = make_trainer(source, text_pairs, tmp_path / "run", max_steps=2, separator="\n\n", learning_rate=1e-2)
    trainer.train()
    assert_same_rewards(trainer, text_pairs[:3])


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


def test_a_model_that_one_way_reads_otherwise_is_noticed(make_model_folder, tmp_path, chat_pairs):
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
