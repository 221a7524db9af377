"""Pushes to a test Hub: models, users, and a table of the expected results of failed requests."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub_client import Client, Outcome
from hub_server import (
    OWNER_TOKEN,
    HubServer,
    RequestRecord,
)

REPO = "user/model"
SECRET = "hf_distinctiveSecret0123456789"
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
COMMON = {".gitattributes", "README.md", "config.json", "reward_config.json", *TOKENIZER}
ONE_FILE = {*COMMON, "model.safetensors"}
SHARDS = {
    *COMMON,
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
}
ENTRY = b"- dataset:\n    id: org/data\n    task_id: accuracy\n  value: 0.5\n"
WRITES = re.compile(r"/(commit|branch|settings|preupload|objects)\b")
KINDS = ("500", "500_after", "reset", "reset_after", "429", "truncate", "slow")


@dataclass
class Models:
    """Saved models that tests push; they are only read."""

    place: Path
    tokenizer: Any

    def __getattr__(self, name: str) -> Path:
        return self.place / name

    def copy(self, name: str, target: Path) -> Path:
        """One that may be changed."""
        return Path(shutil.copytree(self.place / name, target))


@dataclass
class World:
    """A Hub and a client of it."""

    hub: HubServer
    client: Client
    folder: Path
    empty: Any

    def push(self, folder: Path, *options: object, repo: str = REPO, token: str | None = None, **more: Any) -> Outcome:
        """Push, as the owner unless another token is given."""
        return self.client.run("push", folder, repo, *options, **more, **({} if token is None else {"HF_TOKEN": token}))

    def refs(self) -> dict[str, str]:
        return self.hub.refs(REPO)

    def written(self) -> list[str]:
        """The requests that changed something, or would have."""
        return [f"{each.method} {each.path}" for each in self.hub.requests if WRITES.search(each.path)]


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, (outcome.error, outcome.unexpected)
    return outcome


def refused(outcome: Outcome, *words: str) -> str:
    """The one line that a refused push printed; it holds the words."""
    assert outcome.code == 1, (outcome.code, outcome.out, outcome.error, outcome.unexpected)
    lines = [line for line in outcome.error.splitlines() if line.startswith("hf-reward: ")]
    assert [outcome.error.rstrip().splitlines()[-1]] == lines, outcome.error
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]


def rewards_of(folder: Path) -> list[float]:
    return json.loads((folder / "reward_config.json").read_text())["probes"]["rewards"]["float32"]


def step_of(record: RequestRecord) -> str:
    """The step of a push that a request is, whichever its commit and its branch."""
    path = re.sub(r"hf-reward-staging-[\w.-]+", "STAGING", record.path)
    path = re.sub(r"/[0-9a-f]{40}(?=/|$)", "/STAGED", re.sub(r"/[0-9a-f]{64}", "/OBJECT", path))
    return f"{record.method} {path.replace(REPO, '…').removeprefix('/api')}"


@dataclass
class FaultTable:
    """Every request of an update from `old` to `new`, hit by every kind of fault."""

    world: World
    models: Models
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        done(self.world.push(self.models.old))
        self.world.hub.put(REPO, {"notes.md": b"mine"})
        self.start = self.world.hub.snapshot()
        self.old = self.world.hub.tree(REPO)
        self.world.hub.requests.clear()
        done(self.push())
        self.new = self.world.hub.tree(REPO)
        assert set(self.new) == {*ONE_FILE, "notes.md"}
        counts: Counter[str] = Counter()
        self.steps: list[tuple[str, int]] = []
        for record in self.world.hub.requests:
            step = step_of(record)
            self.steps.append((step, counts[step]))
            counts[step] += 1

    def push(self) -> Outcome:
        return self.world.push(self.models.new)

    @property
    def state(self) -> str:
        """Which version the main branch is."""
        tree = self.world.hub.tree(REPO)
        return "old" if tree == self.old else "new" if tree == self.new else "MIXED"

    def try_fault(self, step: str, at: int, kind: str) -> None:
        """Push with one fault, then again without."""
        self.world.hub.restore(self.start)
        self.world.hub.fail_where(lambda record: step_of(record) == step, kind, at=at, delay=0.2)
        outcome = self.push()
        where = f"{kind} at {step} [{at}]: {outcome}"
        assert [each.fault for each in self.world.hub.requests if each.fault] == [kind], where
        self._check(outcome, where)
        state = self.state
        retry = self._retry(where)
        self.rows.append((step, str(at), kind, f"exit {outcome.code}, main {state}", retry))

    def try_kill(self, step: str, at: int, after: bool) -> None:
        """Push and kill the process at a request, then push again."""
        self.world.hub.restore(self.start)
        self.world.hub.when(lambda record: step_of(record) == step, self.world.client.kill, at=at, after=after)
        outcome = self.push()
        self.world.hub.settle()
        where = f"kill {'after' if after else 'before'} {step} [{at}]: {outcome}"
        assert outcome.code == -9, where
        state = self.state
        assert state in ("old", "new"), where
        retry = self._retry(where)
        self.rows.append((step, str(at), "kill_after" if after else "kill", f"killed, main {state}", retry))

    def _check(self, outcome: Outcome, where: str) -> None:
        assert outcome.unexpected is None, where
        assert OWNER_TOKEN not in outcome.out + outcome.error, where
        state = self.state
        if outcome.code == 0:
            assert state == "new", where
            return
        line = refused(outcome, "The push to user/model failed", "Run the same command again.")
        if "was not changed" in line:
            assert state == "old", where
        elif "new version is on" in line:
            assert state == "new", where
        else:
            assert "either the old or the complete new version" in line, where
            assert state in ("old", "new"), where

    def _retry(self, where: str) -> str:
        self.world.hub.clear_faults()
        outcome = self.push()
        assert outcome.code == 0, (where, outcome)
        assert self.state == "new", where
        assert list(self.world.refs()) == ["refs/heads/main"], where
        assert self.world.hub.tree(REPO) == self.new, where
        titles = [commit.title for commit in self.world.hub.history(REPO)]
        assert titles[:2] == ["Reward model", "By hand"], (where, titles)
        return "new"

    def write(self, name: str) -> None:
        """Append the table as markdown to the file that HF_REWARD_FAULT_TABLE names."""
        target = os.environ.get("HF_REWARD_FAULT_TABLE")
        if not target:
            return
        kinds = list(dict.fromkeys(row[2] for row in self.rows))
        cells = {(row[0], row[1], row[2]): f"{row[3]}; retry {row[4]}" for row in self.rows}
        lines = [f"\n### {name}\n", f"| request | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
        for step, at in dict.fromkeys((row[0], row[1]) for row in self.rows):
            found = [cells.get((step, at, kind), "-") for kind in kinds]
            lines.append(f"| {step} [{at}] | {' | '.join(found)} |")
        with open(target, "a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


def races(world: World, models: Models, other: Client, steps: list[tuple[str, int]], start: Any) -> list[str]:
    """Let another push run from start to end at each step of a push; who won each."""
    winners = []
    trees = []
    for folder in (models.new, models.other):
        world.hub.restore(start)
        done(world.push(folder))
        trees.append(world.hub.tree(REPO))
    for step, at in steps:
        world.hub.restore(start)
        within: list[Outcome] = []
        world.hub.when(
            lambda record, step=step: step_of(record) == step,
            lambda within=within: within.append(other.run("push", models.other, REPO)),
            at=at,
        )
        outcome = world.push(models.new)
        assert [done(each).code for each in within] == [0], step
        assert world.hub.tree(REPO) in trees, step
        if outcome.code == 0:
            winners.append("first" if world.hub.tree(REPO) == trees[0] else "second")
        else:
            refused(outcome, "The push to user/model failed", "was not changed")
            assert world.hub.tree(REPO) == trees[1], step
            winners.append("second")
        done(world.push(models.new))
        assert world.hub.tree(REPO) == trees[0]
        assert list(world.refs()) == ["refs/heads/main"], step
    return winners
