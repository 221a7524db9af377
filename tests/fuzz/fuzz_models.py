"""Further fuzz targets: the endpoints of the server, models of other libraries, and records."""

import asyncio
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import torch
from fuzz_targets import BadRefusal, Target, Try, chat_tokenizer, rows, texts, values
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from hf_reward import AutoModelForRewardScoring, RewardScorer, prepare_tokenizer
from hf_reward.evaluation.monitoring.served_run import run_monitors
from hf_reward.modeling.checkpoint_record import CheckpointRecord, describe, drift
from hf_reward.modeling.encoder import encoder_of
from hf_reward.publishing.importers import read_foreign
from hf_reward.scoring.loading import correction_of
from hf_reward.scoring.serving.app import create_app
from hf_reward.scoring.serving.routes import ENDPOINTS
from hf_reward.scoring.serving.settings import ServerSettings


def language_model(folder: Path) -> Any:
    """A tiny language model with its tokenizer, saved."""
    tokenizer = chat_tokenizer()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=1, max_position_embeddings=128, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def reward_model(folder: Path) -> Path:
    """A tiny reward model with a random head and a record, saved."""
    language_model(folder / "base")
    tokenizer = prepare_tokenizer(chat_tokenizer())
    model: Any = AutoModelForRewardScoring.from_pretrained(folder / "base").eval()
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    describe(model, tokenizer).save(folder / "saved")
    return folder / "saved"


# --- the server -------------------------------------------------------------------------------------------------------

_PATHS = (*sorted(ENDPOINTS), "/docs", "/openapi.json", "/x")
_QUERIES = ("", "", "", "?run=a", "?run=%00", "?model=tiny", "?model=x&run=a", "?run=", "?\u00e9")
_body_keys = st.sampled_from(
    ["query", "input", "model", "items", "allow_empty", "prompt", "responses", "messages", "text", "padding"]
)
_ids = st.one_of(st.lists(st.integers(-2, 300), max_size=5), st.lists(st.integers(), max_size=2))
_documents = st.lists(st.one_of(texts, st.fixed_dictionaries({"text": st.one_of(texts, values)})), max_size=3)
_questions = st.fixed_dictionaries(
    {"type": st.sampled_from(["choice", "score", 1])},
    optional={
        "instructions": st.one_of(texts, values),
        "criteria": st.one_of(st.dictionaries(texts, st.one_of(texts, values), max_size=3), values),
        "choices": st.lists(st.fixed_dictionaries({"value": st.one_of(texts, st.booleans())}), max_size=3),
    },
)
_bodies = st.one_of(
    rows,
    st.fixed_dictionaries({"state": st.one_of(texts, values), "questions": st.dictionaries(texts, _questions)}),
    st.fixed_dictionaries({"input": st.one_of(texts, values), "questions": st.lists(_questions, max_size=2)}),
    st.fixed_dictionaries({"verify_responses": st.lists(st.fixed_dictionaries({"reward": values}), max_size=2)}),
    st.fixed_dictionaries({"items": st.lists(rows, max_size=3)}, optional={"allow_empty": st.booleans()}),
    st.fixed_dictionaries({"input": st.one_of(texts, _ids, st.lists(_ids, max_size=3), values)}),
    st.fixed_dictionaries({"query": st.one_of(texts, st.lists(texts, max_size=3), values)}),
    st.fixed_dictionaries(  # rerankers
        {"query": st.one_of(texts, values)},
        optional={
            "documents": st.one_of(_documents, values),
            "texts": st.one_of(_documents, values),
            "top_n": st.one_of(st.integers(-2, 3), values),
            **{name: st.one_of(st.booleans(), values) for name in ("return_documents", "raw_scores", "return_text")},
        },
    ),
    st.fixed_dictionaries({"inputs": st.one_of(texts, st.lists(st.lists(texts, max_size=3), max_size=2), values)}),
    st.fixed_dictionaries({name: st.one_of(texts, _documents, values) for name in ("text_1", "text_2")}),
    st.fixed_dictionaries({name: st.one_of(texts, rows, values) for name in ("prompt", "response", "label")}),
    st.fixed_dictionaries(  # NeMo-Gym
        {
            "responses_create_params": st.one_of(st.fixed_dictionaries({"input": st.one_of(texts, values)}), values),
            "response": st.one_of(st.fixed_dictionaries({"output": st.one_of(texts, _documents, values)}), values),
        }
    ),
    st.fixed_dictionaries({"prompt": texts, "responses": st.lists(texts, min_size=1, max_size=3)}),
    st.dictionaries(_body_keys, values, max_size=4),
)
_contents = st.one_of(
    st.builds(lambda body, ascii_only: json.dumps(body, default=str, ensure_ascii=ascii_only), _bodies, st.booleans()),
    st.text(max_size=30),
    st.sampled_from(["[" * 3000, '{"prompt": "a", "response": "b"', '{"query": 1e999}', "\ud800"]),
).map(lambda text: text.encode("utf-8", "surrogatepass"))
_requests = st.tuples(
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD"]),
    st.tuples(st.sampled_from(_PATHS), st.sampled_from(_QUERIES)).map("".join),
    st.one_of(_contents, st.binary(max_size=40)),
    st.sampled_from(["application/json", "application/json; charset=utf-16", "text/plain", "", "multipart/form-data"]),
    st.sampled_from(["Bearer secret", "Bearer secret", "Bearer wrong", "\xff", ""]),
)


