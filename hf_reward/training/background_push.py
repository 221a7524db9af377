"""The trainer's half that publishes: every push goes through `push`, during training in a process of its own."""

import atexit
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import HubStrategy

from hf_reward.modeling.custom_code import is_custom
from hf_reward.modeling.reward_head import bare_model
from hf_reward.publishing.push import PushReport, PushRule, explained, push_reward_model
from hf_reward.training.data_loading import PreferenceDataTrainer
from hf_reward.training.training_args import RewardConfig

logger = logging.getLogger(__name__)

_OF_DISTRIBUTED_RUNS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_", "MASTER_", "TORCHELASTIC_"),
    *("ACCELERATE_", "FSDP_"),
)
"""Beginnings of environment variables that would make one process wait for others."""


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


class HubTrainer(PreferenceDataTrainer):
    """Publishes what `PreferenceDataTrainer` trains, instead of uploading the whole output folder."""

    args: RewardConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    push_in_progress: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository.

        Args:
            token: Write token, by default `hub_token`.
            private: Whether only its owners see it, by default `hub_private_repo`.

        Raises:
            PushError: If that is not possible.
        """
        name = self.args.hub_model_id or Path(self.args.output_dir or ".").absolute().name
        with explained(name, "The repository could not be created or found."):
            super().init_hf_repo(token=token, private=private)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride] - the report says more than a commit
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> PushReport | BackgroundPush | None:
        """Publish the model as it is now: merged on the branch, verified before and after the upload.

        Args:
            commit_message: Of the one commit.
            blocking: Wait for it; else it runs beside this process.
            token: Write token, by default `hub_token` or the one that `hf auth login` stored.
            revision: Branch, by default `hub_revision` or main.
            private: Whether only owners see it, by default `hub_private_repo`.
            **kwargs: `gated`, `create_pr`, `adapter`, `replace` and `base_model` of `PushRule`; the rest is said in the
                card.

        Returns:
            What was published, on the main process; the running push if not `blocking`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        choices = {name: kwargs.pop(name) for name in ("gated", "create_pr", "adapter", "replace") if name in kwargs}
        rule = PushRule(
            branch=revision or self.args.hub_revision or "main",
            private=self.args.hub_private_repo if private is None else private,
            base_model=kwargs.get("base_model"),
            message=commit_message or "Reward model",
            trust_remote_code=self._runs_own_code(),
            **choices,
        )
        self.create_model_card(**kwargs)
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=self._existing_output_dir()))
        try:
            self.save_model(str(folder), _internal_call=True)
            if not self.is_world_process_zero():
                return None
            self._finish_current_push()
            if blocking:
                with torch.random.fork_rng(devices=[]):  # merging an adapter makes a head first, at random
                    return push_reward_model(folder, str(self.hub_model_id), rule, token=token)
            self.push_in_progress = BackgroundPush(folder, self._command(rule), token)
            return self.push_in_progress
        finally:
            if blocking or not self.is_world_process_zero():
                shutil.rmtree(folder, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self.push_in_progress.wait_until_done()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        states = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint_folder).name}
        rule = PushRule(
            branch=self.args.hub_revision or "main",
            private=self.args.hub_private_repo,
            training_state=states.get(HubStrategy(self.args.hub_strategy)),
            message=f"Training in progress, step {self.state.global_step}",
            trust_remote_code=self._runs_own_code(),
        )
        # A link, because the checkpoint itself may be rotated away before the push has read it.
        folder = Path(tempfile.mkdtemp(prefix=".push-", dir=self._existing_output_dir()))
        shutil.copytree(checkpoint_folder, folder, dirs_exist_ok=True, copy_function=_link)
        self.push_in_progress = BackgroundPush(folder, self._command(rule), self.args.hub_token)

    def _runs_own_code(self) -> bool:
        model: Any = self.model
        return is_custom(type(bare_model(model).config))

    def _command(self, rule: PushRule) -> list[str]:
        named: dict[str, Any] = {"branch": rule.branch, "message": rule.message, "base-model": rule.base_model}
        named |= {"gated": rule.gated, "training-state": rule.training_state}
        switches = {"create-pr": rule.create_pr, "adapter": rule.adapter, "replace": rule.replace}
        switches |= {"trust-remote-code": rule.trust_remote_code}
        private = {None: [], True: ["--private"], False: ["--public"]}[rule.private]
        options = [word for name, value in named.items() if value is not None for word in (f"--{name}", str(value))]
        return [str(self.hub_model_id), *options, *[f"--{name}" for name, on in switches.items() if on], *private]

    def _existing_output_dir(self) -> str:
        Path(self.args.output_dir or ".").mkdir(parents=True, exist_ok=True)
        return self.args.output_dir or "."


def _link(source: str, target: str, **kwargs: Any) -> None:
    link: Callable[[str, str], None] = os.link
    try:
        link(source, target)
    except OSError:
        shutil.copy2(source, target)
