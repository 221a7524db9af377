"""Templates that print today's date have one fixed date in training, scoring, transformers and copies."""

import copy
import json
from datetime import datetime, timedelta

import pytest
import torch
from saved_models import reward_model, saved_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import chat_template_utils

from hf_reward import RewardConfig, RewardScorer, RewardTrainer, prepare_tokenizer
from hf_reward.preprocessing.template_clock import FIXED_DATE, freeze_clock, uses_clock
from hf_reward.preprocessing.tokenizer import render_chat
from hf_reward.publishing.verify import verify_checkpoint

TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
# The layouts of Llama 3.2 (a date of its own), Granite and Mistral (none), and SmolLM3 (inside a macro).
WITH_OWN_DATE = (
    """
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "13 Mar 2023" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}"""
    + TURNS
)
WITHOUT_DATE = "{{ \"Today's Date: \" + strftime_now('%B %d, %Y') + '.' }}" + TURNS
IN_A_MACRO = "{% macro head() %}Day {{ strftime_now('%-d.%-m.%y, %A, 100%%') }}{% endmacro %}\n \n{{ head() }}" + TURNS
ONLY_WITH_TOOLS = "{% if tools %}{{ strftime_now('%Y-%m-%d') }}{% endif %}" + TURNS
TEMPLATES = {
    "own date": (WITH_OWN_DATE, "Today Date: 13 Mar 2023\n\n"),
    "no date": (WITHOUT_DATE, "Today's Date: July 26, 2024."),
    "macro": (IN_A_MACRO, " \nDay 26.7.24, Friday, 100%"),
    "tools": (ONLY_WITH_TOOLS, ""),
}
CONVERSATION = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]


@pytest.fixture
def set_day(monkeypatch):
    """Move the clock by a number of days."""

    def pass_days(days):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime(2026, 3, 1) + timedelta(days=days)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return pass_days


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_prints_one_date_for_ever(name, chat_tokenizer, set_day, tmp_path, caplog):
    source, start = TEMPLATES[name]
    chat_tokenizer.chat_template = source
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    assert uses_clock(chat_tokenizer)
    original = copy.deepcopy(chat_tokenizer)
    set_day(0)
    prepared = prepare_tokenizer(chat_tokenizer)
    assert chat_tokenizer.chat_template == source, "the caller's tokenizer is not changed"
    assert [message.startswith("The chat template prints today's date") for message in caplog.messages] == [True]
    prepared.save_pretrained(tmp_path)
    texts = set()
    for day in (0, 1, 30, 400):
        set_day(day)
        for tokenizer in (prepared, AutoTokenizer.from_pretrained(tmp_path)):
            assert not uses_clock(tokenizer)
            texts.add((render_chat(tokenizer, CONVERSATION), render_chat(tokenizer, CONVERSATION, tools=tools)))
    assert len(texts) == 1
    rest = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
    assert next(iter(texts))[0] == start + rest
    days = set()
    for day in (0, 1):
        set_day(day)
        days.add(render_chat(original, CONVERSATION, tools=tools))
    assert len(days) == 2, "the unchanged template depends on the date"
    assert prepare_tokenizer(prepared).chat_template == prepared.chat_template, "a resumed run keeps its date"


def test_an_explicit_date_still_counts(chat_tokenizer):
    chat_tokenizer.chat_template = WITH_OWN_DATE
    tokenizer = prepare_tokenizer(chat_tokenizer)
    assert render_chat(tokenizer, CONVERSATION, date_string="1 May 1999").startswith("Today Date: 1 May 1999\n")


def test_named_templates_get_one_date_each(chat_tokenizer, tmp_path):
    chat_tokenizer.chat_template = {"default": WITHOUT_DATE, "tool_use": WITH_OWN_DATE, "plain": TURNS}
    prepare_tokenizer(chat_tokenizer).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert not uses_clock(tokenizer)
    assert tokenizer.chat_template["plain"] == TURNS
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}]
    assert render_chat(tokenizer, CONVERSATION).startswith("Today's Date: July 26, 2024.")
    assert render_chat(tokenizer, CONVERSATION, tools=tools).startswith("Today Date: 13 Mar 2023\n")


