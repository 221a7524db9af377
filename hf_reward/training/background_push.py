"""A run's model and checkpoints -> the Hub: every push goes through `push`, during training in a separate process."""

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState
from transformers.trainer_utils import HubStrategy

from hf_reward.modeling.custom_code import is_custom
from hf_reward.modeling.reward_head import unwrap_model
from hf_reward.publishing.push import PushRule, push_reward_model
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_OF_DISTRIBUTED_RUNS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_", "MASTER_", "TORCHELASTIC_"),
    *("ACCELERATE_", "FSDP_"),
)
"""Beginnings of environment variables that would make one process wait for others."""


PUSH_OPTIONS = ("gated", "create_pr", "adapter", "replace")
"""Arguments of `push_to_hub` that configure the push; the others are facts for the card."""


class BackgroundPush:
    """A push that runs beside training, as the command `hf-reward push`, on the CPU.

    A process of its own, because verification and merging load models: in this one that would draw random numbers and
    memory from training. This process does not end before it.

    Args:
        folder: What to push; removed when done.
        command: Arguments of `hf-reward push` after the folder.
        token: Write token, passed through the environment.
    """

    def __init__(self, folder: Path, command: list[str], token: str | None) -> None:
        self.folder = folder
        environment = {name: text for name, text in os.environ.items() if not name.startswith(_OF_DISTRIBUTED_RUNS)}
        environment |= {"CUDA_VISIBLE_DEVICES": "", **({"HF_TOKEN": token} if token else {})}
        self.log = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 - read when the process has ended
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hf_reward.cli", "push", str(folder), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        atexit.register(self.wait_until_done)

    def is_done(self) -> bool:
        """Whether it has ended; a failure is logged then, and training goes on."""
        if self.process.poll() is None:
            return False
        if not self.log.closed:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.wait_until_done)
            if self.process.returncode != 0:
                said = [line for line in lines if line.startswith("hf-reward: ")] or lines or ["no message"]
                logger.error("A checkpoint was not pushed: %s", said[-1].removeprefix("hf-reward: "))
        return True

    def wait_until_done(self) -> None:
        """Wait for it."""
        self.process.wait()
        self.is_done()


class Publisher:
    """Publishes a run's model and checkpoints, during training in a process of its own.

    Args:
        args: Settings of the run.
        token: Write token; kept here, because `Trainer` pickles its settings beside the model.
    """

    def __init__(self, args: RewardConfig, token: str | None) -> None:
        self.args, self.token = args, token
        self.running: BackgroundPush | None = None
        """The last push that was started beside training."""

    @property
    def repository(self) -> str:
        """The repository's name as the settings say it, by default that of the output folder."""
        return self.args.hub_model_id or Path(self.args.output_dir or ".").absolute().name

    def rule(
        self,
        model: Any,
        *,
        message: str | None,
        revision: str | None = None,
        private: bool | None = None,
        **choices: Any,
    ) -> PushRule:
        """How the model is pushed, from the arguments of `push_to_hub` and the settings.

        Args:
            model: The reward model.
            message: Of the commit.
            revision: Branch, by default `hub_revision` or main.
            private: By default `hub_private_repo`.
            **choices: Further fields of `PushRule`; other names are left out.

        Returns:
            The rule.
        """
        return PushRule(
            branch=revision or self.args.hub_revision or "main",
            private=self.args.hub_private_repo if private is None else private,
            message=message or "Reward model",
            trust_remote_code=is_custom(type(unwrap_model(model).config)),
            **{
                name: value
                for name, value in choices.items()
                if name in (*PUSH_OPTIONS, "base_model", "training_state")
            },
        )

    @contextmanager
    def new_folder(self, *, kept: bool = False) -> Iterator[Path]:
        """A new folder in the output folder, for what is pushed.

        Args:
            kept: Whether it stays at the end, because a push beside this process reads it.

        Yields:
            Path: The folder.
        """
        output = Path(self.args.output_dir or ".")
        output.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=output))
        try:
            yield folder
        finally:
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)

    def push(self, folder: Path, repository: str, rule: PushRule, token: str | None, *, blocking: bool) -> Any:
        """Push a saved model.

        Args:
            folder: What to push; without `blocking` removed when the push has ended.
            repository: Its name on the Hub.
            rule: How.
            token: Write token.
            blocking: Wait for it; else it runs beside this process.

        Returns:
            The report, or the running push.
        """
        if self.running is not None:
            self.running.wait_until_done()
        if not blocking:
            self.running = BackgroundPush(folder, push_command(repository, rule), token)
            return self.running
        with torch.random.fork_rng(devices=[]):  # merging an adapter makes a head first, at random
            return push_reward_model(folder, repository, rule, token=token)

    def is_free_for_a_checkpoint(self) -> bool:
        """Whether a checkpoint is pushed now: `hub_always_push` waits for an earlier push, else it is left out."""
        if self.args.hub_strategy == HubStrategy.END:
            return False
        if self.running is not None and not self.running.is_done():
            if not self.args.hub_always_push:
                return False
            self.running.wait_until_done()
        return True

    def push_checkpoint(self, checkpoint: Path, repository: str, model: Any, state: TrainerState) -> None:
        """Start to push a checkpoint.

        Args:
            checkpoint: Its folder, which may be removed afterwards.
            repository: Its name on the Hub.
            model: The reward model.
            state: State of the run.
        """
        states = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        message = f"Training in progress, step {state.global_step}"
        rule = self.rule(model, message=message, training_state=states.get(HubStrategy(self.args.hub_strategy)))
        with self.new_folder(kept=True) as folder:
            # Links, because the checkpoint may be rotated away before the push has read it.
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True, copy_function=_link)
            self.running = BackgroundPush(folder, push_command(repository, rule), self.token)


def push_command(repository: str, rule: PushRule) -> list[str]:
    """The arguments of `hf-reward push` after the folder that say a rule.

    Args:
        repository: Name on the Hub.
        rule: How to push.

    Returns:
        The words.
    """
    named: dict[str, Any] = {"branch": rule.branch, "message": rule.message, "base-model": rule.base_model}
    named |= {"gated": rule.gated, "training-state": rule.training_state}
    switches = {"create-pr": rule.create_pr, "adapter": rule.adapter, "replace": rule.replace}
    switches |= {"trust-remote-code": rule.trust_remote_code}
    private = {None: [], True: ["--private"], False: ["--public"]}[rule.private]
    options = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
    return [repository, *options, *[f"--{name}" for name, on in switches.items() if on], *private]


def _link(source: str, target: str, **kwargs: Any) -> None:
    link: Callable[[str, str], None] = os.link
    try:
        link(source, target)
    except OSError:
        shutil.copy2(source, target)
