"""Only the irrelevant warnings of other libraries are suppressed."""

import importlib.util
import logging
import warnings
from pathlib import Path

import pytest
from peft import LoraConfig
from saved_models import copied, edit_weights
from training_runs import load

from hf_reward.cli.output import start_output
from hf_reward.modeling.library_warnings import (
    silence_missing_kernel,
    without_renamed_checkpointing,
    without_report_of_heads,
)


@pytest.mark.parametrize("arch", ["llama", "bert", "gpt2"])
def test_a_new_head_is_not_reported(make_model_folder, caplog, arch):
    model = load(make_model_folder(arch))
    assert model.has_new_head
    assert "LOAD REPORT" not in caplog.text


def test_a_weight_of_the_backbone_is_reported(make_model_folder, tmp_path, caplog):
    folder = copied(make_model_folder("llama"), tmp_path / "more")
    edit_weights(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"model.odd.weight": tensors["lm_head.weight"].clone()}),
    )
    load(folder)
    assert "model.odd.weight" in caplog.text
    assert "LOAD REPORT" in caplog.text


def test_other_records_of_that_logger_appear(caplog):
    logger = logging.getLogger("transformers.modeling_utils")
    hidden = "X LOAD REPORT from: y\nlm_head.weight | UNEXPECTED | \n\x1b[1mscore.weight\x1b[0m | MISSING    | \n"
    shown = ["something else", hidden.replace("lm_head", "model.norm"), hidden + "score.bias | MISMATCH | \n", hidden]
    with without_report_of_heads("model"):
        logger.warning(hidden)
        for message in shown[:-1]:
            logger.warning(message)
    logger.warning(hidden)
    assert [record.getMessage() for record in caplog.records] == shown


def test_an_adapter_gives_no_future_warning_and_others_still_come(make_model_folder):
    folder = make_model_folder("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load(folder, peft_config=LoraConfig(r=2))
    with pytest.warns(FutureWarning, match="another"), without_renamed_checkpointing():
        warnings.warn("another thing is deprecated", FutureWarning, stacklevel=1)


def test_a_missing_kernel_of_bitsandbytes_is_not_reported(caplog):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    message = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure you already `pip ..."
    for _ in range(2):  # silenced once, however often it is asked for
        silence_missing_kernel()
    before = len(logger.filters)
    silence_missing_kernel()
    assert len(logger.filters) == before == 1
    logger.warning(message, "no module named 'kernels'")
    for other in ("Failed to load another kernel from kernels-community", "int8 is slow"):
        logger.warning(other)
    assert [record.getMessage() for record in caplog.records] == [
        "Failed to load another kernel from kernels-community",
        "int8 is slow",
    ]
    found = importlib.util.find_spec("bitsandbytes")
    if found is not None:  # what is silenced is what it says
        source = Path(str(found.origin)).with_name("backends") / "cpu" / "ops.py"
        assert message.partition(":")[0] in source.read_text(encoding="utf-8")


def test_commands_show_the_warnings_of_libraries(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        start_output()
        warnings.warn("this goes away", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in found] == ["this goes away"]
    assert logging.getLogger("transformers").getEffectiveLevel() <= logging.WARNING
    assert logging.getLogger("bitsandbytes").getEffectiveLevel() <= logging.WARNING
