"""The longest supported sequence: found by running each architecture, and the same in all modules."""

import json

import pytest
import torch
from conftest import ENCODERS, randomize_head
from saved_models import reward_model, saved_model, tokenizer_of
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BloomConfig,
    CamembertConfig,
    CTRLConfig,
    DebertaV2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    LongformerConfig,
    MPNetConfig,
    MptConfig,
    NystromformerConfig,
    OPTConfig,
    Phi3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from hf_reward import RewardConfig, RewardScorer, RewardTrainer
from hf_reward.modeling.position_limits import longest_sequence, position_limit
from hf_reward.publishing.verify import verify_checkpoint

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
GPT_SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2}
COMMON = {"vocab_size": 40, "num_labels": 1, "max_position_embeddings": 24}
FROM_PADDING = {**SIZES, **COMMON, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
OPT_SIZES = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BART_SIZES = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
LIMITS = {
    "bert": (BertConfig(**SIZES, **COMMON), 24),
    "gpt2": (GPT2Config(vocab_size=40, num_labels=1, n_positions=24, pad_token_id=0, **GPT_SIZES), 24),
    "opt": (OPTConfig(**OPT_SIZES, **COMMON, word_embed_proj_dim=16), 24),
    "bart": (
        BartConfig(**BART_SIZES, **COMMON, encoder_attention_heads=2, decoder_attention_heads=2, eos_token_id=2),
        24,
    ),
    "roberta": (RobertaConfig(**FROM_PADDING), 22),
    "xlm-roberta": (XLMRobertaConfig(**FROM_PADDING), 22),
    "camembert": (CamembertConfig(**FROM_PADDING), 22),
    "longformer": (LongformerConfig(**FROM_PADDING, attention_window=4), 22),
    "mpnet": (MPNetConfig(**{**FROM_PADDING, "pad_token_id": 1}), 22),
    "nystromformer": (NystromformerConfig(**SIZES, **COMMON, segment_means_seq_len=24, num_landmarks=24), 24),
    "gptj": (GPTJConfig(vocab_size=40, num_labels=1, n_positions=24, rotary_dim=4, pad_token_id=0, **GPT_SIZES), 24),
    "ctrl": (CTRLConfig(vocab_size=40, num_labels=1, n_positions=24, dff=16, pad_token_id=0, **GPT_SIZES), 24),
    "mpt": (MptConfig(vocab_size=40, num_labels=1, d_model=16, n_heads=2, n_layers=1, max_seq_len=24), 24),
    "llama": (LlamaConfig(**SIZES, **COMMON), None),
    "bloom": (BloomConfig(vocab_size=40, num_labels=1, hidden_size=16, n_layer=1, n_head=2), None),
    "deberta": (
        DebertaV2Config(**SIZES, **COMMON, position_biased_input=False, relative_attention=True, type_vocab_size=0),
        None,
    ),
    "deberta with absolute positions": (DebertaV2Config(**SIZES, **COMMON), 24),
}


def runs(model: torch.nn.Module, tokens: int) -> bool:
    ids = torch.arange(tokens)[None] % 20 + 10
    ids[0, -1] = 2  # BART reads at its end token
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", LIMITS)
def test_a_model_supports_its_limit_and_not_one_token_more(name):
    config, limit = LIMITS[name]
    model = AutoModelForSequenceClassification.from_config(config).eval()
    assert position_limit(model) == limit
    assert runs(model, limit or 100)
    assert limit is None or not runs(model, limit + 1)


def test_rotary_positions_end_where_frequencies_begin_to_follow_the_batch():
    grouped = {**SIZES, **COMMON, "num_key_value_heads": 2, "initializer_range": 0.5}
    dynamic = LlamaConfig(**grouped, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    long = Phi3Config(**grouped, pad_token_id=0, original_max_position_embeddings=12, rope_parameters=factors)
    yarn = LlamaConfig(**grouped, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4})
    for config, limit in ((dynamic, 24), (long, 12), (yarn, None)):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.config.pad_token_id = 0
        assert position_limit(model) == limit
        with torch.no_grad():
            row = torch.arange(10, 20)[None]
            alone = model(input_ids=row).logits.item()
            for beside, same in ((limit or 40, True), ((limit or 40) + 20, limit is None)):
                batch = torch.full((2, beside), 9)
                batch[0] = torch.cat([row[0], torch.zeros(beside - 10, dtype=torch.long)])
                found = model(input_ids=batch, attention_mask=(batch != 0).long()).logits[0].item()
                assert (abs(found - alone) < 1e-4) == same


def test_the_shorter_of_the_record_and_the_positions_counts(make_model_folder):
    bert, llama = (reward_model(make_model_folder(arch)) for arch in ("bert", "llama"))
    assert [longest_sequence(bert, given) for given in (None, 100, 9999)] == [512, 100, 512]
    assert [longest_sequence(llama, given) for given in (None, 100, 9999)] == [None, 100, 9999]
    assert longest_sequence(reward_model(make_model_folder("llama", "lora"), lora=True), 7) == 7


def _exact_rows(tokenizer, lengths):
    """Prompts whose formatted row with the response `Yes.` has so many tokens."""
    rows = []
    for length in lengths:
        for words in range(1, 4 * length):
            prompt = "a" * words
            if tokenizer.chat_template:
                turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes."}]
                text = tokenizer.apply_chat_template(turns, tokenize=False)
                found = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            else:
                found = len(tokenizer(prompt, "Yes.")["input_ids"])
            if found == length:
                rows.append(prompt)
                break
    assert len(rows) == len(lengths)
    return rows


def _limit_in_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("arch", ["llama", "bert", "roberta", "deberta_v2", "opt"])
def test_scorer_trainer_and_stock_agree_up_to_the_last_token(arch, make_model_folder, tmp_path, caplog):
    folder = make_model_folder(arch)
    own = {"llama": 128, "deberta_v2": 512}
    limit = own.get(arch) or position_limit(reward_model(folder))
    if arch == "llama":
        _limit_in_config(folder, max_position_embeddings=64)
    args = RewardConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", max_length=own.get(arch, 4096)
    )
    tokenizer = tokenizer_of(folder)
    prompts = _exact_rows(tokenizer, [20, limit - 4, limit - 3, limit - 1, limit])
    rows = [
        {"prompt": prompt, "chosen": "Yes.", "rejected": "No"}
        if tokenizer.chat_template is None
        else {
            "prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
        for prompt in prompts
    ]
    trainer = RewardTrainer(reward_model(folder), args, train_dataset=rows, processing_class=tokenizer)
    assert trainer.args.max_length == limit
    trained = trainer.predict(rows).predictions[:, 0]
    trainer.save_model()
    scorer = RewardScorer.from_pretrained(tmp_path / "out")
    scored = scorer.score([row["prompt"] for row in rows], [row["chosen"] for row in rows])
    assert not any("longer than" in message for message in caplog.messages)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer, found = AutoTokenizer.from_pretrained(tmp_path / "out"), []
    for row in rows:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        else:
            inputs = tokenizer(row["prompt"], "Yes.", return_tensors="pt")
        with torch.no_grad():
            found.append(stock(**inputs).logits.item())
    assert torch.tensor(found).std() > 0.01
    assert scored.tolist() == pytest.approx(found, rel=1e-5, abs=1e-5)
    assert trained.tolist() == pytest.approx(found, rel=1e-5, abs=1e-5)


def test_longer_texts_are_cut_and_warned_of_once_with_their_number(make_model_folder, tmp_path, caplog):
    folder = saved_model(make_model_folder("bert"), tmp_path / "saved")
    scorer = RewardScorer.from_pretrained(folder)
    prompts, responses = ["a" * 900, "a", "b" * 2000], ["Yes."] * 3
    scorer.score(prompts, responses)
    said = [message for message in caplog.messages if "longer than" in message]
    assert len(said) == 1
    assert said[0].startswith("2 of 3 texts are longer than the model's limit of 512 tokens")
    scorer.score(prompts, responses)
    assert len([message for message in caplog.messages if "longer than" in message]) == 1


@pytest.mark.parametrize(("arch", "max_length"), [("bert", 1024), ("gpt2", None)])
def test_training_is_capped_before_the_first_step(arch, max_length, make_model_folder, tmp_path, text_pairs, caplog):
    folder = make_model_folder(arch)
    rows = [{**row, "prompt": "word " * 150 + row["prompt"]} for row in text_pairs[:2]]
    args = RewardConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", max_length=max_length
    )
    trainer = RewardTrainer(str(folder), args, train_dataset=rows)
    assert any(f"`max_length` is {max_length}, but this model supports" in message for message in caplog.messages)
    assert (args.max_length, trainer.args.max_length) == (max_length, 512)
    trainer.train()
    assert trainer.data_summaries["train"].cut == 2
    assert trainer.record().format["max_length"] == 512


