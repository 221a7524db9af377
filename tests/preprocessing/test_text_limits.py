"""Very long texts are refused by their characters, or shortened without a change of their ids."""

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_reward.data.interface import Interface, used_through
from hf_reward.data.score_request import ScoreRequest, request_from_text
from hf_reward.preprocessing import text_limits
from hf_reward.preprocessing.response_encoding import CONVERSATIONS, TEXT, ResponseEncoder, too_many_tokens
from hf_reward.preprocessing.text_encoding import cuts_keep_ids
from hf_reward.preprocessing.text_limits import TextLimits, without_middle
from hf_reward.preprocessing.tokenization import FormatRule, _first_that_fits

MAX_LENGTH = 24
CORPUS = ["Water boils at one hundred degrees, and ice melts when the sun shines on it. Why? Who's asked 42 times."] * 3
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRANGE = "{% for m in messages %}{{ m.content | replace('the', 'a') }};{% endfor %}"


def _trained(kind: str) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    options: dict[str, Any] = {"vocab_size": 330, "special_tokens": special, "show_progress": False}
    if kind == "byte-level BPE":
        found = Tokenizer(models.BPE())
        found.normalizer, found.decoder = normalizers.NFC(), decoders.ByteLevel()
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    elif kind == "WordPiece":
        found = Tokenizer(models.WordPiece(unk_token="<unk>"))
        found.normalizer, found.decoder = normalizers.BertNormalizer(), decoders.WordPiece()
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    else:
        found = Tokenizer(models.Unigram())
        spaces = normalizers.Replace(Regex(" {2,}"), " ")
        found.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), spaces])
        found.pre_tokenizer, found.decoder = pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    found.train_from_iterator(CORPUS, trainer)
    found.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A </s> $B </s>", [("<s>", 1), ("</s>", 2)])
    return found


def _encoder(kind: str, form: str, **rule: Any) -> ResponseEncoder:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if form == "pairs":
        names = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_trained(kind), **names)
    if form == "chat":
        tokenizer.chat_template = CHATML
    length = MAX_LENGTH * (3 if form == "chat" else 1)  # the template adds tokens
    chosen = FormatRule(**{"max_length": length, **rule})
    return ResponseEncoder(tokenizer=tokenizer, rule=chosen, rows=CONVERSATIONS if form == "chat" else TEXT)


KINDS = ("byte-level BPE", "WordPiece", "Unigram")
FORMS = ("text", "pairs", "chat")
ENCODERS = {(kind, form): _encoder(kind, form) for kind in KINDS for form in FORMS}

_PIECES = st.sampled_from(
    [
        *("water", "Ice", " ", "  ", "\n", "\n\n", ", ", ". ", " a", "é", "e\u0301", " \u0301", "中文", "42", "<s>"),
        *("🙂", "'s ", "\t", "\ufb01", "-"),
    ]
)
_SENTENCES = st.sampled_from(
    ["Water boils when the sun ", "ice boils when the sun ", "It, when the sun ", "why? Because it does. "]
)
_TEXTS = st.lists(st.one_of(_PIECES, _SENTENCES, _SENTENCES), min_size=1, max_size=60).map(
    lambda parts: "".join(parts * (1 + 4000 // max(1, len("".join(parts)))))[:4000]
)


def _full(encoder: ResponseEncoder, request: ScoreRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(TextLimits, "is_long", lambda self, request: False)
        (found,) = encoder.encode([request], allow_empty=True)
    return found


def _require_equal(encoder: ResponseEncoder, request: ScoreRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    full = _full(encoder, request, monkeypatch)
    (found,) = encoder.encode([request], allow_empty=True)
    assert (found.input_ids, found.token_type_ids) == (full.input_ids, full.token_type_ids)
    assert bool(found.problem) == bool(full.problem)
    assert (found.cut_tokens > 0, found.characters) == (full.cut_tokens > 0, full.characters)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=_TEXTS, response=st.text(max_size=8))
def test_a_long_prompt_has_the_ids_of_the_full_text(monkeypatch, kind, form, prompt, response):
    _require_equal(ENCODERS[kind, form], ScoreRequest(prompt=prompt, response=response), monkeypatch)


_TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "user", "tool"]), st.one_of(_TEXTS, _SENTENCES, st.just(""))),
    min_size=1,
    max_size=12,
)


@pytest.mark.slow  # 3 s each
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [CHATML, STRANGE])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=_TURNS, system=st.booleans())
def test_a_long_conversation_has_the_ids_of_the_full_text(monkeypatch, kind, template, turns, system):
    encoder = copy.copy(ENCODERS[kind, "chat"])
    encoder.tokenizer.chat_template = template
    prompt = [{"role": "system", "content": "Be brief."}] * system
    prompt += [{"role": role, "content": content} for role, content in turns]
    request = ScoreRequest(prompt=prompt, response=[{"role": "assistant", "content": "Yes."}])
    try:
        _require_equal(encoder, request, monkeypatch)
    finally:
        encoder.tokenizer.chat_template = CHATML


