"""Protocols of RL trainers: OpenRLHF's `/get_reward`, slime's `remote_rm`, and the resources server of NeMo-Gym.

Bodies and answers are those of OpenRLHF 0.11.0 (openrlhf/utils/agent.py, cli/serve_rm.py), slime 0.3.1
(slime/rollout/rm_hub/__init__.py, utils/data.py) and NeMo-Gym 0.5.1 (nemo_gym/base_resources_server.py,
reward_profile.py, responses_api_agents/simple_agent/app.py).

OpenRLHF and slime send text that the policy decoded. It ends with the end-of-turn token, or without it if the response
was cut, but not with the white space after it that a chat template prints. `FormattedTexts` restores the end.
A system prompt that a policy's template adds is part of such a text, so policy and reward model need the same template.
"""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import ApiError, StrictJSON
from hf_reward.scoring.serving.protocols import answers
from hf_reward.scoring.serving.protocols.base import (
    Anything,
    Body,
    Listed,
    Messages,
    requests_of_messages,
    requests_of_pairs,
    requests_of_texts,
    score,
    service_of,
)

router = APIRouter(tags=["RL trainers"])


class OpenRlhfBody(Body):
    """Body of OpenRLHF's `/get_reward`. `query` holds prompts with responses, formatted by the policy."""

    query: Listed[str] | str
    prompts: Anything = None
    labels: Anything = None


@router.post("/get_reward", summary="OpenRLHF", response_model=answers.OpenRlhfRewards)
async def get_reward(body: OpenRlhfBody, request: Request) -> StrictJSON:
    """Answer OpenRLHF's trainer, which optimises `rewards`, filters by `scores` and logs `extra_logs`."""
    given = [body.query] if isinstance(body.query, str) else body.query
    service = service_of(request)
    texts = [service.texts.finished(text) for text in given]
    scored = await score(service, request, requests_of_texts(texts))
    # The trainer sends one text per request and makes a tensor of each entry of `extra_logs`.
    logs = {"reward_model_tokens": scored.row_tokens}
    return StrictJSON({"rewards": scored.rewards, "scores": scored.rewards, "extra_logs": logs})


class SlimeBody(Body):
    """Body of slime's `remote_rm`. With `--apply-chat-template`, the prompt is formatted."""

    prompt: str | Messages
    response: str
    label: Anything = None


@router.post("/remote_rm", summary="slime", response_model=float)
async def remote_rm(body: SlimeBody, request: Request) -> StrictJSON:
    """Answer slime (`--rm-type remote_rm`), which takes the JSON of the answer as the reward: one number."""
    service, prompt = service_of(request), body.prompt
    texts = service.texts
    if isinstance(prompt, str) and texts.is_formatted_prompt(prompt):
        requests = requests_of_texts([texts.finished(prompt + body.response)])
    else:
        requests = requests_of_pairs([(prompt, body.response)])
    return StrictJSON((await score(service, request, requests)).rewards[0])


# --- NeMo-Gym --------------------------------------------------------------------------------------------------------


class VerifyBody(Body):
    """Body of NeMo-Gym's `/verify`: a request and a response of OpenAI's Responses API, and columns of the dataset."""

    model_config = ConfigDict(strict=True, extra="allow")  # datasets add fields

    responses_create_params: dict[str, Any]
    response: dict[str, Any]

    def requests(self) -> list[ScoreRequest]:
        """Convert the conversation to a request: input and output without reasoning; the last message is scored."""
        given = self.responses_create_params
        items = given.get("input")
        turns = [{"role": "user", "content": items}] if isinstance(items, str) else _turns(items, "input")
        if isinstance(given.get("instructions"), str):
            turns = [{"role": "system", "content": given["instructions"]}, *turns]
        turns += _turns(self.response.get("output"), "output")
        if not turns or turns[-1]["role"] != "assistant":
            raise _invalid("`output` must end with a message of the assistant, which is scored")
        return requests_of_messages(turns, {"tools": [_tool(each) for each in given.get("tools") or []] or None})


