"""Fuzz targets: test cases for each entry point for untrusted data, and the documented errors.

A case goes in; out comes a result or one of the documented errors, with a message. Anything else is a finding.
`fuzz.py` runs these for minutes, the tests run some hundred cases of each.
"""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_reward.data.preference_row import PreferenceFormatError
from hf_reward.data.preferences import LAYOUTS, to_preference_row
from hf_reward.data.ratings import to_pairs
from hf_reward.data.score_request import requests_of_row
from hf_reward.data.sources import as_sources, load_source
from hf_reward.evaluation.audit.inputs.probe_data import read_probe_data
from hf_reward.evaluation.benchmarks.base import Comparison
from hf_reward.evaluation.benchmarks.scores_file import finished_lines, read_scores
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.scoring.bulk.inputs import open_tables
from hf_reward.scoring.bulk.manifest import Manifest
from hf_reward.training.run_arguments import parse_run_arguments

Try = Callable[[Any], None]


@dataclass(frozen=True)
class Target:
    """One entry point."""

    cases: st.SearchStrategy[Any]
    make: Callable[[Path], Try]
    """Folder to work in -> what tries one case."""
    refusals: tuple[type[BaseException], ...] = (ValueError,)
    """Errors that are documented; each has to say something."""


class BadRefusal(AssertionError):
    """A documented error that says nothing, or an answer that is none."""


def try_case(target: Target, attempt: Try, case: Any) -> None:
    """Try one case.

    Args:
        target: The entry point.
        attempt: What its `make` gave.
        case: What goes in.

    Raises:
        Exception: Whatever comes out that is not documented.
    """
    try:
        attempt(case)
    except target.refusals as error:
        if not str(error).strip():
            raise BadRefusal(f"{type(error).__name__} without a message") from error


# --- odd values -------------------------------------------------------------------------------------------------------

_SPECIAL = (
    *("", " ", "\x00", "\ud800", "\u2028", "\ufeff", "a" * 2000, "nan", "null", "{}", "[1]", '{"a": 1}', "1e999"),
    *("../../x", "/etc/passwd", "<|im_end|>", "<script>", "{{ 1 }}", "=1+1", "\n\nHuman: a\n\nAssistant: b"),
)
texts = st.one_of(st.text(max_size=12), st.sampled_from(_SPECIAL))
_numbers = st.one_of(
    st.integers(-3, 9), st.floats(), st.sampled_from([10**19, -(10**19), 10**400, 2**63, 1e308, True, False])
)
_scalars = st.one_of(st.none(), _numbers, texts)
values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def nested(depth: int) -> Any:
    """Lists in lists, deeper than parsers go."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


_messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), values),
            "content": st.one_of(texts, values),
        },
        optional={"tool_calls": values, "name": values, "extra": values},
    ),
    max_size=4,
)
_fields = st.one_of(texts, _messages, st.lists(texts, max_size=3), st.lists(_numbers, max_size=3), values)
_columns = st.sampled_from(
    [
        *("prompt", "chosen", "rejected", "responses", "ranks", "scores", "response", "score", "rating", "winner"),
        *("response_a", "response_b", "votes_a", "votes_b", "annotators", "probability", "margin", "weight", "id"),
        *("group", "source", "tools", "chat_template_kwargs", "chosen_ids", "rejected_ids", "messages", "text"),
    ]
)
_pairs = st.fixed_dictionaries({"prompt": _fields, "chosen": _fields, "rejected": _fields})
_lists = st.fixed_dictionaries({"prompt": _fields, "responses": st.lists(_fields, max_size=3), "ranks": _fields})
_votes = st.fixed_dictionaries({"prompt": texts, "response_a": _fields, "response_b": _fields, "winner": _fields})
_some = st.dictionaries(st.one_of(_columns, texts), _fields, max_size=5)
rows = st.one_of(_some, st.builds(lambda row, more: {**row, **more}, st.one_of(_pairs, _lists, _votes), _some), values)

# --- rows -------------------------------------------------------------------------------------------------------------

_row_cases = st.tuples(
    rows,
    st.sampled_from(["auto", *LAYOUTS]),
    st.one_of(st.none(), st.dictionaries(_columns, st.one_of(_columns, texts), max_size=2)),
)


def _row_parser(folder: Path) -> Try:
    def attempt(case: Any) -> None:
        row, layout, columns = case
        with contextlib.suppress(PreferenceFormatError):
            to_preference_row(row, layout=layout, columns=columns, row_index=3)
        if isinstance(row, dict):
            requests_of_row(row, columns)

    return attempt


def _ratings(folder: Path) -> Try:
    def attempt(case: Any) -> None:
        to_pairs(case, min_gap=0.5, margin_from_scores=True)

    return attempt


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """A tiny byte-level tokenizer with a template that prints what it is given."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate([*special, *letters])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **names)


