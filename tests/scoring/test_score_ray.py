"""The Ray recipe: two workers return the rewards of one scorer; checks of the vLLM variant without vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_runs import text_rows, write_jsonl
from saved_models import saved_model

from hf_reward.scoring.reward_scorer import RewardScorer

RECIPE = Path(__file__).parents[2] / "recipes" / "score_ray.py"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def run_recipe(*words: object) -> str:
    command = [sys.executable, str(RECIPE), *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment | OFFLINE)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def model(tmp_path, make_model_folder) -> Path:
    return saved_model(make_model_folder("qwen2"), tmp_path / "model", scale=1.0)


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_two_workers_give_what_one_scorer_gives(tmp_path, model, kind):
    rows = [{"id": f"row {n}", **row} for n, row in enumerate(text_rows(60))]
    rows[7]["response"] = ""
    data = tmp_path / f"rows.{kind}"
    write_jsonl(data, rows) if kind == "jsonl" else pq.write_table(pa.Table.from_pylist(rows), data)
    local = ("--local-cpus", 2, "--workers", 2, "--cpus-per-worker", 0.5, "--batch-rows", 8)
    output = run_recipe(model, data, tmp_path / "out", *local, "--reward-column", "value")
    assert "60 rows in" in output
    assert "1 of them without a reward" in output
    found = {row["id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    assert {name: found["row 7"][name] for name in ("value", "problem")} == {
        "value": None,
        "problem": "the response is empty; to score it anyway, set `allow_empty=True` (`--allow-empty` on the command "
        "line)",
    }
    good = [row for row in rows if row["response"]]
    expected = RewardScorer(model).score([row["prompt"] for row in good], [row["response"] for row in good])
    np.testing.assert_allclose([found[row["id"]]["value"] for row in good], expected, rtol=1e-5, atol=1e-5)
    assert np.std(expected) > 0.01
    assert all(found[row["id"]]["n"] == row["n"] for row in rows)


ACTORS = """
import json, sys
import numpy as np
import ray, ray.data
from hf_reward import RewardScorer

ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=256 * 2**20)
rows = json.load(open(sys.argv[2]))
scored = ray.data.from_items(rows).map_batches(
    RewardScorer,
    fn_constructor_kwargs={"model": sys.argv[1], "device": "cpu"},
    compute=ray.data.ActorPoolStrategy(size=2),
    num_cpus=0.5,
    batch_size=8,
)
json.dump({row["id"]: [float(row["reward"]), row["problem"]] for row in scored.take_all()}, open(sys.argv[3], "w"))
"""


@pytest.mark.slow
@pytest.mark.interop
def test_the_scorer_itself_is_an_actor_class(tmp_path, model):
    rows = [
        {"id": f"row {n}", "prompt": row["prompt"], "response": row["response"]} for n, row in enumerate(text_rows(30))
    ]
    rows[3]["response"] = ""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "actors.py").write_text(ACTORS)
    words = [sys.executable, "actors.py", str(model), "rows.json", "found.json"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    subprocess.run(words, cwd=tmp_path, check=True, timeout=300, env=environment | OFFLINE)
    found = json.loads((tmp_path / "found.json").read_text())
    good = [row for row in rows if row["response"]]
    expected = RewardScorer(model).score([row["prompt"] for row in good], [row["response"] for row in good])
    np.testing.assert_allclose([found[row["id"]][0] for row in good], expected, rtol=1e-5, atol=1e-5)
    assert "empty" in found["row 3"][1]


@pytest.mark.slow
@pytest.mark.interop
def test_messages_lists_of_responses_and_bad_rows(tmp_path, model):
    turns = [{"role": "user", "content": "Why?"}]
    rows = [
        {"id": 1, "prompt": turns, "answers": ["Because.", "I would rather not say."]},
        {"id": 2, "prompt": turns, "answers": ["Because."]},
        {"id": 3, "prompt": None, "answers": ["Because."]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    run_recipe(model, tmp_path / "rows.parquet", tmp_path / "out", "--local-cpus", 2, "--columns", "responses=answers")
    found = {row["id"]: row for row in pq.read_table(tmp_path / "out").to_pylist()}
    expected = RewardScorer(model).score([turns, turns], rows[0]["answers"])
    np.testing.assert_allclose(found[1]["reward"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2]["reward"], expected[:1], rtol=1e-5, atol=1e-5)
    assert found[3]["reward"] is None
    assert "nothing to score" in found[3]["problem"]


@pytest.mark.slow
@pytest.mark.interop
def test_an_output_folder_that_is_not_empty_is_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").touch()
    command = [sys.executable, str(RECIPE), "model", "rows.parquet", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


@pytest.mark.slow
@pytest.mark.interop
def test_too_few_cpus_for_workers_and_reading_is_an_error(tmp_path):
    command = [sys.executable, str(RECIPE), "model", "rows.parquet", str(tmp_path / "out"), "--workers", "2"]
    done = subprocess.run(
        [*command, "--local-cpus", "2"], capture_output=True, text=True, timeout=300, env={**os.environ, **OFFLINE}
    )
    assert done.returncode == 2
    assert "would never start" in done.stderr


# --- vLLM variant, checked without vLLM ------------------------------------------------------------------------------


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE.parent))
    return pytest.importorskip("score_ray")


def test_requests_for_vllm_have_the_token_ids_of_training(recipe, model):
    turns = [{"role": "user", "content": "Why?", "name": None}, {"role": "assistant", "content": "Because."}]
    scorer = RewardScorer(model)
    from hf_reward.data.score_request import request_from_messages

    [expected] = scorer.encode([request_from_messages(turns)])
    layouts = [
        {"id": 7, "messages": turns},
        {"id": 7, "prompt": turns[:1], "response": "Because."},
        {"id": 7, "prompt": "Why?", "a": "Because.", "response": "not this"},
    ]
    for row, columns in zip(layouts, ({}, {}, {"response": "a"}), strict=True):
        found = recipe.vllm_request(row, str(model), columns)
        assert found == {
            "id": 7,
            "prompt": None,
            "tokenized_prompt": expected.input_ids,
            "pooling_params": {"use_activation": False},
        }


@pytest.mark.slow
@pytest.mark.interop
def test_ray_accepts_the_configuration_and_its_own_stage_would_strip_the_last_turn(recipe, model, monkeypatch):
    """`build_processor` is patched, because it would load the model with vLLM."""
    import argparse

    llm = pytest.importorskip("ray.data.llm")
    from ray.llm._internal.batch.stages.chat_template_stage import ChatTemplateUDF

    seen = {}

    def build(config, preprocess, postprocess):
        seen.update(config=config, post=postprocess)
        return lambda data: data

    class Rows:
        def map(self, function):
            return function

    monkeypatch.setattr(llm, "build_processor", build)
    options = argparse.Namespace(
        model=str(model), workers=3, batch_rows=16, max_length=512, columns=[], reward_column="value"
    )
    finish = recipe.score_with_vllm(Rows(), options)
    assert (seen["config"].task_type, seen["config"].concurrency) == ("classify", 3)
    assert seen["config"].engine_kwargs["max_model_len"] == 512
    assert finish({**seen["post"]({"id": 1, "embeddings": np.array([0.5])}), "__inference_error__": ""}) == {
        "id": 1,
        "value": 0.5,
        "problem": "",
    }
    assert finish({"id": 2, "__inference_error__": "too long"}) == {"id": 2, "value": None, "problem": "too long"}
    # Ray's own stage is disabled because it does not close the assistant's turn.
    assert not ChatTemplateUDF._should_add_generation_prompt(None, [{"role": "assistant", "content": "x"}])
