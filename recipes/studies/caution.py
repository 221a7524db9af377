"""Caution in best-of-n: does a penalty on unusual responses choose better responses than the reward alone?

    python recipes/studies/caution.py --base models/SmolLM2-135M-Instruct --data example_model_solutions.jsonl \
        --out runs/caution --plant

`--data` are questions with several responses of known quality: solutions of GSM8K (1 if correct), the FineGrained QA
feedback (share of comparisons won, ties half), or pairs with `prompt`, `chosen` and `rejected` and many responses to
each prompt, which are put into random sets of four (share of their pairs won). The backbone is frozen. Its features are
computed once and kept in `--out`. The groups of questions are assigned to `--folds` folds; for each fold, a linear
reward model (Bradley-Terry on all responses of unequal score, one per bootstrap resample of the questions) and a
network for random network distillation (Burda et al. 2018) are fitted on the other folds.

Ways to select one of the responses to a question of this fold:

- `reward`: the highest mean reward over the heads;
- `lower bound`: mean - beta * std over the heads, as `RewardScorer(lower_bound=beta)`;
- `caution`: mean - lambda * error of the distilled network (Yu, Wu and Block 2026, arXiv:2604.04648), where reward and
  error are in standard deviations over the training responses;
- `distance`: the same with the Mahalanobis distance of the features to those of the training responses.

With `--plant`, each question gets four more responses of score 0 that the models were not fitted on: two responses to
other questions, one response with its words in random order, and the question itself. The first table has the mean
score of the selected response and its paired difference to `reward`, with 95% intervals clustered by question. The
second has the area under the risk-coverage curve (smaller is better) if the model abstains from the questions with the
lowest confidence in its selection: the margin to the second response, the same in lower bounds, and a low error.
"""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from risk_coverage import aurc, aurc_interval
from study_runs import base_model
from torch import nn
from torch.nn.functional import logsigmoid, mse_loss
from transformers import AutoTokenizer
from uncertainty import assign_folds, group_of

from hf_reward.metrics.intervals import t_interval
from hf_reward.metrics.spread import Spread, mean_spread
from hf_reward.modeling.packing import packed_model
from hf_reward.modeling.rewards import compute_features
from hf_reward.preprocessing.packed_collator import DataCollatorForPackedPreference
from hf_reward.preprocessing.preparation import PreparationRule, prepare_preferences
from hf_reward.preprocessing.tokenization import FormatRule
from hf_reward.preprocessing.tokenizer import prepare_tokenizer

Row = dict[str, Any]
_GIVEN = 4
"""Responses to each question in the data."""
BETAS, LAMBDAS = (0.5, 1.0, 2.0), (0.25, 0.5, 1.0, 2.0)
console = Console(width=150)


def main(words: Sequence[str] | None = None) -> None:
    """Compute the features, fit and select in each fold, and print the tables."""
    options = read_options(sys.argv[1:] if words is None else words)
    rows = read_questions(options)
    order = np.random.default_rng(options.seed).permutation(len(rows))[: options.max_rows]
    rows = [rows[int(place)] for place in order]
    options.out.mkdir(parents=True, exist_ok=True)
    rows = plant(rows, options.seed) if options.plant else rows
    rows = [
        row
        for row in rows
        if all(map(str.strip, row["responses"])) and len(set(row["responses"])) == len(row["scores"])
    ]
    features = cached_features(rows, options)
    gold = np.array([row["scores"] for row in rows], dtype=float)
    groups = np.array([row["group"] for row in rows])
    found = select_in_folds(features, gold, groups, options)
    counts = {"all": gold.shape[1], "given": _GIVEN} if options.plant else {"given": _GIVEN}
    result = {name: report(found, gold, groups, count) for name, count in counts.items()}
    (options.out / "results.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for name in result:
        show(name, result[name], len(rows), len(np.unique(groups)))


def read_options(words: Sequence[str]) -> Namespace:
    """Read the command-line options."""
    parser = ArgumentParser(description="Caution in best-of-n selection.")
    parser.add_argument("--base", required=True, help="folder or Hub id of the model whose features are used")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="JSON Lines files of one of three kinds")
    parser.add_argument("--group_ends_at", help="for pairs: groups that agree up to this text stay in one fold")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plant", action="store_true", help="add four bad responses of unusual kinds to each question")
    parser.add_argument("--layers", type=int, default=8, help="layers of the base model that are kept; 0 for all")
    parser.add_argument("--max_rows", type=int, default=300, help="questions, drawn at random")
    parser.add_argument("--max_length", type=int, default=384)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--weight_decay", type=float, default=1.0, help="of the linear reward model")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(list(words))