def _preparation(folder: Path) -> Try:
    tokenizer = chat_tokenizer()

    def attempt(case: Any) -> None:
        data, skip, max_length = case
        prepare_preferences(
            data, tokenizer, PreparationRule(format=FormatRule(max_length=max_length), skip_bad_rows=skip)
        )

    return attempt


# --- settings ---------------------------------------------------------------------------------------------------------

_names = st.sampled_from(
    [
        *("model", "data", "eval_data", "columns", "learning_rate", "bf16", "use_lora", "lora_r", "output_dir", "seed"),
        *("lora_target_modules", "test_size", "streaming", "loss", "loss_type", "max_length", "eval_strategy"),
        *("per_device_train_batch_size", "gradient_accumulation_steps", "packing", "config", "layout", "fsdp"),
    ]
)
_settings = st.dictionaries(st.one_of(_names, texts), values, max_size=5)
_yaml_texts = st.one_of(
    st.builds(lambda settings: yaml.safe_dump(settings, allow_unicode=True), _settings),
    st.text(alphabet="abm:{}[]-!&*'\"#|>%@`,?\n 1.e\t", max_size=60),
    st.sampled_from(["!!python/object/apply:os.system ['true']", "a: !!timestamp 9", "a: &x [*x]", "- " * 3000]),
).map(lambda text: text.encode("utf-8", "surrogatepass"))


def _settings_file(folder: Path) -> Try:
    path = folder / "settings.yaml"

    def attempt(case: Any) -> None:
        content, words = case
        path.write_bytes(content)
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            try:
                parse_run_arguments(["--config", str(path), "--output_dir", str(folder / "run"), *words])
            except SystemExit as error:
                if error.code not in (0, 2):  # 0: `--help`
                    raise BadRefusal(f"exit code {error.code!r}") from error

    return attempt


# --- files ------------------------------------------------------------------------------------------------------------

_json_lines = st.lists(
    st.one_of(rows.map(lambda row: json.dumps(row, default=str)), st.text(max_size=20), st.just("[" * 5000)), max_size=4
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
_csv = st.lists(st.lists(st.one_of(st.text(alphabet='ab,"\n\r \x00', max_size=8), _columns), max_size=4), max_size=4)
_csv_files = _csv.map(lambda lines: "\n".join(",".join(line) for line in lines).encode())


def _parquet(table: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names, columns, cut, place, byte = table
    file = io.BytesIO()
    pq.write_table(pa.table({f"{name}{number}": columns for number, name in enumerate(names)}), file)
    content = bytearray(file.getvalue())
    content[int(place * (len(content) - 1))] ^= byte
    return bytes(content[: int(cut * len(content))])


_parquet_files = st.tuples(
    st.lists(st.sampled_from(["prompt", "response", "text"]), min_size=1, max_size=2),
    st.one_of(st.lists(st.text(max_size=5), max_size=3), st.lists(st.lists(st.integers(0, 9)), max_size=3)),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.floats(0, 1),
    st.integers(0, 255),
).map(_parquet)
data_files = st.one_of(
    st.tuples(st.sampled_from(["jsonl", "ndjson"]), st.one_of(_json_lines, st.binary(max_size=80))),
    st.tuples(st.just("csv"), st.one_of(_csv_files, st.binary(max_size=80))),
    st.tuples(st.just("parquet"), st.one_of(_parquet_files, st.binary(max_size=80))),
)


def _tables(folder: Path) -> Try:
    def attempt(case: Any) -> None:
        suffix, content = case
        path = folder / f"rows.{suffix}"
        path.write_bytes(content)
        (table,) = open_tables(path)
        try:
            for span in table.spans(2):
                for each in table.read(span):
                    if each.row is None and not each.problem:
                        raise BadRefusal("neither a row nor a problem")
                    if each.row is not None:
                        with contextlib.suppress(PreferenceFormatError):
                            requests_of_row(each.row)
        finally:
            table.close()

    return attempt


def _sources(folder: Path) -> Try:
    def attempt(case: Any) -> None:
        (suffix, content), more = case
        path = folder / f"data.{'json' if suffix == 'ndjson' else suffix}"
        path.write_bytes(content)
        with contextlib.suppress(ValueError, TypeError):
            as_sources(json.dumps(more))
        (source,) = as_sources(str(path))
        load_source(source)

    return attempt


def _scores(folder: Path) -> Try:
    path = folder / "scores.jsonl"
    data = [Comparison(id=str(n), prompt="a", responses=["b", "c"], ranks=[0, 1], cluster="x") for n in range(2)]

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        finished_lines(path, data)
        read_scores(path, data)

    return attempt


_score_lines = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"id": st.one_of(st.sampled_from(["0", "1"]), values), "rewards": st.one_of(st.just([1, 2]), values)},
            optional={"problem": values},
        ),
        values,
    ).map(lambda row: json.dumps(row, default=str)),
    max_size=3,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))

