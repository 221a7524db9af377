"""`RemoteReward` returns the scorer's rewards or raises an error; the reward functions of the guide use it."""

import asyncio
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from running_servers import fake, free_port, running

from hf_reward.scoring import remote_reward
from hf_reward.scoring.remote_reward import RemoteReward
from hf_reward.scoring.server_client import ServerClientError

PROMPT, ANSWERS = "Which is heavier?", ["Water.", "Oil is heavier, I think.", ""]
GUIDE = Path(__file__).parents[2] / "docs/guides/serving.md"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which tests do not take."""
    taken: list[float] = []

    async def sleep(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(remote_reward, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return taken


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_rewards_are_those_of_the_scorer_sync_and_async(scorer):
    chat = [{"role": "user", "content": PROMPT}]
    rows = [(PROMPT, each) for each in ANSWERS] + [(chat, [{"role": "assistant", "content": each}]) for each in ANSWERS]
    prompts, responses = (list(side) for side in zip(*rows * 5, strict=True))
    expected = scorer.score(prompts, responses, allow_empty=True)
    with running(scorer) as url:
        remote = RemoteReward(f"{url}/score", batch_size=4)
        assert remote.score(prompts, responses) == pytest.approx(expected, abs=1e-5)
        ended = [f"{each}<|im_end|>" for each in ANSWERS[:2]]  # as decoded by a policy
        assert remote.score([PROMPT] * 2, ended) == pytest.approx(expected[:2], abs=1e-5)
        assert remote.score([], []) == []

        async def inside() -> None:
            assert await remote.ascore(prompts, responses) == pytest.approx(expected, abs=1e-5)
            assert remote.score(prompts[:1], responses[:1]) == pytest.approx(expected[:1], abs=1e-5)  # a running loop
            conversation = [*chat, {"role": "assistant", "content": ANSWERS[0]}]
            assert await remote.ascore_conversations([conversation]) == pytest.approx(expected[:1], abs=1e-5)
            assert remote.score_conversations([conversation]) == pytest.approx(expected[:1], abs=1e-5)

        asyncio.run(inside())
        copied = pickle.loads(pickle.dumps(remote))
        assert copied(prompts=prompts, completions=responses, completion_ids=None) == pytest.approx(expected, abs=1e-5)
        assert copied.__name__ == "remote_reward"


def test_a_token_is_sent(scorer, monkeypatch):
    with running(scorer, token="secret") as url:
        with pytest.raises(ServerClientError, match="requires a valid token"):
            RemoteReward(url).score([PROMPT], ANSWERS[:1])
        assert len(RemoteReward(url, token="secret").score([PROMPT], ANSWERS[:1])) == 1
        monkeypatch.setenv("HF_REWARD_SERVER_TOKEN", "secret")
        assert len(RemoteReward(url).score([PROMPT], ANSWERS[:1])) == 1


def test_trl_takes_it_as_a_reward_function():
    utils = pytest.importorskip("trl.trainer.utils")
    remote = RemoteReward("http://host:8000")
    assert utils.get_callable_name(remote) == "remote_reward"
    assert not utils.is_async_callable(remote)


# --- failures --------------------------------------------------------------------------------------------------------


def test_temporary_failures_are_repeated(waits):
    answers = iter([503, 500, {"rewards": [[1.5]]}])
    with fake(lambda path, body: next(answers)) as url:
        assert RemoteReward(url).score([PROMPT], ["a"]) == [1.5]
    assert 1 <= waits[0] <= 1.2
    assert 2 <= waits[1] <= 2.4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"rewards": [[float("nan")], [1.0]]}, "one finite reward for each of 2 responses"),
        ({"rewards": [[float("inf")], [1.0]]}, "one finite reward"),
        ({"rewards": [[None], [1.0]]}, "one finite reward"),
        ({"rewards": [[True], [1.0]]}, "one finite reward"),
        ({"rewards": [[1.0]]}, "one finite reward"),
        ({"rewards": [[1.0, 2.0], [1.0]]}, "one finite reward"),
        ({"rewards": [1.0, 2.0]}, "one finite reward"),
        ({}, "one finite reward"),
        ([], "one finite reward"),
        (b"no JSON", "invalid JSON"),
        (404, "does not exist"),
        (422, "returned 422"),
        (500, r"returned 500: .*\(after 3 attempts\)"),
        (429, r"\(after 3 attempts\)"),
    ],
)
def test_every_failure_is_an_error(answer, message):
    calls = []

    def answered(path: str, body: Any) -> Any:
        calls.append(body)
        return answer

    with fake(answered) as url, pytest.raises(ServerClientError, match=message):
        RemoteReward(url, attempts=3).score([PROMPT] * 2, ["a", "b"])
    assert len(calls) == (3 if answer in (429, 500) else 1)


def test_a_server_that_is_not_there_is_an_error(waits):
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerClientError, match=r"cannot be reached.*after 2 attempts"):
        RemoteReward(url, attempts=2).score([PROMPT], ["a"])
    assert len(waits) == 1


def test_the_server_decides_how_long_to_wait(scorer, waits):
    with running(scorer, max_queue_rows=4) as url:
        with pytest.raises(ServerClientError, match="413"):  # more rows than the queue holds: no retry
            RemoteReward(url).score([PROMPT] * 5, ["a"] * 5)
        assert waits == []
        assert len(RemoteReward(url, batch_size=4).score([PROMPT] * 8, ["a"] * 8)) == 8


def test_a_response_that_cannot_be_scored_is_an_error(make_scorer):
    with (
        running(make_scorer(max_length=64)) as url,
        pytest.raises(ServerClientError, match="Row 1 cannot be scored: too"),
    ):
        RemoteReward(url).score([PROMPT] * 2, ["a", "b " * 200])


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"attempts": 0}, {"concurrency": 0}, {"url": "host:8000"}])
def test_invalid_settings_are_refused(options):
    with pytest.raises(ValueError, match="must"):
        RemoteReward(**{"url": "http://host:8000", **options})


# --- the reward functions of the guide -------------------------------------------------------------------------------


def snippet(name: str, url: str, **stubs: Any) -> dict[str, Any]:
    """Run a code block of the guide that starts with a comment with its file name."""
    code = re.search(rf"```python\n(    )?# {name}.*?```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    for module, content in stubs.items():
        stub = ModuleType(module)
        vars(stub).update(content)
        sys.modules[module.replace("__", ".")] = stub
    names: dict[str, Any] = {}
    source = re.sub(r"^```\w*|```$", "", code[0], flags=re.MULTILINE).replace("http://host:8000", url)
    exec(compile(source, name, "exec"), names)
    return names


@pytest.fixture
def clean_modules(monkeypatch):
    for name in ("skyrl_gym", "skyrl_gym.envs", "skyrl_gym.envs.base_text_env", "verifiers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


def test_the_function_for_verl(scorer):
    # NaiveRewardManager.run_single awaits compute_score with these keywords (verl 0.10.dev 1dda039)
    with running(scorer) as url:
        compute_score = snippet("verl_reward.py", url)["compute_score"]
        assert asyncio.iscoroutinefunction(compute_score)
        extra = {"prompt": [{"role": "user", "content": PROMPT}], "num_turns": None, "rollout_reward_scores": {}}
        work = compute_score(data_source="d", solution_str=ANSWERS[0], ground_truth="42", extra_info=extra)
        assert asyncio.run(work) == pytest.approx(scorer.score([PROMPT], ANSWERS[:1])[0], abs=1e-5)


def test_the_environment_for_skyrl(scorer, clean_modules):
    # BaseTextEnv of skyrl-gym 0.4.0 (a9564572): __init__(), init(prompt), step(action) -> BaseTextEnvStepOutput
    base = {"BaseTextEnv": type("BaseTextEnv", (), {}), "BaseTextEnvStepOutput": dict}
    with running(scorer) as url:
        environment = snippet("skyrl_env.py", url, skyrl_gym__envs__base_text_env=base)["RewardModelEnv"]({}, extras={})
        prompt = [{"role": "user", "content": PROMPT}]
        assert environment.init(prompt) == (prompt, {})
        found = environment.step(f"{ANSWERS[0]}<|im_end|>")
        assert found.pop("reward") == pytest.approx(scorer.score([PROMPT], ANSWERS[:1])[0], abs=1e-5)
        assert found == {"observations": [], "done": True, "metadata": {}}


def test_the_function_for_verifiers_ends_the_run_instead_of_rewarding_zero(scorer, clean_modules):
    # Rubric._call_individual_reward_func of verifiers (a60a606, legacy) turns every Exception into a reward of 0
    rubric = {"Rubric": lambda funcs: SimpleNamespace(funcs=funcs)}
    messages = [{"role": "user", "content": PROMPT}], [{"role": "assistant", "content": ANSWERS[0]}]
    with running(scorer) as url:
        (function,) = snippet("verifiers_reward.py", url, verifiers=rubric)["rubric"].funcs
        found = asyncio.run(function(prompt=messages[0], completion=messages[1], answer="", state={}))
        assert found == pytest.approx(scorer.score([PROMPT], ANSWERS[:1])[0], abs=1e-5)
    with fake(lambda path, body: 422) as url:
        (function,) = snippet("verifiers_reward.py", url, verifiers=rubric)["rubric"].funcs
        with pytest.raises(SystemExit, match="422"):
            asyncio.run(function(prompt=messages[0], completion=messages[1]))
