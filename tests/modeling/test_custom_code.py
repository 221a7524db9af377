"""Models with custom code: refused unless trusted; trained, saved with their code, scored and verified."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DECODERS, randomize_head
from reward_parity import scorer_rewards, server_rewards, stock_rewards
from saved_models import edit_json, saved_model
from training_runs import load, make_trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from hf_reward import RewardScorer
from hf_reward.cli.app import app
from hf_reward.publishing.export import ExportRule, export_reward_model
from hf_reward.publishing.staged_files import PushRule, assemble
from hf_reward.publishing.verify import verify_checkpoint
from hf_reward.scoring.serving import server
from hf_reward.scoring.serving.settings import ServerSettings
from hf_reward.training.collators import packs

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_code"
"""
MODELING = """
from torch import nn
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .configuration_own import OwnConfig


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.model, self.vocab_size = OwnModel(config), config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


class OwnForSequenceClassification(LlamaForSequenceClassification):
    config_class = OwnConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels, self.model = config.num_labels, OwnModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
"""
MEAN_POOLING = """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = (attention_mask if attention_mask is not None else input_ids.new_ones(input_ids.shape)).unsqueeze(-1)
        return SequenceClassifierOutputWithPast(logits=self.score((hidden * mask).sum(1) / mask.sum(1)))
"""


def own_model(make_model_folder: Any, name: str, *, pooled: bool = False) -> Path:
    """A tiny language model whose folder brings its code; some classify by the mean of all positions."""
    folder = make_model_folder("llama", name)
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING + (MEAN_POOLING if pooled else ""))
    names = {"AutoModel": "OwnModel", "AutoModelForCausalLM": "OwnForCausalLM"}
    names["AutoModelForSequenceClassification"] = "OwnForSequenceClassification"
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", **{k: f"modeling_own.{v}" for k, v in names.items()}}
    edit_json(folder / "config.json", auto_map=auto_map, model_type="own_code", architectures=["OwnForCausalLM"])
    return folder


@pytest.fixture(autouse=True)
def _modules_of_its_own(tmp_path, monkeypatch):
    import transformers.dynamic_module_utils as dynamic

    for name in [name for name in sys.modules if name.split(".")[0] in ("transformers_modules", "owncode")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def test_their_code_runs_only_where_it_is_trusted(make_model_folder, tmp_path, chat_pairs, chat_tokenizer):
    folder = own_model(make_model_folder, "untrusted")
    (folder / "modeling_own.py").write_text("raise SystemExit('ran')")
    for attempt in (lambda: load(folder), lambda: make_trainer(folder, chat_pairs, tmp_path / "run")):
        with pytest.raises(ValueError, match="custom code"):
            attempt()


@pytest.mark.parametrize("pooled", [False, True], ids=["last-token", "mean"])
def test_by_name_and_as_an_object(make_model_folder, tmp_path, chat_pairs, chat_tokenizer, monkeypatch, pooled):
    folder = own_model(make_model_folder, f"own-{pooled}", pooled=pooled)
    trainer = make_trainer(folder, chat_pairs, tmp_path / "run", trust_remote_code=True, learning_rate=1e-2)
    assert type(trainer.model).__name__ == "OwnForSequenceClassification"
    assert packs(trainer.data_collator) != pooled, "what a forward of their own reads is left to it"
    trainer.train()
    monkeypatch.chdir(tmp_path)
    by_name = compared(trainer, chat_pairs[:3], tmp_path / "by-name")

    given = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, trust_remote_code=True)
    randomize_head(given)
    trainer = make_trainer(
        given, chat_pairs, tmp_path / "object", processing_class=chat_tokenizer, trust_remote_code=True
    )
    trainer.train()
    assert not np.allclose(compared(trainer, chat_pairs[:3], tmp_path / "as-object"), by_name)


def compared(trainer: Any, rows: Any, folder: Path) -> np.ndarray:
    """Rewards of a saved model of custom code, as `assert_same_rewards` compares those of others."""
    trainer.save_model(str(folder))
    assert {"modeling_own.py", "configuration_own.py"} <= {path.name for path in folder.iterdir()}
    assert "own_code" in json.loads((folder / "config.json").read_text())["model_type"]
    expected = stock_rewards(folder, rows)
    predicted = trainer.predict(rows).predictions
    scored = scorer_rewards(RewardScorer.from_pretrained(folder, trust_remote_code=True), rows)
    assert expected == pytest.approx(np.asarray(predicted), rel=1e-5, abs=1e-5)
    assert expected == pytest.approx(np.asarray(scored), rel=1e-5, abs=1e-5)
    assert np.ptp(expected) > 1e-3
    return expected


