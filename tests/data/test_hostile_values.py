"""Values from untrusted users that once had an unwanted effect or raised an undocumented error."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from saved_models import saved_model
from serving_scorers import tiny_scorer

from hf_reward import RewardScorer
from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import detect_layout, to_preference_row
from hf_reward.evaluation.benchmarks.base import Comparison
from hf_reward.evaluation.benchmarks.scores_file import read_scores
from hf_reward.modeling.checkpoint_record import CheckpointRecord
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.settings import ServerSettings
from hf_reward.training.run_arguments import parse_run_arguments

HUGE = 10**400
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
VOTES = {"prompt": "a", "response_a": "b", "response_b": "c"}


@pytest.mark.parametrize("value", [HUGE, 10**6000], ids=["too large for a float", "too long to be written"])
@pytest.mark.parametrize(("row", "name"), [(PAIR, "margin"), (PAIR, "weight"), (VOTES, "winner"), (VOTES, "score")])
def test_numbers_beyond_floats_are_refused(row, name, value):
    with pytest.raises(PreferenceFormatError, match=f"`{name}` must be a finite number") as error:
        to_preference_row({**row, name: value})
    assert len(str(error.value)) < 300


def test_column_names_that_are_not_text_are_reported():
    with pytest.raises(PreferenceFormatError, match=r"Found: 7, x\."):
        detect_layout({"x": 1, 7: 2})  # type: ignore[arg-type]
    with pytest.raises(PreferenceFormatError, match=r"`rejected` is missing. Columns found: chosen, 7\."):
        to_preference_row({"chosen": "a", 7: 1}, layout="pairs")  # type: ignore[dict-item]


def test_a_value_in_a_settings_file_is_never_a_setting(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: m\ntrain_data: [a.jsonl, --trust_remote_code]\n")
    with pytest.raises(ValueError, match="'--trust_remote_code' would be parsed as an option"):
        parse_run_arguments(["--config", str(file)])


@pytest.mark.parametrize("content", [{"format": 7}, {"format": {"max_length": "x", "over_length": "no"}}, {"loss": []}])
def test_a_record_with_fields_of_a_wrong_type_is_refused(make_model_folder, tmp_path, content):
    folder = saved_model(make_model_folder("llama"), tmp_path / "saved")
    path = Path(folder) / "reward_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(ValueError, match="is not a valid record of hf_reward"):
        CheckpointRecord.load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\n", "is not UTF-8 text"), (b'{"id": "0", "rewards": [1%s, 2]}\n' % (b"0" * 400), "finite")],
)
def test_scores_that_are_not_text_or_too_large(tmp_path, content, message):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(content)
    rows = [Comparison(id="0", prompt="a", responses=["b", "c"], ranks=[0, 1], cluster="a")]
    with pytest.raises(ValueError, match=message):
        read_scores(path, rows)


@pytest.fixture
def scorer(make_model_folder: Any, tmp_path: Path) -> RewardScorer:
    return tiny_scorer(make_model_folder("llama"), tmp_path / "saved")


@pytest.mark.anyio
async def test_no_client_replaces_the_template_or_upsets_the_limit(scorer):
    app = create_app(scorer, ServerSettings())
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx2.AsyncClient(transport=transport, base_url="http://s") as client:
        plain = await client.post("/classify", json={"messages": messages})
        options = {"chat_template": "{{ messages[1].content }}"}
        replaced = await client.post("/classify", json={"messages": messages, "chat_template_kwargs": options})
        long = await client.post("/classify", content=b"{}", headers={"content-length": "9" * 5000})
    assert plain.status_code == 200
    assert replaced.status_code == 422
    assert "chat_template" in replaced.text
    assert long.status_code == 413
