"""The card states the origin of the weights and how much each step changed the rewards, without local paths."""

from typing import Any

import pytest
from card_records import front_matter, full_record, render

MERGED: dict[str, Any] = {"differences": {"merge": 3e-6}}
IMPORTED: dict[str, Any] = {"imported_from": "trl_value_head", "offset": -0.25}
SAVED = (
    "Dequantising the base changed rewards by at most 0.001; merging the adapter changed rewards by at most 1e-07; "
    "casting to bfloat16 changed rewards by at most 0.004 (on probe conversations, relative to `max(1, abs(reward))`)."
)


@pytest.mark.parametrize(
    ("origin", "base", "sentence", "metadata"),
    [
        (MERGED, "o/b", "). Merging the adapter changed rewards by at most 3e-06 (", ("o/b", "finetune")),
        ({"averaged": ["o/a", "o/b"]}, "o/c", "the average of 2 models ([o/a]", (["o/a", "o/b"], "merge")),
        ({"averaged": ["/x/a", "./b"]}, "/x/c", "of 2 models that were fine-tuned from a local model.", (None, None)),
        ({"averaged": ["/x/a", "./b"]}, "o/b", "of 2 models that were fine-tuned from [o/b]", ("o/b", "finetune")),
        (
            {"differences": {"dequantised": 0.001, "merge": 1e-7, "cast to bfloat16": 0.004}},
            "o/b",
            SAVED,
            ("o/b", "finetune"),
        ),
        (IMPORTED, "o/b", "format trl_value_head, not trained with hf_reward; base model: [o/b]", ("o/b", "finetune")),
        (IMPORTED, "o/b", "The original model's reward is this model's reward - 0.25.", ("o/b", "finetune")),
        ({**IMPORTED, "offset": 1.5}, "o/b", "reward is this model's reward + 1.5.", ("o/b", "finetune")),
        ({**IMPORTED, **MERGED}, "o/b", "reward - 0.25. Merging the adapter changed", ("o/b", "finetune")),
        ({}, "models/Base", "Fine-tuned from a local model.", (None, None)),
    ],
)
def test_the_card_states_the_origin_of_the_weights(origin, base, sentence, metadata, tmp_path):
    text = render(tmp_path / "m", full_record(origin=origin, base_model=base))
    assert sentence in text
    found = front_matter(text)
    assert (found.get("base_model"), found.get("base_model_relation")) == metadata
    assert ("generated_from_trainer" in found["tags"]) == ("imported_from" not in origin)
    assert "models/Base" not in text
    assert "/x/" not in text


def test_steps_contain_no_local_path(tmp_path):
    differences = {
        "from runs/a to the average": 0.3,
        "from /x/b\nc to the average": 0.2,
        "cast to float16": 0.002,
        "some step on runs/a": 0.1,
        "not measured": None,
    }
    text = render(tmp_path / "m", full_record(origin={"averaged": ["runs/a", "/x/b\nc"], "differences": differences}))
    assert (
        "; their rewards differ from this one's by up to 0.3. Casting to float16 changed rewards by at most 0.002; "
        "another step changed rewards by at most 0.1 (" in text
    )
    for hidden in ("runs/a", "/x/", "not measured changed"):
        assert hidden not in text


def test_notes_of_an_import_are_part_of_the_usage_section(tmp_path):
    notes = ["It strips newlines.", "Add `reward_token_id` | from /home/me/config.json."]
    origin = {**IMPORTED, "read_at": "last attended token", "notes": notes, "mean": 1.0, "std": 2.0}
    text = render(tmp_path / "m", full_record(origin=origin))
    assert (
        "To reproduce the rewards of the original model:\n\n"
        "- The original model computes its reward at the last attended token.\n"
        "- It strips newlines.\n"
        "- Add \\`reward_token_id\\` \\| from LOCAL/config.json.\n"
    ) in text.split("## Usage")[1].split("## Training")[0]
    for silent in ({**IMPORTED, "offset": 0.0}, {**origin, "imported_from": None}):
        text = render(tmp_path / "m", full_record(origin=silent))
        assert "To reproduce the rewards" not in text
        assert "The original model's reward" not in text
