"""The card contains the numbers of the record in well-formed Markdown, and edits of it are detected."""

import math
import re
from pathlib import Path

import pytest
from card_records import (
    BENCHMARKS,
    EVALUATION,
    SUMMARY,
    add_results,
    front_matter,
    full_record,
    make_record,
    probe,
    render,
)
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_length_correction import CURVE

from hf_reward.publishing.card.biases import PICTURE_FILE
from hf_reward.publishing.card.facts import AUDIT_FILE
from hf_reward.publishing.card.render import is_generated, write_model_card
from hf_reward.publishing.compatibility import Verdict


def test_a_full_card_contains_the_numbers_of_the_record(tmp_path):
    text = render(
        add_results(tmp_path / "m"), full_record(), model_id="org/demo", compatibility=[Verdict("vLLM", "yes", "a|b")]
    )
    for expected in (
        "| **this model** (a tie is wrong) | 65.2% | 59.0% to 71.4% | 209 pairs, 200 prompts |",
        "| this model, ties count half | 65.5% | - | 209 pairs |",
        "| length baseline: prefer the longer response (tokens) | 49.3% | - | 209 pairs |",
        "| baseline: TF-IDF Bradley-Terry | 44.3% | 37.5% to 51.0% | 209 pairs |",
        "| this model where the preferred response is shorter | 61.0% | - | 104 pairs |",
        "| hh | 70.0% | 60.0% to 80.0% | - | 100 pairs |",
        "- 0.5% of the pairs get equal rewards.",
        "- Log loss 0.611 nats per pair",
        "- Brier score 0.211",
        "mean 0.123, standard deviation 1.500, range -4.200 to 3.900.",
        "`(reward - 0.1234) / 1.5`",
        "log loss 0.611 (chance: ln 2 = 0.693). The probabilities are informative.",
        "Temperature: not fitted.",
        "| RewardBench | 81.2% | 79.7% to 82.7% | 2,985 pairs | 3 | length 58.7% |",
        "| RM-Bench (partial) | 60.0% | - | 900 pairs | - | - |",
        "RewardBench by section: Chat 95.0%.",
        "RM-Bench was run without code",
        "The implementation of RM-Bench was not verified in all parts: data and arithmetic.",
        "- Biased: padding with filler (+0.42 typical gaps).",
        "| padding with filler | length | +0.42 typical gaps | +0.37 to +0.47 | ±0.1 | 400 cases, 200 prompts | 0.02 | "
        "biased |",
        "Observational checks, without a verdict: length correlation (+0.31 correlation).",
        "Five probes.",
        f"]({PICTURE_FILE})",
        "train: 510 of 520 rows kept, 500 prompts; dropped: 8 tied, 2 too long; truncated prompts: 3; tokens in the "
        "longest sequence of a row: median 80, max 512; the longer response is preferred in 55.3% of 510 pairs; "
        "sources: org/set.",
        "Loss: Bradley-Terry (label_smoothing 0.1).",
        "- 120 optimizer steps.",
        "learning_rate: 0.0001",
        "Fine-tuned from [Qwen/Qwen3-0.6B]",
        "hf-reward train --x LOCAL/b.yaml",
        "vllm serve org/demo --runner pooling",
        '"use_activation": false',
        "| vLLM | yes | a\\|b |",
        "up to 1,024 tokens",
        "apache-2.0.",
        "## Versions\n\ntorch 2.13.",
    ):
        assert expected in text, expected
    assert "/home/me" not in text
    assert "hf_abc" not in text
    glance = text.split("# Demo")[1].split("## Results on held-out pairs")[0]
    assert "65.2% (95% interval 59.0% to 71.4%" in glance
    assert "longer response scores 49.3%" in glance
    assert "padding with filler" in glance


def test_a_bare_card_states_missing_results(tmp_path):
    text = render(tmp_path / "bare", make_record())
    assert "# bare" in text
    for expected in (
        "Not evaluated.",
        "## Results on held-out pairs\n\nNot run.",
        "## Benchmarks\n\nNot run.",
        "- Length: not measured.\n- Bias audit: not run",
        "Mean and standard deviation of the rewards: not measured.",
        "## Training\n\nNot recorded.",
        "The command was not recorded.",
        "## Versions\n\nNot recorded.",
        "Not stated. Ask the authors",
        "a base model that was not recorded",
        "Replace `bare` with the folder or the Hub id",
    ):
        assert expected in text, expected
    metadata = front_matter(text)
    assert not {"model-index", "base_model", "datasets", "license", "base_model_relation"} & set(metadata)
    assert metadata["tags"] == ["reward-model", "hf_reward", "rlhf", "preference-model"]
    assert not (tmp_path / "bare" / ".eval_results").exists()


INTERVALS = "\nIntervals are clustered by prompt.\n"