@pytest.mark.parametrize(("kind", "form"), list(ENCODERS))
def test_a_very_long_prompt_is_shortened_and_not_tokenised(kind, form, monkeypatch):
    encoder = ENCODERS[kind, form]
    assert cuts_keep_ids(encoder.tokenizer)
    prompt = "Water boils when the sun shines. " * 60_000
    seen: list[int] = []
    real = type(encoder.tokenizer)._encode_plus

    def watched(self: Any, text: Any, *rest: Any, **options: Any) -> Any:
        seen.append(sum(map(len, text)) if isinstance(text, list) else len(text))
        return real(self, text, *rest, **options)

    monkeypatch.setattr(type(encoder.tokenizer), "_encode_plus", watched)
    (found,) = encoder.encode([ScoreRequest(prompt=prompt, response="Yes.")])
    assert len(found.input_ids) <= (encoder.rule.max_length or 0)
    assert found.cut_tokens > 0
    assert seen
    assert max(seen) < 5000
    monkeypatch.undo()
    near = ScoreRequest(prompt=prompt[-4000:], response="Yes.")
    assert found.input_ids == _full(encoder, near, monkeypatch).input_ids


def test_thousands_of_turns_are_not_tried_one_after_the_other():
    calls: list[int] = []

    def fits(number: int) -> bool:
        calls.append(number)
        return number >= 9_995

    assert _first_that_fits(10_000, fits) == 9_995
    assert len(calls) < 12
    for count in range(1, 20):
        for first in range(1, count + 1):
            assert _first_that_fits(count, lambda number, first=first: number >= first) == first


@pytest.mark.parametrize("form", FORMS)
def test_text_that_cannot_be_cut_is_refused_by_its_number_of_characters(form):
    encoder = ENCODERS["byte-level BPE", form]
    limit = TextLimits(tokenizer=encoder.tokenizer, rule=encoder.rule).characters
    assert limit == (encoder.rule.max_length or 0) * 16  # no token of so small a vocabulary has more characters
    requests = [
        ScoreRequest(prompt="a", response="b" * (limit + 1)),
        request_from_text("b" * (limit + 1)),
        ScoreRequest(prompt="a", response="b"),
        ScoreRequest(prompt="a", response="b", template={"tools": [{"name": "x" * limit}]}),
    ]
    found = encoder.encode(requests)
    assert [each.is_too_large for each in found] == [True, True, False, True]
    assert f"the response has {limit + 1:,} characters, above the limit of {limit:,}" in found[0].problem
    assert "the template option has" in found[3].problem
    strict = ResponseEncoder(tokenizer=encoder.tokenizer, rule=FormatRule(max_length=24, over_length="drop"), rows=TEXT)
    (found,) = strict.encode([ScoreRequest(prompt="a" * (limit + 1), response="b")])
    assert found.is_too_large


def test_a_prompt_that_cannot_be_shortened_safely_is_tokenised_completely_or_refused(monkeypatch):
    encoder = ENCODERS["byte-level BPE", "text"]
    prompt = "x" * 3000  # one word
    _require_equal(encoder, ScoreRequest(prompt=prompt, response="b"), monkeypatch)
    monkeypatch.setattr(text_limits, "_FULL_PROMPT", 2000)
    (found,) = encoder.encode([ScoreRequest(prompt=prompt, response="b")])
    assert found.is_too_large
    assert "the prompt has 3,000 characters, above the limit of 2,000" in found.problem


def test_a_tokenizer_whose_words_cross_spaces_is_not_cut():
    tokenizer = copy.deepcopy(ENCODERS["Unigram", "text"].tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not cuts_keep_ids(tokenizer)
    tokenizer = copy.deepcopy(ENCODERS["byte-level BPE", "text"].tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("t b", "x")
    assert not cuts_keep_ids(tokenizer)
    tokenizer = copy.deepcopy(ENCODERS["byte-level BPE", "text"].tokenizer)
    tokenizer.add_tokens(["sun shines"])
    assert not cuts_keep_ids(tokenizer)


def test_the_middle_of_a_text_lies_between_two_cuts(monkeypatch):
    text = "One two three four five six seven."
    assert without_middle(text, 8) == "One six seven."
    assert without_middle(text, 100) == text
    assert without_middle("x" * 100, 8) == "x" * 100
    monkeypatch.setattr(text_limits, "_WINDOW", 3)
    assert without_middle(text, 8) == "One six seven."


@pytest.mark.parametrize("interface", [Interface.PYTHON, Interface.COMMAND])
def test_a_sequence_that_is_too_long_names_both_forms_of_the_remedy(interface: Interface) -> None:
    with used_through(interface):
        assert "set `max_length` (`--max-length` on the command line)" in too_many_tokens(2, 1)