_probe_rows = st.one_of(
    *(
        st.fixed_dictionaries({name: st.one_of(texts, values) for name in names})
        for names in (
            ("Question", "Best Answer", "Incorrect Answers", "Category"),
            ("neutral_text", "biased_text", "sycophantic_target", "honest_target"),
            ("question", "answer_matching_behavior", "answer_not_matching_behavior"),
            ("question", "correct", "incorrect", "category"),
            ("question", "option_a", "option_b", "view_a", "view_b", "answer_a", "answer_b"),
        )
    ),
    st.fixed_dictionaries(
        {
            "question": texts,
            "a": st.fixed_dictionaries({"is_correct": values, "solution": texts}),
            "b": st.fixed_dictionaries({"is_correct": values, "solution": values}),
        }
    ),
)
_probe_files = st.tuples(
    st.sampled_from(["jsonl", "csv"]),
    st.one_of(
        st.lists(st.one_of(_probe_rows, values).map(lambda row: json.dumps(row, default=str)), max_size=3).map(
            lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
        ),
        _csv_files,
        st.binary(max_size=60),
    ),
)


def _probe_data(folder: Path) -> Try:
    def attempt(case: Any) -> None:
        suffix, content = case
        path = folder / f"probes.{suffix}"
        path.write_bytes(content)
        read_probe_data(path)

    return attempt


_manifests = st.one_of(
    st.fixed_dictionaries(
        {
            "version": st.one_of(st.just(1), values),
            "scorer": values,
            "inputs": values,
            "settings": values,
            "schema": st.one_of(st.none(), values),
            "names": st.one_of(st.lists(texts, max_size=2), values),
            "shards": st.one_of(st.lists(st.lists(st.integers(), min_size=4, max_size=6), max_size=2), values),
        }
    ),
    values,
).map(lambda content: json.dumps(content).encode())


def _manifest(folder: Path) -> Try:
    path = folder / "_manifest.json"

    def attempt(content: bytes) -> None:
        path.write_bytes(content)
        manifest = Manifest.load(path)
        places = [folder / f"{shard.name}.jsonl" for shard in manifest.shards]
        outside = [place for place in places if place.parent != folder]
        if outside:
            raise BadRefusal(f"a manifest names a shard outside its folder: {outside[0]}")

    return attempt


TARGETS = {
    "rows": Target(_row_cases, _row_parser, (PreferenceFormatError,)),
    "ratings": Target(st.lists(rows, max_size=4), _ratings),
    "preparation": Target(
        st.tuples(st.lists(rows, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 8, 64])),
        _preparation,
        (ValueError, OSError),  # names are files, or data sets on a Hub that is out of reach here
    ),
    "settings": Target(
        st.tuples(_yaml_texts, st.lists(st.one_of(_names.map(lambda name: f"--{name}"), texts), max_size=3)),
        _settings_file,
        (ValueError, FileNotFoundError),
    ),
    "tables": Target(data_files, _tables),
    "sources": Target(st.tuples(data_files, values), _sources),
    "scores": Target(st.one_of(_score_lines, st.binary(max_size=60)), _scores),
    "probe_data": Target(_probe_files, _probe_data),
    "manifest": Target(st.one_of(_manifests, st.binary(max_size=60)), _manifest),
}
"""Name -> target."""