def read_questions(options: Namespace) -> list[Row]:
    """Return questions with four responses, their scores and their group."""
    raw = [json.loads(line) for path in options.data for line in path.read_text(encoding="utf-8").splitlines()]
    if "ground_truth" in raw[0]:
        return [_of_gsm8k(row) for row in raw]
    if "preference" in raw[0]:
        return [_of_feedback(row) for row in raw if any(row["preference"])]
    return _sets_of_pairs(raw, options)


def _of_gsm8k(row: Row) -> Row:
    solutions = [row[f"{model}_{method}"] for model in ("6b", "175b") for method in ("finetuning", "verification")]
    responses, scores = ([each[name] for each in solutions] for name in ("solution", "is_correct"))
    prompt = row["question"]
    return {
        "prompt": prompt,
        "question": prompt,
        "responses": responses,
        "scores": list(map(int, scores)),
        "group": prompt,
    }


def _of_feedback(row: Row) -> Row:
    scores = [0.0] * _GIVEN
    for (first, second), winner in zip(combinations(range(_GIVEN), 2), row["preference"], strict=True):
        scores[first] += {0: 0.5, 1: 1.0, 2: 0.0}[winner] / (_GIVEN - 1)
        scores[second] += {0: 0.5, 1: 0.0, 2: 1.0}[winner] / (_GIVEN - 1)
    passages = [f"{title}: {' '.join(sentences)}" for title, *sentences in row["passages"]]
    question = row["question"]
    prompt = "\n\n".join([*passages, f"Question: {question}"])
    responses = [row[f"prediction {place + 1}"] for place in range(_GIVEN)]
    return {"prompt": prompt, "question": question, "responses": responses, "scores": scores, "group": question}


def _sets_of_pairs(rows: list[Row], options: Namespace) -> list[Row]:
    """Return random sets of four responses to each prompt, each response in one set."""
    won: dict[tuple[str, str], list[int]] = {}
    groups = {row["prompt"]: group_of(row, options) for row in rows}
    for row in rows:
        for side, score in (("chosen", 1), ("rejected", 0)):
            won.setdefault((row["prompt"], row[side]), []).append(score)
    questions, random = [], np.random.default_rng(options.seed)
    for prompt, group in groups.items():
        own = [text for of, text in won if of == prompt]
        own = [own[int(place)] for place in random.permutation(len(own))]
        for start in range(0, len(own) - _GIVEN + 1, _GIVEN):
            responses = own[start : start + _GIVEN]
            scores = [float(np.mean(won[prompt, text])) for text in responses]
            found = {"prompt": prompt, "question": prompt, "responses": responses, "scores": scores}
            questions.append(found | {"group": group})
    return questions


def plant(rows: list[Row], seed: int) -> list[Row]:
    """Add four responses of score 0 to each row."""
    random, planted = np.random.default_rng(seed), []
    for place, row in enumerate(rows):
        others = [_of_other_group(rows, place, int(step)) for step in random.integers(1, len(rows), 2)]
        own = row["responses"][int(random.integers(len(row["responses"])))].split()
        bad = [other["responses"][int(random.integers(len(other["responses"])))] for other in others]
        bad += [" ".join(own[int(i)] for i in random.permutation(len(own))), row["question"]]
        planted.append(row | {"responses": row["responses"] + bad, "scores": [*row["scores"], 0, 0, 0, 0]})
    return planted


def _of_other_group(rows: list[Row], place: int, step: int) -> Row:
    """Return the row that many places after a row, or the first one after it with another group."""
    ordered = (rows[(place + step + more) % len(rows)] for more in range(len(rows)))
    return next(row for row in ordered if row["group"] != rows[place]["group"])