@router.post("/seed_session", summary="NeMo-Gym: start of a rollout", response_model=answers.Nothing)
async def seed_session() -> StrictJSON:
    """Answer NeMo-Gym's agents before a rollout; rewards need no state."""
    return StrictJSON({})


@router.post("/verify", summary="NeMo-Gym: reward of a rollout", response_model=answers.Verified)
async def verify(body: VerifyBody, request: Request) -> StrictJSON:
    """Return the body with `reward`, as NeMo-Gym's agents require."""
    (reward,) = (await score(service_of(request), request, body.requests())).rewards
    return StrictJSON({**body.model_dump(), "reward": reward})


class _Rollout(Body):
    """A rollout of NeMo-Gym with its reward. Other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="allow")

    reward: float = Field(allow_inf_nan=False)
    task: int = Field(default=0, alias="_ng_task_index")


class RolloutsBody(Body):
    """Body of NeMo-Gym's `/aggregate_metrics`: all rollouts of a collection."""

    verify_responses: Listed[_Rollout]


@router.post("/aggregate_metrics", summary="NeMo-Gym: statistics of rollouts", response_model=answers.RolloutMetrics)
async def aggregate_metrics(body: RolloutsBody) -> StrictJSON:
    """Summarise the rewards of rollouts, overall and by task, as NeMo-Gym's agents require after a collection."""
    rewards: dict[int, list[float]] = {}
    for each in body.verify_responses:
        rewards.setdefault(each.task, []).append(each.reward)
    overall = _statistics([reward for group in rewards.values() for reward in group])
    groups = [{"_ng_task_index": task, **_statistics(rewards[task])} for task in sorted(rewards)]
    means = {name: value for name, value in overall.items() if name.startswith("mean/")}
    return StrictJSON({"group_level_metrics": groups, "agent_metrics": overall, "key_metrics": means})


def _statistics(rewards: list[float]) -> dict[str, float]:
    """Return the statistics of NeMo-Gym's `RewardProfiler`; the standard deviation is that of a sample."""
    if not rewards:
        return {}
    found = {"mean": np.mean(rewards), "max": max(rewards), "min": min(rewards), "median": np.median(rewards)}
    found |= {"std": np.std(rewards, ddof=1)} if len(rewards) > 1 else {}
    return {f"{name}/reward": float(value) for name, value in found.items()}


def _turns(items: Any, place: str) -> list[dict[str, Any]]:
    """Convert items of the Responses API to messages."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _invalid(f"`{place}` must be a list of objects")
    turns: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type") or "message"
        if kind == "message":
            turns.append({"role": item.get("role"), "content": _content(item.get("content"), place)})
        elif kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            entry = {"type": "function", "id": item.get("call_id"), "function": call}
            if turns and turns[-1].get("tool_calls"):  # parallel calls belong to one message
                turns[-1]["tool_calls"].append(entry)
            else:
                turns.append({"role": "assistant", "content": "", "tool_calls": [entry]})
        elif kind == "function_call_output":
            content = _content(item.get("output"), place)
            turns.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        elif kind != "reasoning":
            raise _invalid(f"`{place}` has an item of a type that cannot be scored; supported: {', '.join(_KINDS)}")
    return turns


_KINDS = ("message", "function_call", "function_call_output", "reasoning (left out)")
_PARTS = ("input_text", "output_text", "refusal")


def _content(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(
        isinstance(part, dict) and part.get("type") in _PARTS for part in content
    ):
        raise _invalid(f"the content of a message in `{place}` must be text or parts of type {', '.join(_PARTS)}")
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)


def _tool(tool: Any) -> Any:
    """Convert a tool of the Responses API to one of the chat format."""
    if not isinstance(tool, dict) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _invalid(message: str) -> ApiError:
    return ApiError(422, "invalid_body", f"The body does not fit /verify: {message}.")
