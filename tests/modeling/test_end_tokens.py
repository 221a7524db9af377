"""T5 and BART compute the reward at the last EOS token, for any number of EOS tokens and any template."""

import pytest
import torch
from conftest import randomize_head
from tokenizers.processors import TemplateProcessing
from training_runs import make_trainer
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.modeling.end_tokens import reward_end_token

T5_SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "initializer_factor": 2.0}
BART_SIZES = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "init_std": 0.3,
}
CHATML = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ROWS = [
    {"prompt": "What ends a sentence? ", "chosen": "A full stop.", "rejected": "The token </s> does, </s> or so."},
    {"prompt": "And in HTML </s> ?", "chosen": "The end of a struck-out part.", "rejected": "no"},
    {"prompt": "One more: ", "chosen": "yes, one", "rejected": "no, two or three"},
]


@pytest.fixture
def end_tokenizer(text_tokenizer):
    """A tokenizer that appends its EOS token by itself, as T5's does."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text_tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    return tokenizer


@pytest.fixture(params=["t5", "bart"])
def folder(request, end_tokenizer, tmp_path):
    """A classifier with a random head that reads at its EOS token."""
    ids = {"pad_token_id": end_tokenizer.pad_token_id, "eos_token_id": end_tokenizer.eos_token_id}
    sizes = {"vocab_size": len(end_tokenizer), "num_labels": 1, **ids, "decoder_start_token_id": ids["pad_token_id"]}
    config = T5Config(**T5_SIZES, **sizes) if request.param == "t5" else BartConfig(**BART_SIZES, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    randomize_head(model)
    model.save_pretrained(tmp_path / "model")
    end_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_rows_that_hold_the_end_token_are_trained_on_evaluated_saved_and_scored(folder, tmp_path):
    trainer = make_trainer(folder, ROWS, tmp_path / "run", evaluation=ROWS, per_device_eval_batch_size=3)
    counts = {
        ids.count(trainer.processing_class.eos_token_id) for row in trainer.train_dataset["input_ids"] for ids in row
    }
    assert len(counts) > 1, "a stock batch of these rows is refused"
    trainer.train()
    rewards = trainer.predict(trainer.eval_dataset).predictions
    trainer.save_model(str(tmp_path / "saved"))
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        alone = [
            [stock(input_ids=torch.tensor([ids])).logits.item() for ids in row]
            for row in trainer.eval_dataset["input_ids"]
        ]
    assert rewards == pytest.approx(torch.tensor(alone).numpy(), abs=1e-5)
    assert rewards.std() > 0.01
    scorer = RewardScorer.from_pretrained(tmp_path / "saved")
    prompts = [row["prompt"] for row in ROWS]
    for side, column in (("chosen", 0), ("rejected", 1)):
        scored = scorer.score(prompts, [row[side] for row in ROWS])
        assert list(scored) == pytest.approx(rewards[:, column].tolist(), abs=1e-5)


def test_a_template_without_the_end_token_is_refused_before_training(folder, end_tokenizer, tmp_path):
    end_tokenizer.chat_template = CHATML
    trainer = make_trainer(folder, ROWS, tmp_path / "text", processing_class=end_tokenizer)
    with pytest.raises(ValueError, match=r"of the tokenizer: .* computes the reward at the last EOS token"):
        trainer.train()
    chats = [
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "c"}],
        }
    ]
    trainer = make_trainer(folder, chats * 2, tmp_path / "chat", processing_class=end_tokenizer)
    with pytest.raises(ValueError, match=r"Row 0: .*ends with it, or remove the template"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_template_that_ends_each_turn_with_it_is_trained_on(folder, end_tokenizer, tmp_path):
    end_tokenizer.chat_template = CHATML.replace("'\n'", "eos_token")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    chats = [
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "assistant", "content": "no, not"}],
        }
        for prompt in (turns, turns[:1])
    ]
    trainer = make_trainer(folder, chats, tmp_path / "run", processing_class=end_tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = RewardScorer.from_pretrained(tmp_path / "saved")
    expected = trainer.predict(trainer.train_dataset).predictions[:, 0]
    scored = reloaded.score([row["prompt"] for row in chats], ["yes", "yes"])
    assert list(scored) == pytest.approx(expected.tolist(), abs=1e-5)


def test_other_models_read_elsewhere(make_model_folder):
    for arch in ("llama", "bert"):
        assert reward_end_token(AutoModelForRewardScoring.from_pretrained(make_model_folder(arch))) is None
