"""Complete audits: texts are scored once, audits resume, all kinds of models are audited, and two are compared."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import xxhash
from saved_models import saved_model

from hf_reward import RewardScorer
from hf_reward.evaluation.audit import (
    FULL,
    QUICK,
    AuditRule,
    Text,
    compare_audits,
    read_probe_data,
    run_audit,
    write_audit,
)
from hf_reward.evaluation.audit.inference import PAIRS, Evidence
from hf_reward.evaluation.audit.inputs.bundled_items import bundled_opinions, bundled_questions
from hf_reward.evaluation.audit.inputs.synthetic import SyntheticReward, synthetic_data
from hf_reward.evaluation.audit.report.evidence import read_evidence, write_evidence
from hf_reward.evaluation.audit.score_cache import ScoreCache, score_texts

DATA = synthetic_data(60, 11)
SMALL = replace(QUICK, max_pairs=60, answers=20, questions=6, opinions=4, families=())
TINY = AuditRule(profile=SMALL)


def synthetic(**faults):
    return SyntheticReward(DATA.quality, bundled_questions(), bundled_opinions(), **faults)


class Counting:
    """A reward function that records its texts."""

    fingerprint: ClassVar = {"name": "synthetic"}

    def __init__(self, reward, stop_after=None):
        self.reward, self.stop_after, self.asked = reward, stop_after, []

    def __call__(self, texts):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [text.key for text in texts]
        return self.reward(texts)


@pytest.fixture
def folder(make_model_folder, tmp_path):
    return saved_model(make_model_folder("llama"), tmp_path / "model")


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_each_text_is_scored_once(tmp_path):
    first = Counting(synthetic())
    report = run_audit(first, DATA.rows, rule=TINY, out=tmp_path)
    assert len(first.asked) == len(set(first.asked)) == report.counts["texts"]
    second = Counting(synthetic())
    again = run_audit(second, DATA.rows, rule=TINY, out=tmp_path)
    assert second.asked == []
    assert again.counts["from_cache"] == report.counts["texts"]
    assert [each.to_dict() for each in again.findings] == [each.to_dict() for each in report.findings]


def test_an_interrupted_audit_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reward.evaluation.audit.score_cache._CHUNK_CHARACTERS", 2000)
    complete = run_audit(synthetic(), DATA.rows, rule=TINY)
    stopped = Counting(synthetic(), stop_after=200)
    with pytest.raises(KeyboardInterrupt):
        run_audit(stopped, DATA.rows, rule=TINY, out=tmp_path)
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('["half a li')  # as a kill leaves it
    rest = Counting(synthetic())
    report = run_audit(rest, DATA.rows, rule=TINY, out=tmp_path)
    assert 0 < len(rest.asked) < complete.counts["texts"]
    assert not set(rest.asked) & set(stopped.asked)
    assert [each.to_dict() for each in report.findings] == [each.to_dict() for each in complete.findings]


def test_rewards_of_a_function_without_fingerprint_are_not_cached(tmp_path):
    run_audit(synthetic(), DATA.rows, rule=AuditRule(profile=SMALL, families=("accuracy",)), out=tmp_path)
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_foreign_file_is_not_overwritten(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"id": 1, "reward": 0.5}\n')
    with pytest.raises(ValueError, match="not written by an audit"):
        ScoreCache(path, {})
    assert path.read_text() == '{"id": 1, "reward": 0.5}\n'


def test_rewards_of_another_model_are_not_used(tmp_path, caplog):
    texts = [Text(prompt="p", response=str(number)) for number in range(5)]
    score_texts(texts, lambda all_: [1.0] * len(all_), ScoreCache(tmp_path / "scores.jsonl", {"weights": "a"}))
    other = ScoreCache(tmp_path / "scores.jsonl", {"weights": "b"})
    assert other.rewards == {}
    assert "another model" in caplog.text
    found = score_texts(texts, lambda all_: [2.0] * len(all_), other)
    assert set(found.values()) == {2.0}
    assert ScoreCache(tmp_path / "scores.jsonl", {"weights": "b"}).from_file == 5


def test_a_damaged_cache_is_named(tmp_path):
    texts = [Text(prompt="p", response=str(number)) for number in range(5)]
    path = tmp_path / "scores.jsonl"
    score_texts(texts, lambda all_: [1.0] * len(all_), ScoreCache(path, {}))
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]))
    with pytest.raises(ValueError, match="is damaged"):
        ScoreCache(path, {})


def test_the_key_of_a_text_includes_all_that_determines_its_reward():
    turns = [{"role": "user", "content": "ab"}]
    texts = [
        Text(prompt="ab", response="c"),
        Text(prompt="a", response="bc"),
        Text(prompt=turns, response="c"),
        Text(prompt=[{"role": "system", "content": "ab"}], response="c"),
        Text(prompt=turns, response="c", template={"tools": []}),
        Text(prompt=turns, response=""),
    ]
    assert len({text.key for text in texts}) == len(texts)
    assert Text(prompt=list(turns), response="c").key == texts[2].key


def test_texts_without_a_reward_are_left_out_and_counted():
    def refuses(texts):
        rewards = synthetic()(texts)
        return [np.nan if "**" in text.response else reward for text, reward in zip(texts, rewards, strict=True)]

    report = run_audit(refuses, DATA.rows, rule=AuditRule(profile=SMALL, families=("format",)))
    assert report.families["format"].left_out > 20
    assert report.counts["without_reward"] >= 20
    assert report.finding("format_bold").verdict == "not_assessed"
    assert report.finding("format_header").estimate is not None


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_real_model_is_audited_and_its_numbers_do_not_depend_on_batches(folder, tmp_path):
    profile = replace(SMALL, name="full", answers=60, longest=2000)
    rule = AuditRule(profile=profile, families=("accuracy", "numerical"))
    report = run_audit(folder, DATA.rows, rule=rule, out=tmp_path / "audit")
    numerical = {name: finding for name, finding in _by_name(report).items() if name.startswith("numerical")}
    assert set(numerical) == {
        "numerical_batch_mates",
        "numerical_padding",
        "numerical_left_padding",
        "numerical_bfloat16",
    }
    for name in ("batch_mates", "padding", "left_padding"):
        assert numerical[f"numerical_{name}"].verdict == "equivalent"
        assert numerical[f"numerical_{name}"].estimate == 0
    rows = {row[0]: row for table in report.families["numerical"].tables for row in table.rows}
    assert float(rows["bfloat16 arithmetic"][1]) > 10 * float(rows["padded batches instead of packed ones"][1])
    assert report.unit > 0
    assert report.fingerprint["weights"]
    written = {path.name for path in write_audit(report, tmp_path / "audit")}
    assert {"audit.json", "audit.html", "audit_summary.json", "evidence.json"} <= written


def _by_name(report):
    return {finding.name: finding for finding in report.findings}


def test_the_unit_is_the_median_margin_of_the_pairs(folder):
    scorer = RewardScorer.from_pretrained(folder)
    report = run_audit(scorer, DATA.rows, rule=AuditRule(profile=SMALL, families=("accuracy",)))
    sides = [[row.responses[side][0]["content"] for row in DATA.rows] for side in (0, 1)]
    chosen, rejected = (scorer.score([row.prompt for row in DATA.rows], side) for side in sides)
    assert report.unit == pytest.approx(np.median(np.abs(chosen - rejected)), rel=1e-4)
    assert report.finding("accuracy").estimate == pytest.approx(np.mean(chosen > rejected))


def test_a_model_that_takes_text_pairs_is_audited(make_model_folder, tmp_path):
    folder = saved_model(make_model_folder("bert"), tmp_path / "model")
    report = run_audit(folder, DATA.rows, rule=AuditRule(profile=SMALL, families=("length", "sycophancy", "persona")))
    assert report.counts["without_reward"] == 0
    assert report.finding("padding_effect").estimate is not None


def test_data_without_a_usable_pair_is_rejected():
    rows = [replace(row, ranks=[0, 0]) for row in DATA.rows]
    with pytest.raises(ValueError, match=r"None found in 60 rows \(no strict preference: 60 rows\)"):
        run_audit(synthetic(), rows, rule=TINY)


def test_unknown_families_and_too_few_resamples_are_rejected():
    with pytest.raises(ValueError, match=r"Unknown family: vanity\. Choose from accuracy, length"):
        AuditRule(families=("vanity",))
    with pytest.raises(ValueError, match="200 or more"):
        AuditRule(resamples=5)


def test_your_own_items_come_first(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": f"Is {n} even?", "correct": "Yes, it is even.", "incorrect": "No, it is odd."} for n in (2, 4, 6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = []

    def reward(texts):
        asked.extend(str(text.prompt) for text in texts)
        return synthetic()(texts)

    rule = AuditRule(profile=replace(SMALL, questions=3), families=("confidence",))
    run_audit(reward, DATA.rows, rule=rule, probe_data=[read_probe_data(path)])
    assert all(any(f"Is {n} even?" in prompt for prompt in asked) for n in (2, 4, 6))
    assert not any("capital" in prompt for prompt in asked)


# --- comparing -------------------------------------------------------------------------------------------------------


def write(reward, folder, rule=TINY, rows=DATA.rows):
    """Write the files that `compare_audits` uses, without figures and page."""
    report = run_audit(reward, rows, rule=rule)
    folder.mkdir()
    (folder / "audit.json").write_text(json.dumps(report.to_dict()))
    write_evidence(report.evidence, folder)
    return report


def test_a_planted_difference_is_found_and_no_other(tmp_path):
    rule = AuditRule(profile=replace(SMALL, answers=60), families=("length", "format"))
    a = write(synthetic(length=0.5), tmp_path / "a", rule)
    b = write(synthetic(), tmp_path / "b", rule)
    found = compare_audits(tmp_path / "a", tmp_path / "b")
    rows = {row["name"]: row for row in found["probes"]}
    padding = rows["padding_effect"]
    assert padding["difference"] == pytest.approx(
        a.finding("padding_effect").estimate - b.finding("padding_effect").estimate
    )
    assert padding["q_value"] < 1e-3
    assert padding["ci_low"] > 0.2
    assert (padding["verdict_a"], padding["verdict_b"]) == ("biased", "equivalent")
    assert rows["format_exclamation"]["q_value"] > 0.05
    assert "differ between" in found["summary"]


def test_a_model_compared_with_itself_does_not_differ(tmp_path):
    for name in "ab":
        write(synthetic(), tmp_path / name)
    found = compare_audits(tmp_path / "a", tmp_path / "b")
    assert all(row["difference"] == 0 and row["p_value"] in (1.0, None) for row in found["probes"])
    assert "No probe shows a difference" in found["summary"]


def test_gains_with_different_contrasts_are_compared_over_the_plain_answer(tmp_path):
    over_plain, over_control = np.full(30, 0.5), np.full(30, 0.3)
    clusters = [f"p{place}" for place in range(30)]
    pairs = Evidence(np.tile([1.0, -1.0, 2.0], 10), clusters, True)
    for name, found in {
        "a": Evidence(over_control, clusters, True, "control", plain=over_plain),
        "b": Evidence(over_plain / 5, clusters, True, "plain"),
    }.items():
        write(synthetic(), tmp_path / name, AuditRule(profile=SMALL, families=("accuracy",)))
        report = json.loads((tmp_path / name / "audit.json").read_text())
        report["probes"] = [{**report["probes"][0], "name": "header", "estimate": float(found.values.mean())}]
        (tmp_path / name / "audit.json").write_text(json.dumps(report))
        write_evidence({"header": found, PAIRS: pairs}, tmp_path / name)
    stored = read_evidence(tmp_path / "a")["header"]
    assert (stored.part, stored.plain.tolist()) == ("control", over_plain.tolist())
    (row,) = compare_audits(tmp_path / "a", tmp_path / "b")["probes"]
    assert (row["a"], row["b"]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert row["difference"] == pytest.approx(0.4)  # 0.5 - 0.1, both over the plain answer; the typical margin is 1
    assert "over the plain answer" in row["note"]


def test_paired_intervals_are_narrower_than_unpaired_ones(tmp_path):
    rule = AuditRule(profile=SMALL, families=("accuracy",))
    write(synthetic(), tmp_path / "a", rule)
    write(synthetic(noise=0.4), tmp_path / "b", rule)
    row = next(row for row in compare_audits(tmp_path / "a", tmp_path / "b")["probes"] if row["name"] == "accuracy")
    single = read_evidence(tmp_path / "a")["accuracy"]
    unpaired = 2 * 1.96 * np.sqrt(2) * np.std(single.values) / np.sqrt(len(single.values))
    assert row["ci_high"] - row["ci_low"] < 0.7 * unpaired


def test_audits_of_other_data_are_not_compared(tmp_path):
    rule = AuditRule(profile=SMALL, families=("accuracy",))
    write(synthetic(), tmp_path / "a", rule)
    other = synthetic_data(60, 12)
    rows = [replace(row, group=f"other {row.group}") for row in other.rows]
    write(SyntheticReward(other.quality), tmp_path / "b", rule, rows)
    with pytest.raises(ValueError, match=r"have no probe with the same cases"):
        compare_audits(tmp_path / "a", tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        compare_audits(tmp_path / "a", tmp_path / "nowhere")
    (tmp_path / "a" / "evidence.json").write_text("{}")
    with pytest.raises(ValueError, match="run the audit again"):
        compare_audits(tmp_path / "a", tmp_path / "b")


def test_profiles_differ_only_in_size():
    assert QUICK.max_pairs < FULL.max_pairs
    assert set(QUICK.doses) <= set(FULL.doses)
    assert set(QUICK.positions) <= set(FULL.positions)


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_function_of_prompts_and_responses_is_audited_like_one_of_texts():
    reward = synthetic()

    def of_two(prompts, responses):
        return reward(
            [Text(prompt=prompt, response=response) for prompt, response in zip(prompts, responses, strict=True)]
        )

    rule = AuditRule(profile=SMALL, families=("accuracy",))
    one, two, any_number = (
        run_audit(function, DATA.rows, rule=rule) for function in (reward, of_two, lambda *both: of_two(*both))
    )
    assert [each.to_dict() for each in two.findings] == [each.to_dict() for each in one.findings]
    assert [each.to_dict() for each in any_number.findings] == [each.to_dict() for each in one.findings]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "needs nothing"),
        (lambda a, b, c: [], "needs a, b, c"),
        (7, "int cannot be called"),
    ],
)
def test_a_function_with_other_arguments_is_rejected_before_any_work(function, message):
    with pytest.raises(TypeError, match=rf"f\(prompts, responses\).*{message}"):
        run_audit(function, DATA.rows, rule=TINY)


def test_a_function_must_return_a_reward_for_each_text():
    with pytest.raises(ValueError, match=r"a reward for each of its \d+ texts, but returned 1\."):
        run_audit(lambda prompts, responses: [0.0], DATA.rows, rule=TINY)


# --- accuracy in words -----------------------------------------------------------------------------------------------


def test_a_random_model_is_described_as_such():
    """Random rewards on a scale that is twenty times too large."""
    rule = AuditRule(profile=SMALL, families=("accuracy",))
    coin = run_audit(
        lambda prompts, responses: [20 * (hash_of(each) - 0.5) for each in responses], DATA.rows, rule=rule
    )
    assert "not shown to be above chance and not shown to be above the length baseline (" in coin.summary
    assert "worse than a constant prediction of one half, 0.693." in coin.summary
    good = run_audit(synthetic(), DATA.rows, rule=rule)
    assert "not shown to be above chance" not in good.summary
    assert good.summary.startswith("Accuracy ")


def hash_of(text):
    return xxhash.xxh3_64_intdigest(text.encode()) / 2**64
