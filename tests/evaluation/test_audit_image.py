"""The family of probes that exchanges images, on models that read and ignore them; other families keep the images."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_models import saved_model
from synthetic_rewards import finding, noise, run
from vision_models import encoded, picture, save_vision_model

from hf_reward import AutoModelForRewardScoring, RewardScorer
from hf_reward.data.image_messages import as_raw, images_in
from hf_reward.data.image_source import ImageSource
from hf_reward.data.preference_row import PreferenceRow, has_images
from hf_reward.data.preferences import to_preference_row
from hf_reward.data.row_text import REFERENCE, without_references
from hf_reward.data.sources import load_source
from hf_reward.evaluation.audit import FULL, AuditReport, AuditRule, Text, run_audit, write_audit
from hf_reward.evaluation.audit.cases import Case, ScoredCase
from hf_reward.evaluation.audit.edits.image_edits import exchanged, noise_like
from hf_reward.evaluation.audit.families.image import IMAGE
from hf_reward.evaluation.audit.inference import Inference
from hf_reward.evaluation.audit.inputs.audit_inputs import AuditInputs, build_inputs
from hf_reward.evaluation.audit.rule import FAMILIES
from hf_reward.evaluation.mitigation.builders import BUILDERS, build_rows
from hf_reward.metrics.bootstrap import Bootstrap, Unit
from hf_reward.preprocessing.image_processor import load_image_processing
from hf_reward.preprocessing.tokenizer import prepare_tokenizer
from hf_reward.training.mitigation import _sources

COLOURS = ("red", "green", "blue", "orange", "purple", "black")


def raw(number: int) -> dict[str, Any]:
    """A row whose preferred response names the colour of the first shape; every sixth row has two images."""
    names = [COLOURS[place % 6] for place in (number, number + 1 + number % 5)]
    images = [encoded(picture(number)), *([encoded(picture(number + 300, (20, 12)))] if number % 6 == 0 else [])]
    parts = [
        *({"type": "image", "image": image} for image in images),
        {"type": "text", "text": f"Which colour is it in row {number}?"},
    ]
    chosen, rejected = (f"I think that the first shape is {name}." for name in names)
    return {"prompt": [{"role": "user", "content": parts}], "chosen": chosen, "rejected": rejected}


def rows(count: int) -> list[PreferenceRow]:
    return [to_preference_row(raw(number)) for number in range(count)]


KNOWN = {encoded(picture(number)): COLOURS[number % 6] for number in range(210)}


def sources(text: Text) -> list[ImageSource]:
    return [] if isinstance(text.prompt, str) else images_in(text.prompt)


def reads_image(text: Text) -> float:
    """1 if the response names the colour of the first image, with a little noise."""
    seen = sources(text)
    colour = KNOWN.get(seen[0].content or b"") if seen else None
    return float(colour is not None and colour in text.response) + 0.05 * noise(text)


def reads_text(text: Text) -> float:
    """A number that depends on the texts only."""
    bare = [{**message, "content": without_references(message["content"])} for message in text.prompt]
    return noise(replace(text, prompt=bare))


def reacts_at_random(text: Text) -> float:
    """The preference is right in most cases whatever the image, which adds noise."""
    return reads_text(text) + noise(text, seed=1)


def probed(count: int, **changes: Any) -> AuditInputs:
    return build_inputs(rows(count), replace(FULL, **changes))


# --- the edits -------------------------------------------------------------------------------------------------------


def test_noise_has_the_size_of_the_image_and_is_always_the_same():
    source = sources(Text(prompt=rows(1)[0].prompt, response=""))[0]
    made = noise_like(source)
    assert made.decode().size == source.decode().size == (40, 28)
    assert noise_like(source) == made != source
    assert {pixel for _, pixel in made.decode().getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert 0.4 < np.asarray(made.decode()).mean() / 255 < 0.6


def test_exchanged_images_keep_the_text_and_the_number_of_images():
    two, one, same = (rows(7)[place].prompt for place in (0, 1, 0))
    found = exchanged(two, one)
    assert images_in(found) == images_in(one) * 2
    assert [part.group(1) for part in REFERENCE.finditer(found[0]["content"])] == [images_in(one)[0].sha256] * 2
    assert without_references(found[0]["content"]) == "Which colour is it in row 0?"
    assert images_in(exchanged(one, two)) == images_in(two)[:1]
    assert exchanged(two, same) is None
    assert images_in(two) == images_in(rows(1)[0].prompt)  # unchanged


# --- the findings ----------------------------------------------------------------------------------------------------


def test_the_findings_match_their_definition():
    margins = {"own": (1, 2, -1, 2), "exchanged": (1, -1, -1, 0), "noise": (0, 0, 0, 0)}
    scored = []
    for place in range(4):
        rewards = {f"{image} chosen": float(values[place]) for image, values in margins.items()}
        rewards |= {f"{image} rejected": 0.0 for image in margins}
        texts = {role: Text(prompt="p", response=role) for role in rewards}
        scored.append(ScoredCase(case=Case(cluster=str(place), texts=texts), rewards=rewards))
    inference = Inference(Bootstrap(200, 0), Unit(1.5, np.full(200, 1.5)))
    found = {each.name: each for each in IMAGE.analyse(scored, probed(4), inference).findings}
    expected = {
        "image_exchanged_unchanged": 2 / 4,
        "image_noise_unchanged": 0,
        "image_exchanged_as_good": (0.5 + 0 + 0.5 + 0.25) / 4,
        "image_noise_as_good": (0.25 + 0.25 + 0.75 + 0.25) / 4,
        "image_own_accuracy": 3 / 4,
        "image_exchanged_accuracy": 1.5 / 4,
        "image_noise_accuracy": 2 / 4,
        "image_exchanged_change": 5 / 4 / np.sqrt(1.5),
        "image_noise_change": 6 / 4 / np.sqrt(1.5),
    }
    assert {name: each.estimate for name, each in found.items()} == pytest.approx(expected)
    assert {each.n for each in found.values()} == {each.clusters for each in found.values()} == {4}
    assert found["image_exchanged_as_good"].note.startswith("Accuracy lost: +37.5 points (95% interval ")
    assert [name for name, each in found.items() if each.screen_only] == list(expected)[4:]


def verdicts(reward: Callable[[Text], float], count: int = 120) -> dict[str, str]:
    found = run(IMAGE, probed(count), reward).findings
    return {each.name.removeprefix("image_"): each.verdict for each in found if not each.screen_only}


def test_a_model_that_reads_the_image_passes():
    result = run(IMAGE, probed(120), reads_image)
    assert {each.verdict for each in result.findings if not each.screen_only} == {"equivalent"}
    assert finding(result, "image_own_accuracy").estimate == 1
    assert finding(result, "image_exchanged_accuracy").ci_high < 0.9
    assert len(result.examples) == 3
    assert re.match(r"user: \[image [0-9a-f]{8}\]", result.examples[0].prompt)


def test_a_model_that_reads_only_the_text_is_found_even_in_few_rows():
    assert set(verdicts(reads_text).values()) == {"biased"}
    few = verdicts(reads_text, 24)
    assert few["exchanged_unchanged"] == few["noise_unchanged"] == "biased"
    assert few["exchanged_as_good"] == "inconclusive"


def test_a_model_whose_rewards_change_at_random_does_not_pass():
    found = verdicts(reacts_at_random)
    assert found["exchanged_unchanged"] == found["noise_unchanged"] == "equivalent"
    assert "equivalent" not in (found["exchanged_as_good"], found["noise_as_good"])


def test_a_constant_model_is_found():
    found = run(IMAGE, probed(24), lambda text: 0.0)
    assert finding(found, "image_exchanged_unchanged").verdict == "biased"
    assert finding(found, "image_exchanged_change").estimate == 0


def test_rows_with_one_image_for_all_are_not_assessed():
    alike = [to_preference_row({**raw(1), "chosen": f"Red {number}."}) for number in range(3)]
    found = run(IMAGE, build_inputs(alike, FULL), reads_image)
    assert found.not_assessed == "It needs pairs with different images that can be scored."


def test_a_broken_image_is_left_out():
    broken = {**raw(1), "prompt": [{"role": "user", "content": [{"type": "image", "image": b"no image"}]}]}
    inputs = build_inputs([*rows(4), to_preference_row(broken)], FULL)
    assert len(inputs.pairs) == 5
    assert len(IMAGE.cases(inputs)) == 4


# --- complete audits -------------------------------------------------------------------------------------------------

SMALL = replace(FULL, max_pairs=40, answers=20, questions=3, opinions=2, lists=4, families=())


def audit(scorer: Any, data: Sequence[Any], *families: str) -> AuditReport:
    return run_audit(scorer, data, rule=AuditRule(profile=SMALL, families=families, resamples=200))


def test_all_families_keep_the_images():
    three = {**raw(2), "responses": ["It is red, I am sure.", "It is blue, I am sure.", "It is odd, I am sure."]}
    three = {name: value for name, value in three.items() if name not in ("chosen", "rejected")} | {"ranks": [0, 1, 2]}
    inputs = build_inputs([*rows(30), to_preference_row(three)], SMALL)
    clusters, families = {pair.cluster for pair in inputs.pairs}, set()
    for family in FAMILIES:
        for case in (each for each in family.cases(inputs) if each.cluster in clusters):
            families.add(family.name)
            for text in case.texts.values():
                content = text.prompt[-1]["content"]
                assert sources(text)
                assert REFERENCE.findall(content) == [source.sha256 for source in sources(text)]
                assert not REFERENCE.search(text.response)
    assert families == {family.name for family in FAMILIES} - {"numerical", "confidence"}


def test_a_function_gets_images_and_text_rows():
    asked: list[Text] = []

    def score(texts: Sequence[Text]) -> list[float]:
        asked.extend(texts)
        return [reads_image(text) for text in texts]

    mixed = [*(raw(number) for number in range(20)), {"prompt": "Hello?", "chosen": "Hi there.", "rejected": "No."}]
    report = audit(score, mixed, "accuracy", "image")
    assert report.counts["pairs"] == 21
    assert report.finding("image_own_accuracy").n == 20
    assert sum(bool(sources(text)) for text in asked) == 20 * 6
    none = audit(score, mixed[-1:], "accuracy", "image")
    assert none.families["image"].not_assessed == "The data has no pairs with images."


def test_a_text_model_skips_rows_with_images_and_the_family(make_model_folder, tmp_path):
    scorer = RewardScorer.from_pretrained(saved_model(make_model_folder("llama"), tmp_path / "model"))
    text = {"prompt": [{"role": "user", "content": "Hello?"}], "chosen": "Hi there.", "rejected": "Not now."}
    report = audit(scorer, [*(raw(number) for number in range(3)), text, {**text, "chosen": "Hi."}], "image")
    assert report.skipped == {"an image, which the model does not take": 3}
    assert report.families["image"].not_assessed == "The model does not take images."


@pytest.mark.slow
def test_a_complete_audit_of_a_vision_model(tmp_path: Path, chat_tokenizer: Any):
    folder = save_vision_model(tmp_path / "model", chat_tokenizer, "qwen2_vl")
    model: Any = AutoModelForRewardScoring.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight)
    tokenizer = prepare_tokenizer(chat_tokenizer.__class__.from_pretrained(folder))
    images = load_image_processing(str(folder), model.config, tokenizer)
    scorer = RewardScorer(model.eval(), tokenizer, images=images)
    report = audit(scorer, [raw(number) for number in range(24)])
    assert report.counts["without_reward"] == 0
    assert {name for name, result in report.families.items() if result.not_assessed} <= {"calibration", "best_of_n"}
    unchanged = report.finding("image_exchanged_unchanged")
    assert (unchanged.n, unchanged.verdict) == (20, "equivalent")
    assert report.finding("image_noise_change").estimate > 0.1
    assert report.finding("numerical_batch_mates").estimate == report.finding("numerical_padding").estimate == 0
    write_audit(report, tmp_path / "audit")
    page = (tmp_path / "audit" / "audit.html").read_text(encoding="utf-8")
    assert "The image of another row does not change the margin" in page
    assert "[image " in page
    assert "\ufdd0" not in page


@pytest.mark.slow
def test_an_audit_without_images_imports_no_image_code():
    code = (
        "import sys\nfrom hf_reward.evaluation.audit import run_audit, AuditRule\n"
        "run_audit(lambda p, r: [len(x) for x in r], [dict(prompt='a', chosen='bb', rejected='c')] * 3,"
        " rule=AuditRule(families=('image', 'degenerate')))\n"
        "assert not [name for name in sys.modules if name.startswith('hf_reward.') and 'image' in name.split('.')[-1]"
        " and name.split('.')[-1] not in ('encoded_images', 'image_columns', 'model_images', 'image')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- rows against biases ---------------------------------------------------------------------------------------------


def test_rows_against_biases_keep_the_images():
    pairs = probed(8).pairs
    kinds: dict[str, list[str]] = {}
    for family, name in BUILDERS:
        kinds.setdefault(family, []).append(name)
    built = build_rows(pairs, kinds, 8.0, 0)
    (source,) = _sources(built)
    known = {image.sha256 for pair in pairs for image in images_in(pair.prompt)}
    for stored, each in zip(load_source(source), built, strict=True):
        row = to_preference_row(stored, layout="votes")
        shown = images_in(row.prompt)
        assert {image.sha256 for image in shown} <= known
        own_prompt = each["kind"] not in ("sycophancy: opinions", "sycophancy: feedback")
        assert bool(shown) == own_prompt
        assert not any(REFERENCE.search(str(response)) for response in row.responses)


def test_prompts_with_images_are_stored_and_read_again(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(picture(5)))
    prompt = [{"role": "system", "content": "Look."}, *raw(6)["prompt"]]
    prompt[1]["content"].append({"type": "image", "image": str(path)})
    row = to_preference_row({**raw(6), "prompt": prompt})
    stored = as_raw(row.prompt)
    assert stored[0] == {"role": "system", "content": "Look."}
    assert [part["type"] for part in stored[1]["content"]] == ["image", "image", "text", "image"]
    assert stored[1]["content"][3]["image"] == str(path)
    assert to_preference_row({**raw(6), "prompt": stored}).prompt == row.prompt
    assert has_images(row.prompt)