def test_rows_that_were_prepared_longer_are_refused_with_their_number(make_model_folder, tmp_path, text_pairs):
    from hf_reward import FormatRule, prepare_preferences
    from hf_reward.preprocessing.preparation import PreparationRule

    folder = make_model_folder("bert")
    rows = [text_pairs[0], {**text_pairs[1], "prompt": "word " * 500}]
    data, _ = prepare_preferences(rows, tokenizer_of(folder), PreparationRule(format=FormatRule(max_length=None)))
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = RewardTrainer(str(folder), args, train_dataset=data)
    with pytest.raises(ValueError, match=r"at most 512 tokens, but 1 of 2 rows are longer. The first is row 1 with"):
        trainer.train()


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama"])
def test_verify_checks_a_text_of_maximum_length(arch, make_model_folder, tmp_path):
    folder = make_model_folder(arch)
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none", max_length=256)
    tokenizer = tokenizer_of(folder)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    if tokenizer.chat_template is not None:
        rows = [{name: [{"role": "user" if name == "prompt" else "assistant", "content": value}]
                 for name, value in rows[0].items()}]  # fmt: skip
    trainer = RewardTrainer(reward_model(folder), args, train_dataset=rows, processing_class=tokenizer)
    trainer.save_model()
    found = verify_checkpoint(tmp_path / "out", only=["alone", "right"])
    assert found.equal
    last = trainer.record().probes["conversations"][-1]
    assert (last["name"], len(last["input_ids"].split())) == ("longest", 256)
    check = next(check for check in found.checks if check.name == "token ids, scorer")
    assert "for texts of up to 256 tokens" in check.detail
    # The fault as it was: the scorer reads less than training did.
    path = tmp_path / "out" / "reward_config.json"
    record = json.loads(path.read_text())
    record["format"]["max_length"] = 252
    path.write_text(json.dumps(record))
    found = verify_checkpoint(tmp_path / "out", only=["alone"])
    assert [check.name for check in found.failures] == ["token ids, scorer"]