def cached_features(rows: list[Row], options: Namespace) -> np.ndarray:
    """Return the features of every response, shape `(R, N, H)`."""
    file = options.out / "features.npz"
    names = ("layers", "max_rows", "max_length", "seed", "plant", "group_ends_at")
    given = [Path(options.base).name, *(path.name for path in options.data), *(getattr(options, n) for n in names)]
    settings = json.dumps(given)
    if file.is_file():
        kept = np.load(file, allow_pickle=False)
        if str(kept["settings"]) != settings:
            raise SystemExit(f"{file} was made with different settings. Use a different --out.")
        return kept["features"]
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(options.base))
    model: Any = base_model(options.base, options.layers or None).eval()
    ranked = [
        {"prompt": row["prompt"], "responses": row["responses"], "ranks": list(range(len(row["responses"])))}
        for row in rows
    ]
    rule = PreparationRule(format=FormatRule(max_length=options.max_length))
    prepared: Any = prepare_preferences(ranked, tokenizer, rule)[0]
    if len(prepared) != len(rows):
        raise SystemExit(f"{len(rows) - len(prepared)} rows were dropped. Raise --max_length.")
    collate, parts = DataCollatorForPackedPreference(), []
    with torch.no_grad(), packed_model(model):
        for start in range(0, len(rows), 2):
            batch = collate([prepared[place] for place in range(start, min(start + 2, len(rows)))])
            parts.append(compute_features(model, batch).float().numpy())
    features = np.concatenate(parts).reshape(len(rows), -1, parts[0].shape[-1])
    np.savez(file, features=features, settings=settings)
    return features


# --- models on features -----------------------------------------------------------------------------------------------


