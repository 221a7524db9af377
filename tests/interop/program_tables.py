"""Tables of the documentation that are generated from the results of the suite and the verdicts of the code."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from cases import IMAGE_MODELS, MODELS
from transformers import PretrainedConfig

from hf_reward.publishing.compatibility import compatibility_of_config
from hf_reward.publishing.program_results import OTHER_REWARD, REFUSED, RUN, ProgramResult, program_results

DOCS = Path(__file__).parents[2] / "docs" / "guides"


def run_table(results: Sequence[ProgramResult]) -> list[str]:
    """Return the measured differences, one row for each way of a program."""
    ran = [each for each in results if each.status == RUN and each.model in MODELS]
    ways = dict.fromkeys((each.program, each.version, each.way, each.dtype, each.date) for each in ran)
    rows = []
    for way in ways:
        found = {
            each.model: each for each in ran if (each.program, each.version, each.way, each.dtype, each.date) == way
        }
        program, version, name, dtype, date = way
        cells = [_cell(found.get(model)) for model in MODELS]
        rows.append([program, version, name, dtype, *cells, date])
    return _table(
        ["program", "version", "way", "precision", "quick start's model", "its adapter", "BOS in the template", "date"],
        rows,
    )


def _cell(result: ProgramResult | None) -> str:
    if result is None:
        return "-"
    if result.outcome == REFUSED:
        return "error"
    size = f"{result.difference:.1e}" if result.difference is not None else "not finite"
    return f"**{size}**" if result.outcome == OTHER_REWARD else size


def read_table(results: Sequence[ProgramResult]) -> list[str]:
    """Return the programs, or ways of a program, that were not run."""
    others = [each for each in results if each.status != RUN]
    rows = []
    for key in dict.fromkeys((each.program, each.version, each.status, each.note) for each in others):
        same = [each for each in others if (each.program, each.version, each.status, each.note) == key]
        ways = dict.fromkeys(f"{each.way} ({each.model}, {each.dtype})" for each in same if each.way)
        rows.append([*key[:2], "; ".join(ways) or "-", *key[2:]])
    return _table(["program", "version", "way", "status", ""], rows)


def image_table(results: Sequence[ProgramResult]) -> list[str]:
    """Return the measured differences of rewards with images, one row for each way of a program."""
    ran = [each for each in results if each.status == RUN and each.model in IMAGE_MODELS]
    rows = []
    for key in dict.fromkeys((each.program, each.version, each.way, each.date) for each in ran):
        found = {each.model: each for each in ran if (each.program, each.version, each.way, each.date) == key}
        rows.append([*key[:3], *(_cell(found.get(model)) for model in IMAGE_MODELS), key[3]])
    return _table(["program", "version", "way", *IMAGE_MODELS, "date"], rows)


def change_table(results: Sequence[ProgramResult]) -> list[str]:
    """Return the ways that gave other rewards without an error, with the largest difference over the models."""
    changed = [each for each in results if each.outcome == OTHER_REWARD and each.model in MODELS]
    ways = dict.fromkeys((each.program, each.version, each.way, each.dtype, each.instead) for each in changed)
    rows = []
    for way in ways:
        found = [each for each in changed if (each.program, each.version, each.way, each.dtype, each.instead) == way]
        size = {each.model: f"{each.difference:.2g}" for each in found}
        rows.append([*way[:4], size.get(MODELS[0], "-"), size.get(MODELS[2], "-"), way[4]])
    return _table(
        ["program", "version", "way", "precision", "quick start's model", "BOS in the template", "use instead"], rows
    )


def note_lines(results: Sequence[ProgramResult]) -> list[str]:
    """Return how runs differ from the usual use, and the errors."""
    notes = dict.fromkeys((each.program, each.note) for each in results if each.status == RUN and each.note)
    return [f"- {program}: {textwrap.shorten(note.rstrip('.'), 200, placeholder=' ...')}." for program, note in notes]


DECODER, ENCODER = {"is_decoder": True}, {"is_decoder": False}
GENERATED = {**DECODER, "is_stock": False}
KINDS: dict[str, tuple[tuple[str, ...], dict[str, bool]]] = {
    "Llama, Gemma 2": (("Llama", "Gemma2"), DECODER),
    "Qwen 2, Qwen 3": (("Qwen2", "Qwen3"), DECODER),
    "Mistral, Phi 3, OLMo 2, GPT-2, GPT-NeoX, OPT, SmolLM 3": (
        ("Mistral", "Phi3", "Olmo2", "GPT2", "GPTNeoX", "OPT", "SmolLM3"),
        DECODER,
    ),
    "Gemma 3 (text)": (("Gemma3Text",), DECODER),
    "Granite, Cohere (no class in transformers)": (("Granite", "Cohere"), GENERATED),
    "Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL": (
        ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "InternVL"),
        GENERATED,
    ),
    "SmolVLM, LLaVA-OneVision": (("SmolVLM", "LlavaOnevision"), GENERATED),
    "Gemma 3 (images)": (("Gemma3",), DECODER),
    "BERT": (("Bert",), ENCODER),
    "RoBERTa, ModernBERT": (("Roberta", "ModernBert"), ENCODER),
    "DeBERTa, DistilBERT": (("DebertaV2", "DistilBert"), ENCODER),
}
"""Row of the table -> architectures with the same verdicts, and the arguments of `compatibility_of_config`."""


def architecture_table(results: Sequence[ProgramResult]) -> list[str]:
    """Return the verdicts of the code, one row for architectures with the same verdicts."""
    del results
    rows, programs = [], []
    for label, (kinds, options) in KINDS.items():
        verdicts = [
            compatibility_of_config(PretrainedConfig(architectures=[f"{kind}ForSequenceClassification"]), **options)
            for kind in kinds
        ]
        programs = [each.program for each in verdicts[0]]
        outcomes = {tuple(each.outcome for each in row) for row in verdicts}
        assert len(outcomes) == 1, f"{label}: {outcomes}"
        rows.append([label, *outcomes.pop()])
    return _table(["", *programs], rows)


TABLES = {
    "architectures": architecture_table,
    "runs": run_table,
    "notes": note_lines,
    "read": read_table,
    "changes": change_table,
    "images": image_table,
}
PAGES = ("publishing.md", "serving.md", "images.md")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines]


def with_tables(page: str) -> str:
    """Return a page of the documentation with the current tables between its marks."""
    results = program_results()
    for name, table in TABLES.items():
        block = "\n".join([f"<!-- {name}: generated by `make interop` -->", "", *table(results), "", "<!-- end -->"])
        page = re.sub(rf"<!-- {name}: generated.*?<!-- end -->", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


def write_tables() -> None:
    """Update the pages of the documentation."""
    for name in PAGES:
        path = DOCS / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