def test_a_tiny_mpt_is_saved(make_model_folder, tmp_path, chat_tokenizer):
    torch.manual_seed(0)
    config = MptConfig(vocab_size=500, d_model=32, n_heads=4, n_layers=1, max_seq_len=64)
    from transformers import MptForCausalLM

    MptForCausalLM(config).save_pretrained(tmp_path / "mpt")
    chat_tokenizer.save_pretrained(tmp_path / "mpt")
    rows = [
        {
            "prompt": [{"role": "user", "content": "word " * 40}],
            "chosen": [{"role": "assistant", "content": "Yes."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        }
    ] * 2
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = RewardTrainer(str(tmp_path / "mpt"), args, train_dataset=rows)
    assert trainer.args.max_length == 64
    trainer.train()
    randomize_head(trainer.model)
    trainer.save_model()
    reward = RewardScorer.from_pretrained(tmp_path / "out").score([rows[0]["prompt"]], [rows[0]["chosen"]])[0]
    assert reward == pytest.approx(trainer.predict(rows[:1]).predictions[0, 0], rel=1e-5)


def test_every_encoder_of_the_suite_runs_at_its_limit(make_model_folder):
    for arch in ENCODERS:
        model = reward_model(make_model_folder(arch))
        assert runs(model, position_limit(model) or 600)