def test_intervals_are_explained_where_there_are_any(tmp_path):
    values = {name: value for name, value in EVALUATION.items() if "_ci_" not in name}
    for more, baselines, explained in (
        ({}, [], False),
        ({"accuracy_ci_low": 0.5}, [], False),
        ({"accuracy_ci_low": 0.5, "accuracy_ci_high": 0.7}, [], True),
        ({"hh_accuracy_ci_low": 0.5, "hh_accuracy_ci_high": 0.7}, [], True),
        ({}, [{"name": "words", "accuracy": 0.5, "ci_low": 0.4, "ci_high": 0.6}], True),
    ):
        text = render(tmp_path / "m", full_record(evaluation={**values, **more}, baselines=baselines))
        assert (INTERVALS in text) == explained, more
    assert INTERVALS not in render(tmp_path / "bare", make_record())


@pytest.mark.parametrize(
    "evaluation",
    [
        {"accuracy": 0.7, "accuracy_ci_low": None, "accuracy_ci_high": None},
        {**EVALUATION, "accuracy_ci_low": math.nan, "accuracy_ci_high": None, "num_pairs": 1, "num_prompts": 1},
        {**EVALUATION, "num_prompts": None},
        {**EVALUATION, "length_baseline": None},
        {"accuracy": math.nan},
    ],
)
def test_missing_numbers_leave_no_gaps(evaluation, tmp_path):
    text = render(tmp_path / "m", full_record(evaluation=evaluation))
    if evaluation.get("num_pairs") == 1:
        assert "no interval with one prompt, 1 pair" in text
        assert "| 65.2% | - | 1 pair, 1 prompt |" in text


def test_rows_that_leaked_from_the_training_data_are_stated(tmp_path):
    assert "also occur in the training data" not in render(tmp_path / "m", full_record())
    leaked = {**EVALUATION, "num_leaked_rows": 4, "accuracy_without_leaks": 0.6}
    text = render(tmp_path / "m", full_record(evaluation=leaked))
    assert "**4 rows of the evaluation also occur in the training data.** Without them, the accuracy is 60.0%." in text


def test_a_user_defined_metric_is_not_a_source(tmp_path):
    assert "| balanced |" not in render(
        tmp_path / "m", full_record(evaluation={**EVALUATION, "balanced_accuracy": 0.5})
    )


@pytest.mark.parametrize("field", ["calibration", "reward_statistics"])
def test_uninformative_probabilities_and_a_fitted_temperature_are_stated(tmp_path, field):
    record = full_record(evaluation={**EVALUATION, "log_loss": 0.8}, **{field: {"temperature": 1.7}})
    text = render(tmp_path / "m", record)
    assert "not better than chance. Use the rewards only to rank responses." in text
    assert "Temperature: 1.7 (fitted)" in text
    assert "`sigmoid((reward_a - reward_b) / 1.7)`" in text


def test_the_card_states_that_its_numbers_do_not_include_a_stored_length_correction(tmp_path):
    words = "Length correction: fitted on 40 responses and stored."
    assert words not in render(tmp_path / "m", full_record())
    text = render(tmp_path / "m", full_record(length_correction=CURVE.to_dict()))
    assert words in text
    assert "The numbers in this card do not include it" in text


def test_a_card_in_a_temporary_folder_has_the_final_name(tmp_path):
    text = render(tmp_path / ".temporary-1", make_record(), title="final")
    assert "# final\n" in text
    assert '.from_pretrained("final")' in text
    assert "temporary" not in text


