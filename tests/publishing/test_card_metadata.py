"""The Hub parses front matter and `.eval_results`; they contain no local paths, and errors name the field."""

import math

import pytest
import yaml
from card_records import add_results, front_matter, full_record, render
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_reward.publishing.card.biases import PICTURE_FILE
from hf_reward.publishing.card.render import write_model_card


def test_the_hub_parses_the_results(tmp_path):
    folder = add_results(tmp_path / "m")
    text = render(folder, full_record(), model_id="org/demo")
    metadata = front_matter(text)
    assert metadata["language"] == "no"
    assert metadata["datasets"] == ["org/set"]
    assert metadata["tags"][-2:] == ["generated_from_trainer", "demo"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "Demo"
    found = {(each.dataset_type, each.metric_type): each for each in results}
    assert found["org/set", "accuracy"].metric_value == 0.652
    assert found["org/set", "accuracy"].metric_args == {"ci95": [0.59, 0.714], "pairs": 209, "prompts": 200}
    assert found["allenai/reward-bench", "accuracy"].metric_value == 0.812
    assert found["org/rm-bench", "accuracy"].dataset_name == "RM-Bench (partial)"
    assert ModelCard.load(folder / "README.md").data.eval_results == results


def test_entries_are_written_where_a_hub_dataset_is_known(tmp_path):
    from huggingface_hub import parse_eval_result_entries

    folder = add_results(tmp_path / "m")
    render(folder, full_record())
    files = sorted((folder / ".eval_results").iterdir())
    entries = [parse_eval_result_entries(yaml.safe_load(file.read_text()))[0] for file in files]
    assert [(each.dataset_id, each.task_id, each.value) for each in entries] == [
        ("allenai/reward-bench", "default", 0.812),  # the partial RM-Bench is not comparable and left out
        ("org/set", "default", 0.652),
    ]
    assert entries[0].notes == "RewardBench; 95% interval 0.7970 to 0.8270; 2,985 pairs; 3 ties"
    assert "95% interval 0.5900 to 0.7140; 209 pairs; 200 prompts; length baseline 0.4930" in str(entries[1].notes)
    (folder / ".eval_results" / "mine.yaml").write_text("[]")
    record = full_record()
    record.card["dataset"] = ["org/set", "org/other"]
    add_results(folder, [], [])
    render(folder, record)
    assert [file.name for file in (folder / ".eval_results").iterdir()] == ["mine.yaml"]
    assert not (folder / PICTURE_FILE).exists()


def test_local_names_are_never_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    record = full_record(base_model="org/here")
    record.card["dataset"] = ["org/set", "/data/secret", "./x", "org/here", "secret/pairs.jsonl"]
    text = render(tmp_path / "m", record)
    assert front_matter(text)["datasets"] == ["org/set"]
    assert "base_model" not in front_matter(text)
    assert "secret" not in text
    assert "org/here" not in text


def test_the_base_model_can_be_named(tmp_path):
    record = full_record(base_model="/home/me/base")
    record.card["base_model"] = "Qwen/Qwen3-0.6B"
    assert front_matter(render(tmp_path / "m", record))["base_model"] == "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("license", 3), ("license", ["mit"]), ("license", "my own\nlicence"), ("language", 3), ("language", "English"),
        ("language", ["en", None]), ("tags", "a\nb"), ("tags", [1]), ("dataset", 3), ("dataset", "not an id"),
        ("widget", {"x": math.nan}), ("widget", object()), ("widget", "\x00"), ("model-index", []), ("a: b", "x"),
    ],
)  # fmt: skip
def test_invalid_metadata_is_refused_with_the_name_of_the_field(field, value, tmp_path):
    record = full_record()
    record.card[field] = value
    with pytest.raises(ValueError, match=rf"`{field}` of the model card must be .*, but is"):
        write_model_card(tmp_path, record)
    assert not (tmp_path / "README.md").exists()