@pytest.fixture
def saved_by_kind(make_model_folder: Any, tmp_path: Path) -> Callable[[str], Path]:
    """A saved reward model, or an adapter on a base, that needs code of its folder; verified in this process."""

    def make(kind: str) -> Path:
        base = own_model(make_model_folder, f"own-{kind}-base")
        return saved_model(base, tmp_path / kind, lora=kind == "adapter", trust_remote_code=True)

    return make


KINDS = ["whole", "adapter"]
UNTRUSTED = r"requires custom code.*`trust_remote_code=True` \(`--trust-remote-code`\)"


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_verification_and_the_server_need_trust(saved_by_kind, chat_pairs, kind):
    folder = saved_by_kind(kind)
    settings = ServerSettings(trust_remote_code=True, device="cpu")
    for attempt in (
        lambda: RewardScorer.from_pretrained(folder),
        lambda: verify_checkpoint(folder),
        lambda: server._loaded(folder, ServerSettings(device="cpu")),
    ):
        with pytest.raises(ValueError, match=UNTRUSTED):
            attempt()
    found = verify_checkpoint(folder, trust_remote_code=True, only=["alone", "right"])
    assert found.equal, str(found)
    scorer = server._loaded(folder, settings)
    expected = stock_rewards(folder, chat_pairs[:3])
    assert scorer_rewards(scorer, chat_pairs[:3]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert server_rewards(scorer, chat_pairs[:3]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert np.ptp(expected) > 1e-3
    with pytest.raises(ValueError, match="loaded already"):
        server._loaded(scorer, ServerSettings(trust_remote_code=True))


@pytest.mark.parametrize("kind", KINDS)
def test_export_and_push_need_trust_and_hand_on_the_code(saved_by_kind, chat_pairs, tmp_path, kind):
    folder, out = saved_by_kind(kind), tmp_path / "exported"
    before = stock_rewards(folder, chat_pairs[:2])
    with pytest.raises(ValueError, match=UNTRUSTED):
        export_reward_model(folder, out, ExportRule(allow_unserved=True))
    with pytest.raises(ValueError, match=UNTRUSTED):
        assemble(folder, tmp_path / "refused", "me/model", PushRule())
    assert not out.exists()
    report = export_reward_model(folder, out, ExportRule(allow_unserved=True, trust_remote_code=True))
    assert report.verification is not None
    assert [verdict.outcome for verdict in report.compatibility] == ["same with an option"] * 2
    assemble(folder, tmp_path / "pushed", "me/model", PushRule(trust_remote_code=True))
    for place in (out, tmp_path / "pushed"):
        assert {"modeling_own.py", "configuration_own.py"} <= {path.name for path in place.iterdir()}
        assert "trust_remote_code=True" in (place / "README.md").read_text()
        assert stock_rewards(place, chat_pairs[:2]) == pytest.approx(before, rel=1e-4, abs=1e-5)


@pytest.mark.slow  # a fresh process: 12 s
@pytest.mark.usefixtures("own_stock_process")
def test_a_fresh_process_runs_the_code_where_it_is_trusted(make_model_folder, tmp_path):
    folder = saved_model(own_model(make_model_folder, "own-v"), tmp_path / "saved", trust_remote_code=True)
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 1
    assert CliRunner().invoke(app, ["verify", str(folder), "--trust-remote-code"]).exit_code == 0


def test_code_without_a_classifier_is_refused(make_model_folder):
    folder = own_model(make_model_folder, "causal-only")
    content = json.loads((folder / "config.json").read_text())
    del content["auto_map"]["AutoModelForSequenceClassification"]
    edit_json(folder / "config.json", auto_map=content["auto_map"])
    with pytest.raises(ValueError, match="requires a sequence classifier, but `auto_map`"):
        load(folder, trust_remote_code=True)


def test_a_class_that_no_auto_class_loaded_is_saved_with_its_code(make_model_folder, tmp_path, chat_pairs, monkeypatch):
    package = tmp_path / "owncode"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "configuration_own.py").write_text(CONFIGURATION)
    (package / "modeling_own.py").write_text(MODELING)
    monkeypatch.syspath_prepend(str(tmp_path))
    from owncode.modeling_own import OwnConfig, OwnForSequenceClassification  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(make_model_folder("llama"))
    torch.manual_seed(0)
    config = OwnConfig(**{**DECODERS["llama"](len(tokenizer)).to_dict(), "model_type": "own_code", "num_labels": 1})
    trainer = make_trainer(
        OwnForSequenceClassification(config), chat_pairs, tmp_path / "run", processing_class=tokenizer
    )
    trainer.train()
    compared(trainer, chat_pairs[:3], tmp_path / "saved")
