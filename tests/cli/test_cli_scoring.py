"""`hf-reward score | rank`: exit codes, tables for people, JSON for machines, one-line errors."""

import json
import shlex
import shutil
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from foreign_models import foreign_model

from hf_reward import RewardScorer

ROWS = [
    {"prompt": "What is 2 + 2?", "response": "4.", "note": "right"},
    {"prompt": "What is 2 + 2?", "response": "It depends [bold]a lot[/bold].", "note": "no markup"},
    {"prompt": [{"role": "user", "content": "Why?"}], "response": "Because.", "note": "messages"},
]
LISTS = [{"prompt": "What is 2 + 2?", "responses": ["5.", "4.", "It depends."]}, {"prompt": "Why?", "responses": ["x"]}]


@pytest.fixture
def model(saved_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_llama, tmp_path / "model"))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scored_rows_keep_their_columns(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", ROWS)
    code, out, err = call("score", "--model", model, "--data", data, "--out", tmp_path / "out.jsonl")
    assert (code, err) == (0, "")
    assert "3 of 3 rows scored" in out
    found = read(tmp_path / "out.jsonl")
    assert [list(row) for row in found] == [["prompt", "response", "note", "id", "reward"]] * 3
    assert [row["id"] for row in found] == ["rows.jsonl:0", "rows.jsonl:1", "rows.jsonl:2"]
    prompts, responses = zip(*((row["prompt"], row["response"]) for row in ROWS), strict=True)
    expected = RewardScorer.from_pretrained(model).score(prompts, responses)
    np.testing.assert_array_equal(np.float32([row["reward"] for row in found]), expected)
    code, _, err = call("score", "--model", model, "--data", data, "--out", tmp_path / "out.parquet")
    assert code == 1
    assert "column 'prompt' mixes types" in err, "Parquet holds no text beside messages"
    data = jsonl(tmp_path / "texts.jsonl", ROWS[:2])
    code, out, _ = call("score", "--model", model, "--data", data, "--out", tmp_path / "out.parquet", "--json")
    assert code == 0
    assert json.loads(out)["counts"]["rows_out"] == 2
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("reward").type == "float"
    np.testing.assert_allclose(table["reward"].to_numpy(), expected[:2], rtol=1e-6)


def test_without_out_rows_are_a_table_or_json_lines(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [*ROWS, '{"prompt": "What is 2 + \n', {"prompt": "a", "response": ""}])
    code, out, err = call("score", "--model", model, "--data", data)
    assert code == 3
    assert "It depends [bold]a lot[/bold]." in out
    assert "rows.jsonl, line 4: the row is not valid JSON" in err
    assert "rows.jsonl, line 5: the response is empty" in err
    assert "3 of 5 rows scored" in err
    code, out, _ = call("score", "--model", model, "--data", data, "--json", "--allow-empty")
    assert code == 3
    assert len([json.loads(line) for line in out.splitlines()]) == 4


def test_rejected_rows_are_kept_with_their_reason(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [ROWS[0], '{"half": \n', {"question": "?"}, ROWS[1]])
    code, out, _ = call("score", "--model", model, "--data", data, "--out", tmp_path / "out.jsonl")
    assert code == 3
    assert "2 rows rejected" in out
    assert len(read(tmp_path / "out.jsonl")) == 2
    rejected = read(tmp_path / "out.quarantine.jsonl")
    assert [(row["row"], row["line"]) for row in rejected] == [(1, 2), (2, 3)]
    assert "nothing to score" in rejected[1]["reason"]


def test_rank_marks_the_best(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "lists.jsonl", LISTS)
    code, out, _ = call("rank", "--model", model, "--data", data, "--out", tmp_path / "out.jsonl")
    assert code == 0, out
    scorer = RewardScorer.from_pretrained(model)
    for row, given in zip(read(tmp_path / "out.jsonl"), LISTS, strict=True):
        ranking = scorer.rank(given["prompt"], given["responses"])
        np.testing.assert_allclose(row["reward"], ranking.rewards, rtol=1e-6)
        assert row["best"] == ranking.order[0]
        assert [row["rank"][place] for place in ranking.order] == list(range(len(ranking.order)))
    code, out, _ = call("rank", "--model", model, "--data", data)
    best = scorer.rank(LISTS[0]["prompt"], LISTS[0]["responses"]).best
    assert any("best" in line and best in line for line in out.splitlines())


def test_csv_from_standard_input_with_other_columns(call: Any, model: Path) -> None:
    text = 'question,answer\nWhy?,Because.\n"two\nlines","a, b"\n'
    words = ("--model", model, "--data", "-", "--input-format", "csv", "--columns", "prompt=question")
    code, out, err = call("score", *words, "--columns", "response=answer", "--json", stdin=text)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["answer"] for row in rows] == ["Because.", "a, b"]


