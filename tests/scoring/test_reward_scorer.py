"""The scorer's rewards equal those of the stock model, for all batches and methods."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_models import FOREIGN, foreign_model, stock_rewards
from hypothesis import given, settings
from hypothesis import strategies as st
from saved_models import reward_model, save, saved_model, tokenizer_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_reward import (
    AutoModelForRewardScoring,
    CheckpointRecord,
    RewardConfig,
    RewardScorer,
    RewardTrainer,
    ScoringError,
)
from hf_reward.data.preference_row import PreferenceFormatError

PROMPTS = [f"Question number {number}: " + "what is it? " * (1 + number % 7) for number in range(6)]
PAIRS = [(PROMPTS[number % 6], f"Answer {number}. " * (1 + number % 4)) for number in range(20)]


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# --- the same reward ---


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "gpt2", "opt", "bert", "deberta_v2", "modernbert"])
def test_rewards_are_the_stock_models(arch: str, make_model_folder: Any, tmp_path: Path) -> None:
    folder = saved_model(make_model_folder(arch), tmp_path / "saved")
    expected = _one_by_one(folder, PAIRS)
    assert np.std(expected) > 0.01
    scorer = RewardScorer.from_pretrained(folder)
    for options in ({}, {"batch_tokens": 60}, {"packing": False, "batch_tokens": 200}):
        again: Any = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, **options) if options else scorer
        found = again.score(*zip(*PAIRS, strict=True))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5, err_msg=str(options))


def _one_by_one(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rewards = []
    for prompt, response in pairs:
        if tokenizer.chat_template is None:
            inputs = tokenizer(prompt, response, return_tensors="pt")
            inputs = {name: value for name, value in inputs.items() if name in ("input_ids", "attention_mask")} | (
                {"token_type_ids": inputs["token_type_ids"]} if model.config.model_type == "bert" else {}
            )
        else:
            text = tokenizer.apply_chat_template(turns(prompt, response), tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            rewards.append(float(model(**inputs).logits[0, 0]))
    return rewards


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_models_are_scored_as_their_stock_class_scores_them(name: str, tmp_path: Path) -> None:
    folder = foreign_model(name, tmp_path / "foreign")
    scorer = RewardScorer.from_pretrained(folder)
    expected = stock_rewards(folder, PAIRS)
    assert np.std(expected) > 0.01
    close(scorer.score(*zip(*PAIRS, strict=True)), expected)
    close(scorer.score_conversations([turns(*pair) for pair in PAIRS]), expected)


def test_an_adapter_is_scored_with_its_base(make_model_folder: Any, tmp_path: Path) -> None:
    source = make_model_folder("llama")
    model = reward_model(source, lora=True)
    folder = save(model, tokenizer_of(source), tmp_path / "adapter")
    merged = save(model.merge_and_unload(), tokenizer_of(source), tmp_path / "merged")
    scorer = RewardScorer.from_pretrained(folder)
    assert scorer.record is not None
    close(scorer.score(*zip(*PAIRS, strict=True)), _one_by_one(merged, PAIRS))


def test_a_loaded_model_is_used_unchanged(folder: Path, scorer: RewardScorer) -> None:
    model = AutoModelForRewardScoring.from_pretrained(folder)
    taken = RewardScorer(model, AutoTokenizer.from_pretrained(folder), CheckpointRecord.load(folder))
    model.train()
    close(taken.score(["a"], ["b"]), scorer.score(["a"], ["b"]))
    assert model.training, "the caller's model is left as it was"
    assert model.config._attn_implementation == scorer.model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="needs its tokenizer"):
        RewardScorer(model)
    with pytest.raises(TypeError, match="dtype"):
        RewardScorer(model, scorer.tokenizer, dtype="bfloat16")


def test_all_methods_give_the_same_reward(scorer: RewardScorer) -> None:
    prompt, response = PAIRS[3]
    expected = float(scorer.score([prompt], [response])[0])
    text = str(scorer.tokenizer.apply_chat_template(turns(prompt, response), tokenize=False))
    ways = {
        "message prompt, text response": scorer.score([turns(prompt)], [response]),
        "text prompt, message response": scorer.score([prompt], [turns(prompt, response)[1:]]),
        "response that repeats the prompt": scorer.score([turns(prompt)], [turns(prompt, response)]),
        "conversation": scorer.score_conversations([turns(prompt, response)]),
        "formatted text": scorer.score_texts([text]),
        "among others": scorer.score(*zip(*PAIRS, strict=True))[3:4],
        "ranked": scorer.rank(prompt, ["x", response, "y " * 40]).rewards[1:2],
        "a batch of columns": scorer({"prompt": [prompt], "response": [response]})["reward"],
        "TRL": scorer(prompts=[turns(prompt)], completions=[turns(prompt, response)[1:]], completion_ids=[[1]]),
    }
    for way, found in ways.items():
        np.testing.assert_allclose(found, [expected], rtol=1e-5, atol=1e-5, err_msg=way)


_words = st.lists(st.sampled_from(["yes", "no", "Paris", "\n\n", "é", "?", "longer word"]), min_size=1, max_size=30)
_texts = _words.map(" ".join).filter(str.strip)


@pytest.fixture(scope="module")
def shared_scorer(tmp_path_factory: Any) -> RewardScorer:
    return RewardScorer.from_pretrained(foreign_model("Skywork-Reward-V2-Qwen3", tmp_path_factory.mktemp("shared")))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(_texts, _texts), min_size=1, max_size=12), st.integers(1, 400), st.randoms())
def test_a_reward_depends_on_nothing_but_its_text(shared_scorer: Any, pairs: Any, budget: int, random: Any) -> None:
    pairs = [
        (prompt, f"So: {response}") for prompt, response in pairs
    ]  # a text that starts with its prompt is an error
    alone = [float(shared_scorer.score([prompt], [response])[0]) for prompt, response in pairs]
    order = list(range(len(pairs)))
    random.shuffle(order)
    before = shared_scorer._sequences.batch_tokens
    shared_scorer._sequences.batch_tokens = budget
    try:
        found = shared_scorer.score(*zip(*(pairs[place] for place in order), strict=True))
    finally:
        shared_scorer._sequences.batch_tokens = before
    close(found, [alone[place] for place in order])


def test_no_token_is_computed_twice(scorer: RewardScorer) -> None:
    seen: list[int] = []
    bare: Any = scorer.model
    bare.base_model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].numel()), with_kwargs=True)
    prompt = "A long prompt that many answers share, word after word. " * 4
    answers = [f"answer {number}" for number in range(16)]
    scorer.rank(prompt, [*answers, *answers])
    ids = [each.input_ids for each in scorer.encode(_requests(prompt, answers))]
    shared = next(place for place in range(min(map(len, ids))) if len({row[place] for row in ids}) > 1)
    assert sum(seen) == shared + sum(len(row) - shared for row in ids)
    seen.clear()
    scorer.score([prompt] * 16, answers)
    assert len(seen) == 1


def _requests(prompt: str, answers: list[str]) -> Any:
    from hf_reward.data.score_request import read_request

    return [read_request(prompt, answer) for answer in answers]


def test_repeated_calls_are_bitwise_equal(scorer: RewardScorer) -> None:
    one, other = (scorer.score(*zip(*PAIRS, strict=True)) for _ in range(2))
    assert one.tobytes() == other.tobytes()


# --- methods ---


def test_rank_and_best_of_n(scorer: RewardScorer) -> None:
    lists = [["b", "a b c", "no"], ["only one"], ["d", "d", "e f"]]
    found = scorer.best_of_n(PROMPTS[:3], lists)
    for prompt, responses, ranking in zip(PROMPTS, lists, found, strict=False):
        rewards = scorer.score([prompt] * len(responses), responses)
        close(ranking.rewards, rewards)
        assert [ranking.rewards[place] for place in ranking.order] == sorted(ranking.rewards, reverse=True)
        assert ranking.best == responses[int(np.argmax(rewards))]
    assert found[2].order.index(0) < found[2].order.index(1), "equal rewards keep their order"


def test_compare_is_bradley_terry_with_the_stored_temperature(folder: Path) -> None:
    scorer = RewardScorer.from_pretrained(folder)
    a, b = (float(reward) for reward in scorer.score(["Why?"] * 2, ["Because.", "I do not know at all."]))
    assert scorer.compare("Why?", "Because.", "I do not know at all.") == pytest.approx(1 / (1 + math.exp(b - a)))
    assert scorer.compare("Why?", "Because.", "Because.") == 0.5
    record = CheckpointRecord.load(folder)
    assert record is not None
    record.calibration = {"temperature": 2.5}
    record.save(folder)
    cooled = RewardScorer.from_pretrained(folder)
    expected = 1 / (1 + math.exp((b - a) / 2.5))
    assert cooled.compare("Why?", "Because.", "I do not know at all.") == pytest.approx(expected)
    both = cooled.compare("Why?", "x", "y") + cooled.compare("Why?", "y", "x")
    assert both == pytest.approx(1.0)


def test_a_bfloat16_model_returns_float32_rewards(folder: Path, scorer: RewardScorer) -> None:
    half = RewardScorer.from_pretrained(folder, dtype="bfloat16")
    assert half.fingerprint()["dtype"] == "bfloat16"
    found = half.score(*zip(*PAIRS, strict=True))
    assert found.dtype == np.float32
    assert 0 < np.abs(found - scorer.score(*zip(*PAIRS, strict=True))).max() < 0.1


def test_the_fingerprint_changes_with_everything_that_determines_a_reward(folder: Path) -> None:
    same, scorer = RewardScorer.from_pretrained(folder).fingerprint(), RewardScorer.from_pretrained(folder)
    assert same == scorer.fingerprint()
    assert json.loads(json.dumps(same)) == same
    scorer.model.config.rope_parameters["rope_theta"] += 1  # type: ignore[index]
    assert scorer.fingerprint()["computation"] != same["computation"]
    with torch.no_grad():
        scorer.model.score.weight[0, 0] += 1e-3  # type: ignore[index]
    assert scorer.fingerprint()["weights"] != same["weights"]
    changed = RewardScorer.from_pretrained(folder, max_length=99).fingerprint()
    assert changed["format"] != same["format"]


# --- formatting ---


@pytest.mark.parametrize("name", ["Skywork-Reward-Llama-3.1", "Skywork-Reward-Gemma-2", "RM-Mistral-7B"])
def test_a_double_bos_is_impossible(name: str, tmp_path: Path) -> None:
    folder = foreign_model(name, tmp_path / "foreign")
    scorer = RewardScorer.from_pretrained(folder)
    bos = str(scorer.tokenizer.bos_token)
    text = str(scorer.tokenizer.apply_chat_template(turns("Why?", "Because."), tokenize=False))
    assert text.startswith(bos)
    expected = scorer.score(["Why?"], ["Because."])
    for form in (text, text.removeprefix(bos), bos + text):
        close(scorer.score_texts([form]), expected)


def test_a_model_trained_on_text_gets_text_despite_a_chat_template(
    make_model_folder: Any, text_pairs: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    args = RewardConfig(output_dir=str(folder), max_steps=1, report_to="none", use_cpu=True, separator=" | ")
    trainer = RewardTrainer(model=str(make_model_folder("llama")), args=args, train_dataset=text_pairs)
    trainer.train()
    trainer.save_model()
    record = CheckpointRecord.load(folder)
    assert record is not None
    assert record.rows == "text"
    scorer = RewardScorer.from_pretrained(folder)
    row = trainer.train_dataset[0]  # type: ignore[index]
    encoded = scorer.encode(_requests(text_pairs[0]["prompt"], [text_pairs[0]["chosen"], text_pairs[0]["rejected"]]))
    assert [each.input_ids for each in encoded] == row["input_ids"]


def test_scoring_formats_texts_as_in_training(make_model_folder: Any, chat_pairs: Any, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    args = RewardConfig(output_dir=str(folder), max_steps=1, report_to="none", use_cpu=True, max_length=40)
    trainer = RewardTrainer(model=str(make_model_folder("llama")), args=args, train_dataset=chat_pairs)
    trainer.train()
    trainer.save_model()
    record = CheckpointRecord.load(folder)
    assert record is not None
    assert (record.rows, record.format["max_length"]) == ("conversations", 40)
    scorer = RewardScorer.from_pretrained(folder)
    longest = "word " * 60 + "what is it?"
    found = scorer.score_requests(_requests(longest, ["Short."]))
    assert found.cut == 1
    assert not found.problems
    assert len(scorer.encode(_requests(longest, ["Short."]))[0].input_ids) <= 40


def test_truncation_does_not_depend_on_other_responses(scorer: RewardScorer) -> None:
    tight = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, max_length=60)
    prompt = "word " * 60 + "what is it?"
    answers = ["Yes.", "It is a rather longer answer, with many words."]
    together = tight.score([prompt] * 2, answers)
    close(together, [tight.score([prompt], [answer])[0] for answer in answers])


# --- invalid input ---


def test_rows_that_cannot_be_scored_do_not_affect_the_others(scorer: RewardScorer) -> None:
    tight = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, max_length=50)
    responses = ["fine", "", "word " * 400, "word " * 100, "also fine"]
    with pytest.raises(ScoringError, match=r"3 of 5 .*number 1.*empty") as caught:
        tight.score(["Why?"] * 5, responses)
    assert np.isfinite(caught.value.rewards[[0, 4]]).all()
    assert np.isnan(caught.value.rewards[1:4]).all()
    reasons = caught.value.problems
    assert list(reasons) == [1, 2, 3]
    assert "too large" in reasons[2]  # rejected by its number of characters
    assert "too long" in reasons[3]  # rejected by its number of tokens
    close(caught.value.rewards[[0, 4]], tight.score(["Why?"] * 2, ["fine", "also fine"]))


def test_invalid_values_are_errors_with_their_row_before_anything_is_computed(scorer: RewardScorer) -> None:
    with pytest.raises(PreferenceFormatError, match=r"Row 1: `response` .* half a character"):
        scorer.score(["Why?"] * 2, ["fine", "half \ud83d of a pair"])


def test_empty_responses_are_scored_on_request_and_in_trl(scorer: RewardScorer) -> None:
    found = scorer.score(["Why?", "Why?"], ["", "Because."], allow_empty=True)
    assert np.isfinite(found).all()
    close(scorer(prompts=["Why?"], completions=[""]), found[:1])


def test_a_megabyte_is_truncated_in_the_prompt_and_rejected_in_the_response(scorer: RewardScorer) -> None:
    scorer = RewardScorer(scorer.model, scorer.tokenizer, scorer.record, max_length=512)
    result = scorer.score_requests(_requests("tell me more " * 80_000, ["Yes."]))
    assert not result.problems
    assert result.cut == 1
    result = scorer.score_requests(_requests("Why?", ["no more " * 130_000]))
    assert "too large: the response has 1,040,000 characters" in result.problems[0]


def test_without_a_max_length_nothing_is_truncated_and_extreme_lengths_are_rejected(scorer: RewardScorer) -> None:
    long = "tell me more " * 100
    result = scorer.score_requests(_requests(long, ["Yes."]))
    assert result.cut == 0
    stock = scorer.tokenizer.apply_chat_template(
        [{"role": "user", "content": long}, {"role": "assistant", "content": "Yes."}], return_tensors="pt"
    )["input_ids"]
    assert stock.shape[1] > scorer.model.config.max_position_embeddings
    with torch.no_grad():
        close(result.rewards, scorer.model(input_ids=stock).logits[0].tolist())
    result = scorer.score_requests(_requests("tell me more " * 80_000, ["Yes."]))
    assert "above the limit of 131,072." in result.problems[0]


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        (["a"], ["b", "c"], "1 prompts for 2 responses"),
        ("a", "b", "must be a list"),
        (["a", "a"], ["b", True], "Row 1: `response` must be text, but is bool"),
        ([None], ["b"], "Row 0: `prompt` must be text or messages, but is null"),
        ([[{"role": "user"}]], ["b"], "`role` and `content`"),
    ],
)
def test_invalid_arguments_are_errors_before_anything_is_computed(
    scorer: RewardScorer, prompts: Any, responses: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scorer.score(prompts, responses)


def test_conversations_must_end_with_the_assistant(scorer: RewardScorer) -> None:
    with pytest.raises(PreferenceFormatError, match="end with the user"):
        scorer.score_conversations([turns("Why?")])


def test_rewards_that_are_not_finite_are_reported(scorer: RewardScorer) -> None:
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight[scorer.tokenizer.convert_tokens_to_ids("~")] = float("nan")  # type: ignore
    result = scorer.score_requests(_requests("Why?", ["fine", "not ~ fine", "fine too"]))
    assert list(result.problems) == [1]
    assert "nan" in result.problems[1]
    assert np.isfinite(result.rewards[[0, 2]]).all()
    assert scorer(prompts=["Why?"] * 2, completions=["~", "fine"])[0] is None


def test_token_ids_beyond_the_vocabulary_never_reach_the_model(scorer: RewardScorer) -> None:
    from hf_reward.preprocessing.response_encoding import EncodedResponse

    wrong = [EncodedResponse(input_ids=ids) for ids in ([1, 2, 10**6], [1, 2], [], [-1, 3])]
    result = scorer.score_encoded(wrong)
    assert list(result.problems) == [0, 2, 3]
    assert np.isfinite(result.rewards[1])


def test_a_batch_of_columns_keeps_them_and_reports_problems(scorer: RewardScorer) -> None:
    batch = {
        "prompt": np.array(["Why?", "Why?", "How?"]),
        "response": np.array(["Because.", "", "So."]),
        "n": [1, 2, 3],
    }
    found = scorer(batch)
    assert list(found) == ["prompt", "response", "n", "reward", "problem"]
    assert found["n"] == [1, 2, 3]
    assert "empty" in found["problem"][1]
    close(found["reward"][[0, 2]], scorer.score(["Why?", "How?"], ["Because.", "So."]))
    assert np.isnan(found["reward"][1])
    talks = scorer({"messages": [turns("Why?", "Because."), turns("Why?")]})
    close(talks["reward"][:1], found["reward"][:1])
    assert "end with the user" in talks["problem"][1]
    with pytest.raises(PreferenceFormatError, match=r"nothing to score.*Found: question"):
        scorer({"question": ["Why?"]})


def test_empty_input_is_not_an_error(scorer: RewardScorer) -> None:
    assert scorer.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("token*")], "no tokenizer"),
        (lambda folder: None, "has no reward head"),
    ],
    ids=["no tokenizer", "a language model"],
)
def test_folders_that_cannot_score(change: Any, message: str, folder: Path, make_model_folder: Any) -> None:
    source = folder if "tokenizer" in message else make_model_folder("llama", "plain")
    change(source)
    with pytest.raises(ValueError, match=message):
        RewardScorer.from_pretrained(source)


def test_a_model_with_two_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_labels=2"):
        RewardScorer.from_pretrained(foreign_model("Skywork-Reward-Llama-3.1", tmp_path / "two", labels=2))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        RewardScorer.from_pretrained("./nowhere")


def test_a_name_that_exists_neither_locally_nor_on_the_hub_is_an_error() -> None:
    with pytest.raises(OSError, match=r"There is no folder 'outputs/nope'.*loading it from the Hub failed"):
        RewardScorer.from_pretrained("outputs/nope")


def test_conversations_of_several_turns_need_a_template(tmp_path: Path) -> None:
    scorer = RewardScorer.from_pretrained(foreign_model("OpenAssistant-DeBERTa", tmp_path / "pair"))
    with pytest.raises(ScoringError, match="no chat template"):
        scorer.score_conversations([turns("a", "b", "c", "d")])


def test_verify_raises_an_error_for_changed_rewards(folder: Path) -> None:
    from saved_models import edit_weights

    assert RewardScorer.from_pretrained(folder, verify=True)
    edit_weights(folder / "model.safetensors", lambda tensors: tensors["score.weight"].mul_(1.01))
    with pytest.raises(ValueError, match="does not give its recorded rewards"):
        RewardScorer.from_pretrained(folder, verify=True)


# --- memory ---


def test_a_batch_that_does_not_fit_is_halved(scorer: RewardScorer, monkeypatch: Any, caplog: Any) -> None:
    expected = scorer.score(*zip(*PAIRS, strict=True))
    forward = type(scorer.model).forward

    def small(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(scorer.model), "forward", small)
    close(scorer.score(*zip(*PAIRS, strict=True)), expected)
    assert "halved" in caplog.text
    with pytest.raises(torch.OutOfMemoryError):
        scorer.score(["word " * 200], ["too much"])


def test_adapters_of_peft_config_are_not_trained_further(make_model_folder: Any, tmp_path: Path) -> None:
    source = make_model_folder("llama")
    folder = save(reward_model(source, lora=True), tokenizer_of(source), tmp_path / "adapter")
    scorer = RewardScorer.from_pretrained(folder)
    assert not scorer.model.training
    assert not any(weight.requires_grad for weight in scorer.model.parameters())
