"""The examples of the scoring, serving and length-bias guides run with a tiny model."""

import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from serving_scorers import asked

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = re.findall(r"```python\n(.*?)```", (DOCS / "guides" / "scoring.md").read_text(encoding="utf-8"), re.DOTALL)
SERVING = (DOCS / "guides" / "serving.md").read_text(encoding="utf-8")
CURLS = re.findall(
    r"curl localhost:8000(/\w+) [^']*'[^']*'\s+(?:\\\s+)?-d '([^']*)'\s+```\s+```json\n(.*?)```", SERVING, re.DOTALL
)


def _run(block: str, folder: Path, **scope: Any) -> dict[str, Any]:
    exec(block.replace("outputs/quickstart", str(folder)), scope)
    return scope


def test_scoring(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _run(BLOCKS[0], folder)
    assert found["rewards"].shape == (2,)
    assert found["ranking"].best in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.interop
@pytest.mark.parametrize("form", ["scorer", "folder"])
def test_trl(form: str, folder: Path, make_model_folder: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import trl
    from datasets import Dataset

    made = trl.GRPOConfig
    small = {"max_completion_length": 4, "num_generations": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    monkeypatch.setattr(trl, "GRPOConfig", lambda **options: made(**options, **small, use_cpu=True, bf16=False))
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[1].replace("your/policy", str(make_model_folder("llama", "policy")))
    if form == "folder":
        code = code.replace('RewardScorer.from_pretrained("outputs/quickstart")', '"outputs/quickstart"')
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is 2 + 2?"}]}] * 2)
    trainer = _run(code, folder, prompts=prompts)["trainer"]
    assert "reward" in next(entry for entry in trainer.state.log_history if "reward" in entry)


def test_pipelines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(BLOCKS[2], folder)
    ours, stock = capsys.readouterr().out.strip().splitlines()[-2:]
    numbers = [float(re.search(r"-?\d+\.\d+(e-?\d+)?", line).group()) for line in (ours, stock)]  # type: ignore[union-attr]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)


def _shape(value: Any) -> Any:
    """Return a JSON value with its leaves replaced by their types."""
    if isinstance(value, dict):
        return {name: _shape(part) for name, part in value.items()}
    return [_shape(part) for part in value] if isinstance(value, list) else type(value).__name__


def test_the_curl_calls_of_the_serving_guide_return_the_shown_fields(make_scorer: Any) -> None:
    async def test(client: httpx2.AsyncClient) -> None:
        for path, body, shown in CURLS:
            answer = await client.post(path, json=json.loads(body.replace("quickstart", "tiny")))
            assert answer.status_code == 200, answer.text
            assert _shape(answer.json()) == _shape(json.loads(shown)), path

    assert [path for path, _, _ in CURLS] == ["/score", "/score", "/rank", "/get_reward", "/classify"]
    asked(make_scorer(max_length=256), test)


def test_length_correction(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"prompt": f"Why {number}?", "response": "So it is. " * (number % 9 + 1) + str(number)} for number in range(40)
    ]
    (tmp_path / "other_rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = (DOCS / "guides" / "length-bias.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found = _run(block, folder)
    assert found["corrected"].corrects_length
    assert not found["scorer"].corrects_length