def test_one_prompt_on_the_command_line(call: Any, model: Path) -> None:
    words = ("score", "--model", model, "--prompt", "Why?", "--response", "Because.", "--response", "No idea.")
    code, out, _ = call(*words, "--json")
    assert code == 0
    expected = RewardScorer.from_pretrained(model).rank("Why?", ["Because.", "No idea."])
    found = json.loads(out)
    assert found["rewards"] == pytest.approx(expected.rewards.tolist())
    assert found["order"] == expected.order
    code, out, _ = call(*words)
    assert "best" in out


def test_an_interrupted_run_resumes_and_another_model_is_refused(call: Any, model: Path, tmp_path: Path) -> None:
    data, out = jsonl(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    words = ("score", "--data", data, "--out", out, "--rows-per-shard", 1)
    assert call(*words, "--model", model)[0] == 0
    code, _, err = call(*words, "--model", model)
    assert code == 1
    assert "--resume" in err
    code, printed, _ = call(*words, "--model", model, "--resume")
    assert code == 0
    assert "Finished by an earlier run: 3 of 3 shards" in printed
    other = foreign_model("Skywork-Reward-V2-Qwen3", tmp_path / "other")
    code, _, err = call(*words, "--model", other, "--resume")
    assert code == 1
    assert "weights" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "Missing option '--model'"),
        (["--model", "m"], 2, "give --data"),
        (["--model", "m", "--response", "x"], 2, "needs --prompt"),
        (["--model", "m", "--data", "d", "--response", "x", "--prompt", "p"], 2, "give --data"),
        (["--model", "m", "--prompt", "p", "--response", "x", "--out", "o.jsonl"], 2, "--out needs --data"),
        (["--model", "m", "--data", "d", "--dtype", "int8"], 2, "--dtype must be"),
        (["--model", "m", "--data", "d", "--columns", "prompt"], 2, "ours=theirs"),
        (["--model", "m", "--data", "d", "--resume"], 2, "need a file or folder as --out"),
        (["--model", "m", "--data", "d.jsonl", "--part", "3", "--out", "o"], 1, "i/n"),
        (["--model", "./nowhere", "--prompt", "a", "--response", "b"], 1, "There is no folder './nowhere'"),
    ],
)
def test_wrong_commands(call: Any, words: list[str], code: int, message: str) -> None:
    found, _, err = call("score", *words)
    assert found == code
    assert message in " ".join(err.replace("│", " ").split())
    if code == 1:
        assert len(err.splitlines()) == 1