def _server(folder: Path) -> Try:
    scorer = RewardScorer.from_pretrained(reward_model(folder), device="cpu")
    assert scorer.record is not None
    scorer.record.calibration = {"temperature": 2.0}
    settings = ServerSettings(served_model_name="tiny", token="secret", max_body_bytes=20_000)
    app = create_app(scorer, settings, observe=run_monitors(8))
    loop = asyncio.new_event_loop()
    transport = httpx2.ASGITransport(app)  # what no handler caught comes out of it
    client = httpx2.AsyncClient(transport=transport, base_url="http://server", timeout=30)

    def attempt(case: Any) -> None:
        method, path, content, kind, token = case
        headers = {b"Content-Type": kind.encode(), b"Authorization": token.encode("latin-1")}
        answer = loop.run_until_complete(client.request(method, path, content=content, headers=headers))
        if answer.status_code >= 500:
            raise BadRefusal(f"{answer.status_code}: {answer.text[:300]}")
        is_open = path.partition("?")[0] == "/health"
        if token != "Bearer secret" and not is_open and answer.status_code != 401:
            raise BadRefusal(f"{answer.status_code} without the token: {answer.text[:300]}")
        if answer.status_code < 400 and "<html>" in answer.text:
            return
        if answer.status_code >= 400 and method != "HEAD" and not answer.json()["error"]["message"]:
            raise BadRefusal(f"{answer.status_code} without a message")

    return attempt


# --- foreign models ---------------------------------------------------------------------------------------------------


def _trl(model: Any, folder: Path) -> None:
    head = {"v_head.summary.weight": torch.randn(1, 16), "v_head.summary.bias": torch.ones(1)}
    _write({**model.state_dict(), **head}, folder / "model.safetensors")


def _llama_factory(model: Any, folder: Path) -> None:
    head = {"v_head.summary.weight": torch.randn(1, 16), "v_head.summary.bias": torch.ones(1)}
    _write(model.state_dict(), folder / "model.safetensors")
    _write(head, folder / "value_head.safetensors")


def _starling(model: Any, folder: Path) -> None:
    backbone = {f"transformer.{name}": tensor for name, tensor in model.base_model.state_dict().items()}
    _write({**backbone, "v_head.weight": torch.randn(1, 16)}, folder / "model.safetensors")


def _write(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: each.clone().contiguous() for name, each in tensors.items()}, path, metadata={"format": "pt"})


_FOREIGN: dict[str, Callable[[Any, Path], None]] = {"trl": _trl, "llama_factory": _llama_factory, "starling": _starling}
_JSON_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")
_WEIGHTS = ("model.safetensors", "value_head.safetensors")
_places = st.integers(0, 200)
_settings = st.sampled_from(
    [
        *("model_type", "architectures", "hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"),
        *("pad_token_id", "auto_map", "quantization_config", "rope_scaling", "num_labels", "id2label", "dtype"),
        *("layer_types", "value_head_prefix", "mean", "vhead_layer_type", "tokenizer_class", "chat_template"),
        *("added_tokens_decoder", "model", "added_tokens", "pre_tokenizer", "weight_map", "metadata", "__metadata__"),
    ]
)
_damages = st.one_of(
    st.tuples(st.just("edit"), st.sampled_from(_JSON_FILES), _settings, values),
    st.tuples(st.just("replace"), st.sampled_from(_JSON_FILES), st.just(""), values),
    st.tuples(st.just("header"), st.sampled_from(_WEIGHTS), _places, values),
    st.tuples(st.just("cut"), st.sampled_from([*_WEIGHTS, *_JSON_FILES]), st.just(""), st.floats(0, 1)),
    st.tuples(st.just("flip"), st.sampled_from([*_WEIGHTS, *_JSON_FILES]), _places, st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.just("add"),
        st.sampled_from(["model.safetensors.index.json", "generation_config.json", "special_tokens_map.json"]),
        st.just(""),
        st.one_of(st.fixed_dictionaries({"weight_map": st.dictionaries(texts, texts, max_size=2)}), values),
    ),
    st.tuples(st.just("lose"), st.sampled_from([*_WEIGHTS, *_JSON_FILES]), st.just(""), st.none()),
)