def test_templates_without_a_clock_are_unchanged(chat_tokenizer, text_tokenizer, caplog):
    for tokenizer in (chat_tokenizer, text_tokenizer):
        before = tokenizer.chat_template
        assert not uses_clock(tokenizer)
        assert freeze_clock(tokenizer).chat_template == before
    assert not caplog.messages


def test_a_date_that_cannot_be_fixed_is_refused(chat_tokenizer):
    chat_tokenizer.chat_template = "{% set clock = strftime_now %}{{ strftime_now.name }}" + TURNS
    with pytest.raises(ValueError, match=r"in a way that cannot be fixed.*`tokenizer\.chat_template`, and save"):
        prepare_tokenizer(chat_tokenizer)


@pytest.mark.parametrize("template", [WITH_OWN_DATE, WITHOUT_DATE])
def test_trainer_scorer_and_stock_agree_on_every_day(
    template, make_model_folder, chat_tokenizer, chat_pairs, tmp_path, set_day
):
    chat_tokenizer.chat_template = template
    folder = make_model_folder("llama", tokenizer=chat_tokenizer)
    set_day(0)
    args = RewardConfig(output_dir=str(tmp_path / "out"), max_steps=1, use_cpu=True, report_to="none")
    trainer = RewardTrainer(reward_model(folder), args, train_dataset=chat_pairs[:4], processing_class=chat_tokenizer)
    trained = trainer.predict(chat_pairs[:4]).predictions[:, 0].tolist()
    trainer.save_model()
    set_day(400)
    again = RewardTrainer(reward_model(folder), args, train_dataset=chat_pairs[:4], processing_class=chat_tokenizer)
    assert again.predict(chat_pairs[:4]).predictions[:, 0].tolist() == trained
    scorer = RewardScorer.from_pretrained(tmp_path / "out")
    scored = scorer.score([row["prompt"] for row in chat_pairs[:4]], [row["chosen"] for row in chat_pairs[:4]])
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer, found = AutoTokenizer.from_pretrained(tmp_path / "out"), []
    for row in chat_pairs[:4]:
        text = tokenizer.apply_chat_template(row["prompt"] + row["chosen"], tokenize=False)
        with torch.no_grad():
            found.append(stock(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())
    assert found == pytest.approx(trained, rel=1e-5, abs=1e-5)
    assert scored.tolist() == pytest.approx(trained, rel=1e-5, abs=1e-5)
    assert verify_checkpoint(tmp_path / "out", only=["alone"]).equal


def test_a_model_of_another_library_gets_a_fixed_date_and_a_warning(
    make_model_folder, chat_tokenizer, tmp_path, set_day, caplog
):
    base = make_model_folder("llama", tokenizer=chat_tokenizer)
    folder = saved_model(base, tmp_path / "foreign")
    (folder / "reward_config.json").unlink()
    (folder / "chat_template.jinja").write_text(WITHOUT_DATE)
    rewards = []
    for day in (0, 1, 30, 400):
        set_day(day)
        caplog.clear()
        rewards += RewardScorer.from_pretrained(folder).score(["Hello"], ["Good day."]).tolist()
        assert any("the template now always prints 26 July 2024" in message for message in caplog.messages)
    assert len(set(rewards)) == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    given = RewardScorer(reward_model(folder), tokenizer)
    assert tokenizer.chat_template == WITHOUT_DATE, "the caller's tokenizer is not changed"
    assert not uses_clock(given.tokenizer)


def test_verify_names_the_date_as_the_cause(make_model_folder, chat_tokenizer, tmp_path, set_day):
    chat_tokenizer.chat_template = WITHOUT_DATE
    folder = saved_model(make_model_folder("llama", tokenizer=chat_tokenizer), tmp_path / "saved")
    assert verify_checkpoint(folder, only=["alone"]).equal
    (folder / "chat_template.jinja").write_text(WITHOUT_DATE)
    set_day(400)
    found = verify_checkpoint(folder, only=["alone"])
    assert "the chat template prints today's date" in next(c.detail for c in found.failures if c.name == "tokenizer")
    assert "token ids" in [check.name for check in found.failures]
    assert json.loads(json.dumps(found.to_dict()))["equal"] is False
    assert f"{FIXED_DATE:%d %b %Y}" == "26 Jul 2024"