def fit_heads(features: torch.Tensor, gold: np.ndarray, options: Namespace) -> torch.Tensor:
    """Fit linear Bradley-Terry rewards on standardised features, one per resample of the questions, shape `(H, M)`."""
    row, better, worse = np.nonzero(gold[:, :, None] > gold[:, None, :])
    differences = features[row, better] - features[row, worse]
    random = np.random.default_rng(options.seed)
    counts = random.poisson(1.0, (options.heads, len(gold)))[:, row] if options.heads > 1 else np.ones((1, len(row)))
    weights = torch.tensor(counts, dtype=torch.float32)
    heads = torch.zeros(features.shape[-1], options.heads, requires_grad=True)
    optimizer = torch.optim.LBFGS([heads], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        fit = -(weights * logsigmoid(differences @ heads).T).sum() / len(row)
        value = fit + options.weight_decay * heads.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return heads.detach()


def distillation_error(known: torch.Tensor, features: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the error of a network that was trained to imitate a random network on known features, shape `(N,)`."""
    torch.manual_seed(seed)
    size = known.shape[-1]
    target, learner = (nn.Sequential(nn.Linear(size, 256), nn.ReLU(), nn.Linear(256, 64)) for _ in range(2))
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    with torch.no_grad():
        wanted = target(known)
    for _ in range(60):
        for batch in torch.randperm(len(known)).split(64):
            optimizer.zero_grad()
            mse_loss(learner(known[batch]), wanted[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (learner(features) - target(features)).square().mean(-1)


def distance(known: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return the Mahalanobis distance to known features, with a covariance shrunk by half, shape `(N,)`."""
    covariance = known.T @ known / len(known)
    shrunk = covariance / 2 + torch.eye(len(covariance)) * covariance.diagonal().mean() / 2
    return (features * torch.linalg.solve(shrunk, features.T).T).sum(-1).sqrt()


@dataclass
class Scores:
    """Scores of all responses, shape `(R, N)` each."""

    mean: np.ndarray
    std: np.ndarray
    error: np.ndarray
    """In standard deviations above the mean of held-out given responses; so is `far`."""
    far: np.ndarray


def select_in_folds(features: np.ndarray, gold: np.ndarray, groups: np.ndarray, options: Namespace) -> Scores:
    """Score the responses of every fold with models fitted on the given responses of the others."""
    fold, given = assign_folds(groups, options.folds, options.seed), _GIVEN
    scores = Scores(*(np.zeros(gold.shape) for _ in range(4)))
    for number in range(options.folds):
        known, held = fold != number, fold == number
        centre, scale = (getattr(features[known, :given], name)((0, 1)) for name in ("mean", "std"))
        ready = torch.tensor((features - centre) / (scale + 1e-6) / np.sqrt(features.shape[-1]), dtype=torch.float32)
        heads = fit_heads(ready[known, :given], gold[known, :given], options)
        rewards = (ready @ heads).numpy()
        # A distilled network fits its own training responses better than new ones, so half of them set the scale.
        fitted = np.flatnonzero(known)[::2]
        reference = np.flatnonzero(known)[1::2]
        spread = rewards[known, :given].mean(-1).std()
        scores.mean[held] = rewards[held].mean(-1) / spread
        scores.std[held] = rewards[held].std(-1, ddof=1) / spread
        units = ready * np.sqrt(features.shape[-1])
        known_units, all_units = units[fitted, :given].flatten(0, 1), units.flatten(0, 1)
        unusual = {
            "error": distillation_error(known_units, all_units, options.seed),
            "far": distance(known_units, all_units),
        }
        for name, found in unusual.items():
            values = found.reshape(gold.shape).numpy()
            base = values[reference, :given]
            getattr(scores, name)[held] = (values[held] - base.mean()) / base.std()
    return scores


def report(scores: Scores, gold: np.ndarray, groups: np.ndarray, count: int) -> dict[str, Any]:
    """Return mean scores of selections, differences, and the areas of abstaining, over the first responses."""
    mean, std, error, far, gold = (
        each[:, :count] for each in (scores.mean, scores.std, scores.error, scores.far, gold)
    )
    ways = {"reward": mean, "random": None}
    ways |= {f"lower bound, beta {beta:g}": mean - beta * std for beta in BETAS}
    ways |= {f"caution, lambda {weight:g}": mean - weight * error for weight in LAMBDAS}
    ways |= {f"distance, lambda {weight:g}": mean - weight * far for weight in LAMBDAS}
    questions = np.arange(len(gold))
    plain, careful = (gold[questions, values.argmax(1)] for values in (mean, mean - std))
    result: dict[str, Any] = {"selected": {}, "abstaining": {}, "best possible": float(gold.max(1).mean())}
    for name, values in ways.items():
        chosen = gold.mean(1) if values is None else gold[questions, values.argmax(1)]
        found = [mean_spread(chosen - other, groups) for other in (plain, careful)]
        result["selected"][name] = {
            "score": float(chosen.mean()),
            "minus reward": [found[0].estimate, *_bounds(found[0])],
            "minus lower bound": [found[1].estimate, *_bounds(found[1])],
        }
    top = mean.argmax(1)
    wrong = 1 - plain / max(gold.max(), 1)
    lower = np.sort(mean - std, 1)
    confidences = {
        "margin": np.diff(np.sort(mean, 1)[:, -2:], axis=1)[:, 0],
        "margin of lower bounds": lower[:, -1] - lower[:, -2],
        "low spread of the heads": -std[questions, top],
        "low error": -error[questions, top],
        "low distance": -far[questions, top],
        "random": np.zeros(len(gold)),
    }
    for name, confidence in confidences.items():
        ways_to_compare = [(wrong, confidence), (wrong, confidences["margin"])]
        interval = aurc_interval(ways_to_compare, groups)
        result["abstaining"][name] = [
            aurc(wrong, confidence),
            None if interval is None else [interval.low, interval.high],
        ]
    return result


def _bounds(spread: Spread) -> tuple[float, float]:
    interval = t_interval(spread)
    return interval.low, interval.high


def show(name: str, result: dict[str, Any], count: int, groups: int) -> None:
    """Print the tables."""
    table = Table(
        title=f"{name} responses, {count} questions, {groups} groups; best possible {result['best possible']:.3f}",
        title_justify="left",
    )
    for column in ("selected by", "mean score", "minus reward (95% interval)", "minus lower bound, beta 1"):
        table.add_column(column)
    for way, found in result["selected"].items():
        differences = ("{:+.3f} ({:+.3f} to {:+.3f})".format(*found[f"minus {of}"]) for of in ("reward", "lower bound"))
        table.add_row(way, f"{found['score']:.3f}", *differences)
    console.print(table)
    table = Table("abstain by", "AURC", "minus margin (95% interval)")
    margin = result["abstaining"]["margin"][0]
    for way, (area, bounds) in result["abstaining"].items():
        interval = "" if bounds is None else f"({bounds[0]:+.3f} to {bounds[1]:+.3f})"
        table.add_row(way, f"{area:.3f}", f"{area - margin:+.3f} {interval}")
    console.print(table)


if __name__ == "__main__":
    main()
