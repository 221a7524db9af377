"""Protocols of RL trainers: OpenRLHF's `/get_reward`, slime's `remote_rm` and NeMo-Gym's `/verify`.

Bodies and answers are those of OpenRLHF 0.11.0 (openrlhf/utils/agent.py, cli/serve_rm.py), slime 0.3.1
(slime/rollout/rm_hub/__init__.py, utils/data.py) and NeMo-Gym 0.5.1 (nemo_gym/base_resources_server.py,
responses_api_agents/simple_agent/app.py).

OpenRLHF and slime send text that the policy decoded. It ends with the end-of-turn token, or without it if the response
was cut, but not with the white space after it that a chat template prints. `FormattedTexts` restores the end.
A system prompt that a policy's template adds is part of such a text, so policy and reward model need the same template.
"""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict

from hf_reward.data.score_request import ScoreRequest
from hf_reward.scoring.serving.errors import ApiError, StrictJSON
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

router = APIRouter()


class OpenRlhfBody(Body):
    """Body of OpenRLHF's `/get_reward`. `query` holds prompts with responses, formatted by the policy."""

    query: Listed[str] | str
    prompts: Anything = None
    labels: Anything = None


@router.post("/get_reward")
async def get_reward(body: OpenRlhfBody, request: Request) -> StrictJSON:
    """Answer OpenRLHF's trainer, which optimises `rewards`, filters by `scores` and logs `extra_logs`."""
    given = [body.query] if isinstance(body.query, str) else body.query
    texts = [service_of(request).texts.finished(text) for text in given]
    scored = await score(request, requests_of_texts(texts))
    # The trainer sends one text per request and makes a tensor of each entry of `extra_logs`.
    logs = {"reward_model_tokens": scored.row_tokens}
    return StrictJSON({"rewards": scored.rewards, "scores": scored.rewards, "extra_logs": logs})


class SlimeBody(Body):
    """Body of slime's `remote_rm`. With `--apply-chat-template`, the prompt is formatted."""

    prompt: str | Messages
    response: str
    label: Anything = None


@router.post("/remote_rm")
async def remote_rm(body: SlimeBody, request: Request) -> StrictJSON:
    """Answer slime (`--rm-type remote_rm`), which takes the JSON of the answer as the reward: one number."""
    texts, prompt = service_of(request).texts, body.prompt
    if isinstance(prompt, str) and texts.is_formatted_prompt(prompt):
        requests = requests_of_texts([texts.finished(prompt + body.response)])
    else:
        requests = requests_of_pairs([(prompt, body.response)])
    return StrictJSON((await score(request, requests)).rewards[0])


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


@router.post("/seed_session")
async def seed_session() -> StrictJSON:
    """Answer NeMo-Gym's agents before a rollout; rewards need no state."""
    return StrictJSON({})


@router.post("/verify")
async def verify(body: VerifyBody, request: Request) -> StrictJSON:
    """Return the body with `reward`, as NeMo-Gym's agents require."""
    (reward,) = (await score(request, body.requests())).rewards
    return StrictJSON({**body.model_dump(), "reward": reward})


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