def _damage(folder: Path, damage: Any) -> None:
    kind, name, place, value = damage
    path = folder / name
    if kind == "add" or (kind == "replace" and path.is_file()):
        path.write_text(json.dumps(value), "utf-8", "surrogatepass")
    elif not path.is_file():
        return
    elif kind == "lose":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[: int(value * path.stat().st_size)])
    elif kind == "flip":
        content = bytearray(path.read_bytes())
        content[place : place + len(value)] = value
        path.write_bytes(content)
    elif kind == "edit":
        _edit(path, place, value)
    elif kind == "header":
        _edit_header(path, place, value)


def _edit(path: Path, name: str, value: Any) -> None:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return
    if isinstance(content, dict):
        path.write_text(json.dumps({**content, name: value}), "utf-8", "surrogatepass")


def _edit_header(path: Path, place: int, value: Any) -> None:
    """Give one tensor of a safetensors file another description."""
    content = path.read_bytes()
    if len(content) < 8:
        return
    (size,) = struct.unpack("<Q", content[:8])
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, OverflowError):
        return
    if not isinstance(header, dict) or not header:
        return
    name = sorted(header)[place % len(header)]
    field = ("dtype", "shape", "data_offsets")[place % 3]
    changed = {**header[name], field: value} if isinstance(header[name], dict) and place % 2 else value
    encoded = json.dumps({**header, name: changed}).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])


def _importers(folder: Path) -> Try:
    model = language_model(folder / "language_model")
    for name, write in _FOREIGN.items():
        shutil.copytree(folder / "language_model", folder / name)
        write(model, folder / name)

    def attempt(case: Any) -> None:
        name, damages, said = case
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        shutil.copytree(folder / name, folder / "damaged")
        for damage in damages:
            _damage(folder / "damaged", damage)
        read_foreign(folder / "damaged", name if said else "auto")

    return attempt


# --- our own records --------------------------------------------------------------------------------------------------

_fields = st.sampled_from(
    [
        *("format", "reads", "pad_token_id", "template_hash", "tokenizer_hash", "rows", "dtype", "probes", "loss"),
        *("calibration", "length_correction", "evaluation", "baselines", "training", "base_model", "versions", "card"),
    ]
)
_formats = st.dictionaries(
    st.sampled_from(["max_length", "overlong", "separator", "add_eos", "truncation"]), values, max_size=3
)
_changes = st.dictionaries(_fields, st.one_of(values, _formats), max_size=3)


def _records(folder: Path) -> Try:
    saved = reward_model(folder)
    scorer = RewardScorer.from_pretrained(saved, device="cpu")
    original = json.loads((saved / "reward_config.json").read_text())
    damaged = folder / "damaged"
    damaged.mkdir()

    def attempt(case: Any) -> None:
        content = case if isinstance(case, bytes) else json.dumps({**original, **case}).encode("utf-8", "surrogatepass")
        (damaged / "reward_config.json").write_bytes(content)
        record = CheckpointRecord.load(damaged)
        assert record is not None
        drift(record, scorer.tokenizer)
        encoder_of(scorer.model, scorer.tokenizer, record, None)
        correction_of("it", record, wanted=True)

    return attempt


MODEL_TARGETS = {
    "server": Target(_requests, _server, ()),
    "importers": Target(
        st.tuples(st.sampled_from(sorted(_FOREIGN)), st.lists(_damages, min_size=1, max_size=2), st.booleans()),
        _importers,
    ),
    "records": Target(st.one_of(_changes, st.binary(max_size=60)), _records),
}
"""Name -> target."""