def test_wrong_data_is_one_line(call: Any, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    wrong = {
        tmp_path / "missing.jsonl": "There is no file",
        tmp_path / "cut.parquet": "cut.parquet",
        jsonl(tmp_path / "other.jsonl", [{"question": "?"}] * 3): "nothing to score",
    }
    for data, message in wrong.items():
        code, _, err = call("score", "--model", model, "--data", data, "--out", tmp_path / "out.jsonl")
        assert (code, len(err.splitlines())) == (1, 1), data
        assert message in err
        assert not (tmp_path / "out.jsonl").exists()


def test_a_model_without_tokenizer_or_with_two_labels(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", ROWS)
    two = foreign_model("Skywork-Reward-Llama-3.1", tmp_path / "two", labels=2)
    code, _, err = call("score", "--model", two, "--data", data)
    assert code == 1
    assert "num_labels=2" in err
    for path in model.glob("token*"):
        path.unlink()
    code, _, err = call("score", "--model", model, "--data", data)
    assert code == 1
    assert "has no tokenizer" in err


def test_verify_server_needs_a_model(call: Any) -> None:
    code, _, err = call("verify", "--server", "http://127.0.0.1:1")
    assert code == 2
    assert "--model" in err
    code, _, err = call("verify")
    assert code == 2


def test_serving_without_its_packages_names_the_extra(call: Any, monkeypatch: Any) -> None:
    for name in list(sys.modules):
        if name.startswith("hf_reward.scoring.serving"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = call("serve", "--model", "m")
    assert code == 1
    assert "pip install 'hf_reward[serve]'" in err


def test_serve_suggests_a_command_when_the_server_has_started(call: Any, monkeypatch: Any, tmp_path: Path) -> None:
    url = "http://[::1]:8000"
    monkeypatch.setattr("hf_reward.scoring.serving.server.serve", lambda *_, on_start, **__: on_start(url))
    _, _, err = call("serve", "--model", "m")
    assert f"--server {shlex.quote(url)} --model m" in err
    (tmp_path / "token").write_text("secret")
    (tmp_path / "token").chmod(0o600)
    _, _, err = call("serve", "--model", "m", "--token-file", tmp_path / "token")
    assert f"--model m --token-file {tmp_path / 'token'}" in err, "the command needs the server's token"


def test_serve_takes_several_models_by_name(call: Any, monkeypatch: Any, tmp_path: Path) -> None:
    served: list[Any] = []

    def serve(models: Any, settings: Any, *, on_start: Any, **_: Any) -> None:
        served.append(models)
        on_start("http://127.0.0.1:8000")

    monkeypatch.setattr("hf_reward.scoring.serving.server.serve", serve)
    _, _, err = call("serve", "--model", "a=outputs/run", "--model", "org/b=org/model")
    assert served == [{"a": "outputs/run", "org/b": "org/model"}]
    assert "--server 'http://127.0.0.1:8000#a' --model outputs/run" in err
    folder = tmp_path / "lr=1e-5"
    folder.mkdir()
    call("serve", "--model", folder)  # a folder with this name, not a name with a folder
    call("serve", "--model", "a=b")
    assert served[1:] == [str(folder), {"a": "b"}]
    for wrong in (
        ("--model", "a=x", "--model", "a=y"),
        ("--model", "a=x", "--model", "y"),
        ("--model", "x", "--model", "y"),
    ):
        code, _, err = call("serve", *wrong)
        assert (code, "Write --model NAME=PATH" in err) == (1, True)
    code, _, err = call("serve", "--model", "a=x", "--model", "b=y", "--served-model-name", "z")
    assert (code, "`--served-model-name` is for a single model" in err) == (1, True)
    assert len(served) == 3


def test_verify_server_sends_the_token_of_the_file(call: Any, monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o600)
    sent: dict[str, Any] = {}

    def check_server(*_: Any, **given: Any) -> Any:
        sent.update(given)
        return SimpleNamespace(passed=True)

    monkeypatch.setattr("hf_reward.scoring.server_check.check_server", check_server)
    call("verify", "--server", "http://127.0.0.1:1", "--model", "m", "--token-file", tmp_path / "token")
    assert sent["token"] == "secret"
    code, _, err = call("verify", tmp_path, "--token-file", tmp_path / "token")
    assert code == 2
    assert "--server" in err


def test_the_command_to_try_next_keeps_the_columns(call: Any, model: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", [{"prompt": row["prompt"], "answer": row["response"]} for row in ROWS[:2]])
    code, out, _ = call("score", "--model", model, "--data", data, "--columns", "response=answer")
    assert code == 0
    assert f"--data {data} --columns response=answer --out scored.jsonl" in out


def test_serve_suggests_nothing_when_its_port_is_in_use(call: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        code, _, err = call("serve", "--model", "m", "--port", other.getsockname()[1])
    assert code == 1
    assert "The server cannot listen on" in err
    assert "Next:" not in err


def test_rows_go_to_standard_output_and_everything_else_does_not(
    call: Any, model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    more_rows = [{"prompt": "é", "response": "\u2028é"}, {"prompt": "a", "response": ""}]
    data = jsonl(tmp_path / "rows.jsonl", [*ROWS, *more_rows])
    before = set(tmp_path.iterdir())
    for more in ([], ["--json"]):
        code, out, err = call("score", "--model", model, "--data", data, "--out", "-", *more)
        assert code == 3
        assert "4 of 5 rows scored" in err
        assert "rows.jsonl, line 5" in err
        call("score", "--model", model, "--data", data, "--out", tmp_path / "out.jsonl", "--overwrite")
        assert out == (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    lists = jsonl(tmp_path / "lists.jsonl", LISTS)
    code, out, _ = call("rank", "--model", model, "--data", lists, "--out", "-")
    assert code == 0
    assert len([json.loads(line)["best"] for line in out.splitlines()]) == len(LISTS)
    for words in (["--resume"], ["--overwrite"], ["--part", "0/2"], ["--output-format", "parquet"]):
        code, out, err = call("score", "--model", model, "--data", data, "--out", "-", *words)
        assert (code, out) == (2, "")
    files = {path.name for path in set(tmp_path.iterdir()) - before}
    assert files == {"out.jsonl", "out.jsonl.manifest.json", "out.quarantine.jsonl", "lists.jsonl"}


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "--model", "m", "--data", "d", "--out", "-"],
        ["audit", "compare", "a", "b", "--out", "-"],
        ["benchmark", "llmbar", "--model", "m", "--out", "-"],
        ["check-data", "--data", "d", "--out", "-"],
        ["split", "--data", "d", "--out", "-"],
        ["import", "--from", "f", "--out", "-"],
    ],
)
def test_folders_cannot_go_to_standard_output(call: Any, words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert "name a folder" in err
    assert not list(tmp_path.iterdir())
