"""The `hf-reward` command: exit codes and one-line errors; a complete run on a tiny model."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_reward import AutoModelForRewardScoring, CheckpointRecord

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


# --- the command itself ---


def test_help_lists_the_commands(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "train" in out
    assert "recipes" in out


def test_version(call):
    assert call("--version") == (0, f"hf-reward {version('hf_reward')}\n", "")


@pytest.mark.parametrize("statement", ["import hf_reward", "from hf_reward.cli.app import main; main()"])
def test_importing_and_help_do_not_load_torch(statement):
    """Which takes seconds; without it both take a fraction of one."""
    heavy = ("torch", "transformers", "datasets", "accelerate", "peft", "sklearn", "scipy", "matplotlib")
    program = f"""
import sys
sys.argv = ["hf-reward", "--help"]
try:
    {statement}
except SystemExit:
    pass
print([name for name in {heavy} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_recipes_are_listed_and_printed(call):
    code, out, err = call("recipes")
    assert code == 0
    assert "Next:" in err
    assert "Next:" not in out  # so that the list can be piped
    assert "quickstart.yaml" in out
    assert "fsdp2.yaml" in out
    code, out, _ = call("recipes", "accelerate_configs/cpu.yaml")
    assert code == 0
    assert "use_cpu: true" in out


def test_unknown_command_and_recipe(call):
    assert call("nonsense")[0] == 2
    code, _, err = call("recipes", "nowhere.yaml")
    assert code == 2
    assert "nowhere.yaml" in err


def test_missing_files_are_one_line(call, tmp_path):
    code, _, err = call("train", "--config", tmp_path / "nowhere.yaml")
    assert code == 1
    assert err.startswith("hf-reward: There is no configuration file")
    assert len(err.splitlines()) == 1


def test_unknown_setting(call):
    code, _, err = call("train", "--model_name_or_path", "m", "--train_data", "a.jsonl", "--warmup_ratio", "0.1")
    assert code == 2
    assert "--warmup_ratio" in err


def test_missing_data_is_one_line(call, tmp_path):
    words = ["--model_name_or_path", "m", "--train_data", tmp_path / "nowhere.jsonl", "--output_dir", tmp_path / "out"]
    code, _, err = call("train", *words)
    assert code == 1
    assert "There is no file or folder" in err.splitlines()[-1]
    assert "Traceback" not in err


# --- complete runs ---


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSON lines."""

    def write(rows, name="train.jsonl"):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def run_words(tmp_path):
    """The words of a small run, with changes; a setting of None is left out."""

    def words(model, train, **changes):
        settings = {
            "model_name_or_path": model,
            "train_data": train,
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 4,
            "num_train_epochs": 1,
            "use_cpu": "true",
            "report_to": "none",
            "disable_tqdm": "true",
            "logging_steps": 1,
            "save_strategy": "no",
            **changes,
        }
        return ["train", *(w for k, v in settings.items() if v is not None for w in (f"--{k}", v))]

    return words


def results(folder):
    return json.loads((folder / "all_results.json").read_text())


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
def test_train_end_to_end(call, make_model_folder, chat_pairs, write_rows, run_words, tmp_path):
    rows = write_rows(chat_pairs)
    words = run_words(
        make_model_folder("llama"), rows, eval_data=rows, use_lora="true", baselines="true", learning_rate="1e-2"
    )
    code, out, err = call(*words)
    assert code == 0, err
    folder = tmp_path / "out"
    found = results(folder)
    names = ("accuracy", "accuracy_ci_low", "accuracy_ci_high", "length_baseline", "loss")
    assert {*(f"eval_{name}" for name in names), "train_loss", "train_samples_per_second"} <= found.keys()
    assert {"baseline_tf_idf_bradley_terry", "baseline_length_rule_characters"} <= found.keys()
    assert "TF-IDF" in out
    for name in ("adapter/adapter_model.safetensors", "training_curves.png", "README.md", "reward_config.json"):
        assert (folder / name).is_file(), name

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([*chat_pairs[0]["prompt"], *chat_pairs[0]["chosen"]], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    adapter = AutoModelForRewardScoring.from_pretrained(folder / "adapter").eval()
    reward = stock(ids).logits.item()
    assert stock.config.num_labels == 1
    assert reward != 0
    assert reward == pytest.approx(adapter(ids).logits.item(), abs=1e-5)
    assert CheckpointRecord.load(folder).training["steps"] == 4

    code, _, err = call(*words)
    assert code == 1
    assert "is not empty" in err
    assert results(folder) == found
    assert call(*words, "--overwrite_output_dir")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("word", ["true", "True"])  # as the command line and as YAML give it
def test_resume_from_the_latest_checkpoint(word, call, make_model_folder, chat_pairs, write_rows, run_words, tmp_path):
    model, rows = make_model_folder("llama"), write_rows(chat_pairs)
    options = {"use_lora": "true", "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    assert call(*run_words(model, rows, output_dir=tmp_path / "uninterrupted", max_steps=4, **options))[0] == 0
    assert call(*run_words(model, rows, max_steps=2, **options))[0] == 0
    words = run_words(model, rows, max_steps=4, **options)
    assert call(*words, "--resume_from_checkpoint", "false")[0] == 1  # not empty, and not to be resumed
    code, _, err = call(*words, "--resume_from_checkpoint", word)
    assert (code, "max_steps: was 2, is 4." in err) == (1, True), err
    code, _, err = call(*words, "--resume_from_checkpoint", word, "--allow_changed_run", "true")
    assert code == 0, err
    assert losses(tmp_path / "out") == pytest.approx(losses(tmp_path / "uninterrupted"), abs=1e-6)
    assert len(losses(tmp_path / "out")) == 4


@pytest.mark.slow
def test_test_size_holds_out_whole_prompts(call, make_model_folder, chat_pairs, write_rows, run_words, tmp_path):
    rows = write_rows([*chat_pairs, *chat_pairs])  # each prompt twice
    code, out, err = call(*run_words(make_model_folder("llama"), rows, test_size=0.25, freeze_backbone="true"))
    assert code == 0, err
    found = results(tmp_path / "out")
    assert (found["eval_num_pairs"], found["eval_num_prompts"]) == (8, 4)
    assert "eval_accuracy" in out


@pytest.mark.slow
def test_encoder_with_own_text_columns(call, make_model_folder, text_pairs, write_rows, run_words, tmp_path):
    renamed = [{"question": r["prompt"], "good": r["chosen"], "bad": r["rejected"]} for r in text_pairs]
    columns = json.dumps({"prompt": "question", "chosen": "good", "rejected": "bad"})
    rows = write_rows(renamed)
    code, _, err = call(*run_words(make_model_folder("deberta_v2"), rows, eval_data=rows, columns=columns))
    assert code == 0, err
    assert results(tmp_path / "out")["eval_num_pairs"] == 16


@pytest.mark.slow
def test_stream(call, make_model_folder, chat_pairs, write_rows, run_words, tmp_path):
    rows = write_rows(chat_pairs)
    held_out = write_rows(chat_pairs[:4], "test.jsonl")
    words = run_words(make_model_folder("llama"), rows, eval_data=held_out, streaming="true", max_steps=3)
    code, _, err = call(*words)
    assert code == 0, err
    assert len(losses(tmp_path / "out")) == 3


@pytest.mark.slow
def test_sft_adapter_becomes_a_reward_model(
    call, make_model_folder, chat_tokenizer, chat_pairs, write_rows, run_words, tmp_path
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = make_model_folder("llama")
    sft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=4))
    sft.save_pretrained(tmp_path / "sft")
    chat_tokenizer.save_pretrained(tmp_path / "sft")
    words = run_words(
        tmp_path / "sft", write_rows(chat_pairs), test_size=0.25, use_lora="true", require_chat_template="true"
    )
    code, _, err = call(*words)
    assert code == 0, err
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_a_chat_template_that_differs_from_the_sft_model_is_refused(
    call, make_model_folder, text_tokenizer, chat_pairs, write_rows, run_words, tmp_path
):
    rows = write_rows(chat_pairs)
    other = tmp_path / "other.jinja"
    other.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    words = run_words(make_model_folder("llama"), rows, require_chat_template="true", chat_template_path=other)
    code, _, err = call(*words)
    assert code == 1
    assert "differs from the template of" in err.splitlines()[-1]
    without = make_model_folder("gpt2", tokenizer=text_tokenizer)
    code, _, err = call(*run_words(without, rows, require_chat_template="true"))
    assert code == 1
    assert "has no chat template to compare" in err.splitlines()[-1]
    assert not (tmp_path / "out" / "config.json").exists()
