"""The test Hub refuses the same metadata as the Hub."""

import re

import pytest
from hub_metadata import InvalidMetadata, check_card, check_evaluation_results

EVALUATION = b"- dataset: {id: allenai/reward-bench, task_id: default}\n  value: 0.9\n"


def _index_with(result: str) -> str:
    return "model-index: [{name: judge, results: [{" + result + "}]}]"


_TASK, _DATASET = "task: {type: a}", "dataset: {type: b, name: c}"
INVALID_METADATA = {  # by what the error names
    '"license" with value "my-own"': "license: my-own",
    '"license_name" is required': "license: other",
    '"language" with value "English"': "language: English",
    '"language" with value "False"': "language: no",
    '"pipeline_tag" with value "reward"': "pipeline_tag: reward",
    '"base_model" with value "./runs/base"': "base_model: ./runs/base",
    '"base_model" with value "/home/me/model"': "base_model: /home/me/model",
    '"base_model" with value "checkpoint-12"': "base_model: checkpoint-12",
    '"datasets" with value "data/train/0"': "datasets: [data/train/0]",
    '"library_name" with value "3"': "library_name: 3",
    '"tags" must be an array': "tags: reward-model",
    '"tags" with value "1"': "tags: [1]",
    '"model-index" must be an array': "model-index: {name: judge}",
    '"model-index[0].name" is required': "model-index: [{results: []}]",
    '"model-index[0].results" must be': "model-index: [{name: judge}]",
    'results[0].task.type" is': _index_with(f"{_DATASET}, metrics: [{{type: d, value: 1}}]"),
    'results[0].dataset.type" is': _index_with(f"{_TASK}, metrics: [{{type: d, value: 1}}]"),
    'results[0].metrics" must': _index_with(f"{_TASK}, {_DATASET}"),
    'metrics[0].value" is': _index_with(f"{_TASK}, {_DATASET}, metrics: [{{type: d}}]"),
    "Invalid YAML": "tags: [unclosed",
    "must be a mapping": "just a text",
}


@pytest.mark.parametrize(("error", "metadata"), INVALID_METADATA.items())
def test_invalid_metadata_are_refused(error: str, metadata: str) -> None:
    with pytest.raises(InvalidMetadata, match=re.escape(error)):
        check_card(f"---\n{metadata}\n---\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[",
        b"\xff",
        b"- value: 1",
        b"- error: bad",
        b"- dataset: {id: a/b}\n  value: 1",
        b"- dataset: {id: ./a, task_id: b}\n  value: 1",
        EVALUATION + b"  source: {name: me}\n",
    ],
)
def test_invalid_evaluation_results_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidMetadata):
        check_evaluation_results(content, "x.yaml")
