"""Score tables with Ray Data, with a copy of the model on every worker of a cluster.

    python recipes/score_ray.py MODEL rows.parquet scores/ --workers 8 --gpus-per-worker 1
    python recipes/score_ray.py MODEL rows/ scores/ --columns response=answer --dtype bfloat16
    python recipes/score_ray.py MODEL rows.parquet scores/ --workers 8 --engine vllm

Needs `pip install "hf_reward[ray]"` on every node. Rows have the layouts of `hf-reward score`. The output is Parquet
with the input's columns, the reward (null if there is none) and `problem`. Rows need an `id`, because Ray keeps neither
order nor row numbers. Ray retries a block if a worker dies, but a stopped run starts over; for runs that resume see
docs/guides/bulk-scoring.md.

`--engine vllm` passes the same token ids to vLLM instead and writes `id`, the reward and `problem`. It needs
`pip install "ray[llm]"` in a separate environment, without hf_reward. It has NOT been run: it follows the sources of
ray 2.60 (`ray/llm/_internal/batch`). Compare a few hundred rows of both engines before you use it; rewards that are all
between 0 and 1 indicate a sigmoid.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data


def main() -> None:
    """Parse the command line, score, and print the numbers of rows and problems."""
    parser = ArgumentParser(description="Score tables with Ray Data.")
    parser.add_argument("model", help="folder or Hub id of a reward model; a folder must be on every node")
    parser.add_argument("data", help="a .parquet or .jsonl file, or a folder of Parquet files")
    parser.add_argument("out", help="new folder for the Parquet files")
    parser.add_argument("--workers", type=int, default=1, help="copies of the model")
    parser.add_argument("--gpus-per-worker", type=float, default=0, help="0: on CPUs")
    parser.add_argument("--cpus-per-worker", type=float, default=1)
    parser.add_argument("--batch-rows", type=int, default=2048, help="rows per call of a worker")
    parser.add_argument("--batch-tokens", type=int, help="tokens in a batch of the model")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=YOURS", help="for example response=answer")
    parser.add_argument("--reward-column", default="reward")
    parser.add_argument("--allow-empty", action="store_true", help="score empty responses too")
    parser.add_argument(
        "--engine", choices=["hf_reward", "vllm"], default="hf_reward", help="vllm: has not been run, see above"
    )
    parser.add_argument("--max-length", type=int, default=4096, help="tokens that vLLM accepts")
    parser.add_argument("--local-cpus", type=int, help="start a local Ray with this number of CPUs")
    options = parser.parse_args()
    if Path(options.out).is_dir() and any(Path(options.out).iterdir()):
        parser.error(f"{options.out} is not empty. Use a new folder: files of two runs must not be mixed.")
    start_ray(options.local_cpus)
    if problem := lack_of_cpus(options.workers * options.cpus_per_worker):
        parser.error(problem)
    data = read_table(options.data)
    scored = score_with_vllm(data, options) if options.engine == "vllm" else score(data, options)
    scored.write_parquet(options.out)
    written = ray.data.read_parquet(options.out)
    print(f"{written.count():,} rows in {options.out}, {count_problems(written):,} of them without a reward")


def start_ray(local_cpus: int | None) -> None:
    """Connect to the cluster in RAY_ADDRESS, or start a local one without a dashboard."""
    if local_cpus is None:
        ray.init(ignore_reinit_error=True)
    else:
        limits: dict[str, Any] = {"num_cpus": local_cpus, "object_store_memory": 256 * 2**20}
        ray.init(address="local", include_dashboard=False, **limits)


def lack_of_cpus(wanted: float) -> str:
    """Return an error message if the cluster has too few CPUs, else "": reading the rows needs a CPU too."""
    available = ray.cluster_resources().get("CPU", 0)
    if wanted + 1 <= available:
        return ""
    return (
        f"The workers need {wanted:g} CPUs and reading rows needs one, but the cluster has {available:g}, so the run "
        "would never start. Lower --workers or --cpus-per-worker."
    )


def read_table(name: str) -> ray.data.Dataset:
    """Read Parquet, or JSONL by its suffix. Ray fails at a line that is not valid JSON."""
    return ray.data.read_json(name, lines=True) if name.endswith(".jsonl") else ray.data.read_parquet(name)


def count_problems(data: ray.data.Dataset) -> int:
    """Count the rows without a reward."""
    return data.filter(lambda row: bool(row["problem"])).count()


# --- with hf_reward --------------------------------------------------------------------------------------------------


class BatchScorer:
    """Ray actor that scores batches of rows. A row that cannot be scored does not affect the others.

    For tables with standard column names and one response per row,
    `map_batches(RewardScorer, fn_constructor_kwargs={"model": ...}, ...)` does the same.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], loading: Mapping[str, Any]) -> None:
        """Load the model once per worker."""
        from hf_reward import RewardScorer
        from hf_reward.scoring.bulk import BulkSettings

        self.scorer, self.settings = RewardScorer.from_pretrained(model, **loading), BulkSettings(**settings)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Add the reward and `problem` to a batch."""
        from hf_reward.data.tables.input_row import InputRow
        from hf_reward.scoring.bulk.row_requests import parse_row

        rows = [parse_row(InputRow(number=n, row=row), self.settings) for n, row in enumerate(table.to_pylist())]
        requests = [request for row in rows for request in row.requests]
        result = self.scorer.score_requests(requests, allow_empty=self.settings.allow_empty, show_progress=False)
        rewards: list[Any] = []
        problems, done = [], 0
        for row in rows:
            places = range(done, done + len(row.requests))
            done = places.stop
            problem = row.problem or next((result.problems[place] for place in places if place in result.problems), "")
            values = result.rewards[places.start : places.stop].tolist()
            rewards.append(None if problem else values if row.is_list else values[0])
            problems.append(problem)
        column = (self.settings.columns or {}).get("responses", "responses")
        kind = pa.list_(pa.float32()) if column in table.column_names else pa.float32()
        table = table.append_column(self.settings.reward_column, pa.array(rewards, type=kind))
        return table.append_column("problem", pa.array(problems, type=pa.string()))


def score(data: ray.data.Dataset, options: Namespace) -> ray.data.Dataset:
    """Score batches on the requested number of workers, each with one copy of the model."""
    loading: dict[str, Any] = {"dtype": options.dtype, "batch_tokens": options.batch_tokens}
    if not options.gpus_per_worker:
        loading["device"] = "cpu"
    settings = {
        "columns": dict(pair.split("=", 1) for pair in options.columns) or None,
        "reward_column": options.reward_column,
        "allow_empty": options.allow_empty,
    }
    return data.map_batches(
        BatchScorer,
        fn_constructor_kwargs={"model": options.model, "settings": settings, "loading": loading},
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker,
        batch_size=options.batch_rows,
        batch_format="pyarrow",
    )


# --- with vLLM (has not been run) ------------------------------------------------------------------------------------


def score_with_vllm(data: ray.data.Dataset, options: Namespace) -> ray.data.Dataset:
    """Score with vLLM's classification, following the sources of ray 2.60.

    Ray's own chat-template and tokenizer stages are disabled, because both change rewards: the first omits the token
    that ends the assistant's turn (`continue_final_message`), the second adds a BOS to texts that have one.
    """
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    engine = {"dtype": "bfloat16", "max_model_len": options.max_length, "enable_prefix_caching": True}
    config = vLLMEngineProcessorConfig(
        model_source=options.model,
        task_type="classify",
        concurrency=options.workers,
        batch_size=options.batch_rows,
        engine_kwargs=engine,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
        should_continue_on_error=True,
    )
    model, columns = options.model, dict(pair.split("=", 1) for pair in options.columns)
    processor = build_processor(
        config,
        preprocess=lambda row: vllm_request(row, model, columns),
        # vLLM returns the logits of its classifier as `embeddings`; a reward model has one.
        postprocess=lambda row: {"id": row["id"], "reward": float(row["embeddings"][0])},
    )
    name = options.reward_column
    return processor(data).map(
        lambda row: {"id": row["id"], name: row.get("reward"), "problem": row.get("__inference_error__", "")}
    )


def vllm_request(row: Mapping[str, Any], model: str, columns: Mapping[str, str]) -> dict[str, Any]:
    """Tokenise a conversation as in training.

    Args:
        row: `id`, and `messages` or `prompt` and `response` (text or messages).
        model: Folder or Hub id of a model whose tokenizer has a chat template.
        columns: Standard column name -> column name in the row.

    Returns:
        The input of Ray's vLLM stage; without `use_activation` the result is the reward instead of its sigmoid.
    """
    named = {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}
    messages = named.get("messages")
    if messages is None:
        messages = [*_turns(named["prompt"], "user"), *_turns(named["response"], "assistant")]
    # Arrow adds the fields of all messages to each message; remove those that are None.
    messages = [{key: part for key, part in message.items() if part is not None} for message in messages]
    tokenizer = _tokenizer(model)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    # Ray would tokenise a `prompt`, so the row's own must not be passed on.
    return {"id": row["id"], "prompt": None, "tokenized_prompt": ids, "pooling_params": {"use_activation": False}}


def _turns(value: Any, role: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


if __name__ == "__main__":
    main()