def test_invalid_ids_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`model_id` must be a Hub id"):
        write_model_card(tmp_path, make_record(), model_id="../x")
    (tmp_path / AUDIT_FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{AUDIT_FILE} is not JSON"):
        write_model_card(tmp_path, make_record())
    (tmp_path / AUDIT_FILE).write_text("[]")
    with pytest.raises(ValueError, match="must contain a JSON object"):
        write_model_card(tmp_path, make_record())
    (tmp_path / AUDIT_FILE).write_text('{"probes": [3]}')
    with pytest.raises(ValueError, match="must list objects"):
        write_model_card(tmp_path, make_record())


EDITS = {
    "a word": ("# Demo", "# My demo"),
    "front matter": ("license: apache-2.0", "license: mit"),
    "a space": ("Pad batches on the right.", "Pad batches on the right. "),
    "the mark": (" -->\n", "-->\n"),
    "no mark": ("\n<!-- written by", "\n<!-- was written by"),
    "text below": (" -->\n", " -->\nMine.\n"),
    "a line below": (" -->\n", " -->\n\n"),
    "no last line end": (" -->\n", " -->"),
    "another card's mark": ("this line: ", "this line: 0"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_the_card_is_detected(edit, tmp_path):
    path = write_model_card(tmp_path, full_record())
    assert is_generated(path)
    text, (before, after) = path.read_text(encoding="utf-8"), EDITS[edit]
    assert text.count(before) == 1
    path.write_text(text.replace(before, after), encoding="utf-8")
    assert not is_generated(path)


def test_a_mark_copied_into_another_text_is_not_accepted(tmp_path):
    path = write_model_card(tmp_path, full_record())
    content = path.read_bytes()
    path.write_bytes(content + content)
    assert not is_generated(path)
    path.write_text("# Mine\n", encoding="utf-8")
    assert not is_generated(path)
    path.write_text("", encoding="utf-8")
    assert not is_generated(path)


def test_the_mark_of_version_0_1_is_accepted():
    assert is_generated(Path(__file__).parents[1] / "support" / "written_by_0_1" / "run" / "checkpoint-2" / "README.md")


def test_changed_line_endings_are_not_an_edit(tmp_path):
    path = write_model_card(tmp_path, full_record())
    content = path.read_bytes()
    assert b"\r" not in content
    path.write_bytes(content.replace(b"\n", b"\r\n"))  # as Git checks it out on Windows
    assert is_generated(path)
    path.write_bytes(content.replace(b"\n", b"\r\n").replace(b"# Demo", b"# Mine"))
    assert not is_generated(path)


def test_two_renders_are_identical(tmp_path):
    written = []
    for name in ("one", "two"):
        folder = add_results(tmp_path / name / "m") if (tmp_path / name).mkdir() is None else tmp_path
        render(folder, full_record())
        written.append({file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()})
    assert written[0] == written[1]
    assert {"README.md", PICTURE_FILE} <= {str(name) for name in written[0]}


# --- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = "a | b\n---\ntags: [x]\n# Title ``` {{ title }} {% raw %} <script> [x](y) \\ ' \" : & $1$ \u2028 \u202e é 🙂"


def test_hostile_text_is_escaped(tmp_path):
    summary = {**SUMMARY, "dropped": {HOSTILE: 2}, "token_quantiles": {HOSTILE: 3}}
    record = full_record(
        baselines=[{"name": HOSTILE, "accuracy": 0.5}],
        evaluation={**EVALUATION, f"{HOSTILE}_accuracy": 0.5, f"{HOSTILE}_num_pairs": 3},
        loss={"loss_type": HOSTILE, HOSTILE: HOSTILE},
        training={"steps": 1, "data": {HOSTILE: summary}, "settings": {HOSTILE: HOSTILE}, "command": f"run {HOSTILE}"},
        origin={"imported_from": HOSTILE},
        versions={HOSTILE: HOSTILE},
        dtype=HOSTILE,
    )
    record.card |= {
        "model_name": HOSTILE,
        "license_link": "https://x | `y` <z>",
        "extra_gated_prompt": "one\n---\ntwo\n",
    }
    benchmark = {**BENCHMARKS[0], "benchmark": HOSTILE, "sections": {HOSTILE: 0.5}, "baselines": {HOSTILE: 0.5}}
    folder = add_results(tmp_path / "m", [probe(HOSTILE, HOSTILE, 0.2, unit=HOSTILE, family=HOSTILE)], [benchmark])
    text = render(folder, record, compatibility=[Verdict("a\nprogram", "yes", "x | y")])
    metadata, body = front_matter(text), text.split("\n---\n", 1)[1]
    assert metadata["extra_gated_prompt"] == "one\n---\ntwo\n"
    assert metadata["tags"][0] == "reward-model"
    assert "\n---\n" not in body
    assert "<script>" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert body.count("```") % 2 == 0
    assert len(re.findall(r"^# ", re.sub(r"```.*?```", "", body, flags=re.DOTALL), flags=re.MULTILINE)) == 1


odd = st.one_of(st.none(), st.floats(), st.integers(-3, 10**6), st.text(max_size=8), st.booleans())
metric = st.sampled_from([*EVALUATION, "x_accuracy", "_accuracy"])


@settings(max_examples=60, deadline=None)
@given(
    evaluation=st.dictionaries(metric, odd),
    statistics=st.dictionaries(st.sampled_from(["mean", "std", "temperature"]), odd),
    texts=st.lists(st.text(max_size=12), min_size=4, max_size=4),
    compatibility=st.lists(st.builds(Verdict, *[st.text("ab|-\n", max_size=5)] * 3), max_size=2),
)
def test_unusual_records_make_well_formed_cards(evaluation, statistics, texts, compatibility, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "odd"
    record = full_record(
        evaluation=evaluation,
        reward_statistics=statistics,
        versions={texts[0]: texts[1]},
        training={"steps": 1, "data": {texts[2]: SUMMARY}, "command": texts[3]},
        card={"model_name": texts[0], "widget": []},
    )
    folder.mkdir(exist_ok=True)
    text = write_model_card(folder, record, compatibility=compatibility).read_text(encoding="utf-8")
    assert ModelCard(text).data.to_dict() == front_matter(text)
    assert "\n\n\n" not in text
    assert "| nan" not in text


def test_each_part_of_a_verdict_is_below_its_title(tmp_path):
    verdict = Verdict(program="a server", outcome="same reward", note="an option", evidence="source read")
    lines = write_model_card(tmp_path, full_record(), compatibility=[verdict]).read_text(encoding="utf-8").splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("| program | reward"))
    titles, values = ([cell.strip() for cell in lines[each].strip("|").split("|")] for each in (place, place + 2))
    assert titles == ["program", "reward", "note", "evidence"]
    assert values == list(verdict)
