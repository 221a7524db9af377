"""The probes of a model are scored once, and again only after its weights change."""

import pytest
import torch
from conftest import randomize_head
from peft import LoraConfig
from saved_models import copied, reward_model, saved_model, tokenizer_of

from hf_reward import AutoModelForRewardScoring, average_reward_models
from hf_reward.modeling import probes
from hf_reward.modeling.checkpoint_record import describe
from hf_reward.publishing.export import ExportRule, export_reward_model, save_adapter, save_merged
from hf_reward.publishing.push import _as_saved
from hf_reward.publishing.saved_model import SavedModel, load_saved


@pytest.fixture
def scored(monkeypatch):
    """Every batch of probes that is scored in this process, as weights, tokens and precision."""
    found = []
    real = probes.logits_of

    def counted(model, batch):
        weights = tuple((str(each.dtype), each.double().sum().item()) for each in model.parameters())
        tokens = tuple(batch["input_ids"].flatten().tolist())
        found.append((weights, tokens, torch.is_autocast_enabled("cpu")))
        return real(model, batch)

    monkeypatch.setattr(probes, "logits_of", counted)
    return found


@pytest.fixture
def base(make_model_folder):
    return make_model_folder("llama")


@pytest.fixture
def plain(saved_llama, tmp_path):
    return copied(saved_llama, tmp_path / "plain")


@pytest.fixture
def adapter(base, tmp_path):
    model, tokenizer = reward_model(base, lora=True), tokenizer_of(base)
    save_adapter(SavedModel(model, tokenizer, describe(model, tokenizer)), tmp_path / "adapter")
    return tmp_path / "adapter"


def once(scored, states):
    """Whether no batch was scored twice with the same weights, of which there were so many."""
    return len(set(scored)) == len(scored) > 0 and len({weights for weights, _, _ in scored}) == states


@pytest.mark.parametrize(
    ("kind", "dtype", "states"),
    [
        ("plain", "float32", 1),
        ("plain", "bfloat16", 3),  # as loaded, rounded, and in half precision
        ("adapter", "float32", 2),  # with the adapter beside the base, and merged
    ],
)
def test_an_export_scores_the_probes_once_for_each_state_of_the_weights(kind, dtype, states, request, tmp_path, scored):
    source = request.getfixturevalue(kind)
    scored.clear()
    report = export_reward_model(source, tmp_path / "out", ExportRule(dtype=dtype))
    assert report.verification.equal
    assert once(scored, states)


@pytest.mark.parametrize(("lora", "states"), [(False, 1), (True, 2)])
def test_a_save_scores_the_probes_once_for_each_state_of_the_weights(lora, states, base, tmp_path, scored):
    model = reward_model(base, lora=lora)
    scored.clear()
    save_merged(model, tokenizer_of(base), tmp_path / "out")
    assert once(scored, states)


def test_an_average_scores_each_model_once_and_itself(base, tmp_path, scored):
    members = [saved_model(base, tmp_path / f"member-{seed}", seed=seed) for seed in (1, 2)]
    scored.clear()
    average_reward_models(members, tmp_path / "out")
    assert once(scored, 3)


def test_a_model_about_to_be_pushed_is_scored_once(plain, scored):
    model = AutoModelForRewardScoring.from_pretrained(plain)
    scored.clear()
    saved = _as_saved(model, tokenizer_of(plain), str(plain))
    saved.described()
    assert once(scored, 1)
    randomize_head(model)
    further = _as_saved(model, tokenizer_of(plain), str(plain))
    assert further.rewards != saved.rewards
    assert (saved.record.versions, further.record.probes) == (load_saved(plain).record.versions, {})


def test_changed_weights_are_scored_again(plain):
    saved = load_saved(plain)
    before = saved.rewards
    randomize_head(saved.model)
    assert saved.rewards == before, "known until a step says that it changed them"
    changed = saved.changed(saved.model)
    assert changed.note_change("another head", before) > 0.1
    assert changed.changes.differences.keys() == {"another head"}
    assert changed.probes is saved.probes


def test_known_rewards_are_those_of_the_probes_of_today(plain, scored):
    """A record of an earlier version may hold other probes: they are compared, and ours are scored too."""
    record = describe(load_saved(plain).model, tokenizer_of(plain))
    record.probes["conversations"] = record.probes["conversations"][:5]
    record.probes["rewards"] = {"float32": record.probes["rewards"]["float32"][:5]}
    record.save(plain)
    scored.clear()
    saved = load_saved(plain)
    assert len(scored) == 5
    assert len(saved.rewards) == len(saved.probes) > 5


def test_casting_to_float32_forgets_rewards_only_where_weights_change(base):
    tokenizer = tokenizer_of(base)
    model = reward_model(base, dtype="bfloat16", peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    saved = SavedModel(model, tokenizer, describe(model, tokenizer, probes={}))
    cast = saved.in_float32()
    assert cast is not saved
    assert cast.in_float32() is cast
