"""Push the model and checkpoints of a run to the Hub, during training in a separate process."""

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

_DISTRIBUTED_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_", "MASTER_", "TORCHELASTIC_"),
    *("ACCELERATE_", "FSDP_"),
)
"""Prefixes of environment variables that would make a process wait for others."""

PUSH_OPTIONS = ("gated", "create_pr", "adapter", "replace")
"""Arguments of `push_to_hub` that configure the push; other arguments go to the model card."""


class BackgroundPush:
    """A push during training, by the command `hf-reward push` in another process on the CPU.

    Verification and merging load models, which would use memory and random numbers of the training process. The
    training process waits for the push before it exits.

    Args:
        folder: The folder to push; it is removed afterwards.
        command: Arguments of `hf-reward push` after the folder.
        token: Write token, passed through the environment.
    """

    def __init__(self, folder: Path, command: list[str], token: str | None) -> None:
        self.folder = folder
        environment = {name: text for name, text in os.environ.items() if not name.startswith(_DISTRIBUTED_VARIABLES)}
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
        """Whether the push has ended; a failure is logged, and training continues."""
        if self.process.poll() is None:
            return False
        if not self.log.closed:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines()
            self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            atexit.unregister(self.wait_until_done)
            if self.process.returncode != 0:
                errors = [line for line in lines if line.startswith("hf-reward: ")] or lines or ["no message"]
                logger.error("A checkpoint was not pushed: %s", errors[-1].removeprefix("hf-reward: "))
        return True

    def wait_until_done(self) -> None:
        """Wait for the end of the push."""
        self.process.wait()
        self.is_done()


class Publisher:
    """Publishes a run's model and checkpoints, during training in another process.

    Args:
        args: Settings of the run.
        token: Write token; stored here, because `Trainer` pickles its settings into the output folder.
    """

    def __init__(self, args: RewardConfig, token: str | None) -> None:
        self.args, self.token = args, token
        self.running: BackgroundPush | None = None
        """The last push that was started in another process."""

    @property
    def repository(self) -> str:
        """Name of the repository in the settings, by default the name of the output folder."""
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
        """Return the push options from the arguments of `push_to_hub` and the settings.

        Args:
            model: The reward model.
            message: Commit message.
            revision: Branch, by default `hub_revision` or main.
            private: Whether the repository is private, by default `hub_private_repo`.
            **choices: Further fields of `PushRule`; other names are ignored.

        Returns:
            The push options.
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
        """Yield a new folder in the output folder for the files to push.

        Args:
            kept: Whether the folder is kept after the block, for a push in another process.

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
            folder: The folder to push; without `blocking` it is removed after the push.
            repository: Name on the Hub.
            rule: Push options.
            token: Write token.
            blocking: Whether to wait; otherwise the push runs in another process.

        Returns:
            The report, or the running push.
        """
        if self.running is not None:
            self.running.wait_until_done()
        if not blocking:
            self.running = BackgroundPush(folder, push_command(repository, rule), token)
            return self.running
        with torch.random.fork_rng(devices=[]):  # merging an adapter first creates a random head
            return push_reward_model(folder, repository, rule, token=token)

    def is_free_for_a_checkpoint(self) -> bool:
        """Whether to push a checkpoint now; `hub_always_push` waits for a running push, otherwise it is skipped."""
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
            repository: Name on the Hub.
            model: The reward model.
            state: State of the run.
        """
        states = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        message = f"Training in progress, step {state.global_step}"
        rule = self.rule(model, message=message, training_state=states.get(HubStrategy(self.args.hub_strategy)))
        with self.new_folder(kept=True) as folder:
            # Hard links, because the checkpoint may be removed before the push has read it.
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True, copy_function=_link)
            self.running = BackgroundPush(folder, push_command(repository, rule), self.token)


def push_command(repository: str, rule: PushRule) -> list[str]:
    """Return the arguments of `hf-reward push` after the folder.

    Args:
        repository: Name on the Hub.
        rule: Push options.

    Returns:
        The command-line arguments.
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
