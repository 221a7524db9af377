"""The documentation of the server: complete, true, behind the token, and without other hosts."""

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from browser import CHROMIUM, opened
from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from running_servers import running
from serving_scorers import asked, error_of

from hf_reward.scoring.reward_scorer import RewardScorer
from hf_reward.scoring.serving.protocols.answers import ErrorAnswer
from hf_reward.scoring.serving.routes import ROUTERS

CHAT = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Water."}]
_VERIFIED = {"responses_create_params": {"input": "a"}, "response": {"output": [{"role": "assistant", "content": "b"}]}}
_CHOICE = {"type": "choice", "instructions": "b", "criteria": {"x": "c", "y": None}}
_DECISION = {"type": "choice", "instructions": "b", "choices": [{"value": True}, {"value": "c"}]}
BODIES: list[tuple[str, Any]] = [
    ("/score", {"prompt": "a", "response": "b"}),
    ("/score", {"items": [{"messages": CHAT}]}),
    ("/score", {"text_1": "a", "text_2": "b"}),
    ("/rank", {"prompt": "a", "responses": ["b"]}),
    ("/rank", {"items": [{"prompt": "a", "responses": ["b"]}]}),
    ("/get_reward", {"query": ["a"]}),
    ("/remote_rm", {"prompt": "a", "response": "b"}),
    ("/seed_session", None),
    ("/verify", _VERIFIED),
    ("/aggregate_metrics", {"verify_responses": [{"_ng_task_index": 1, "reward": 0.5}]}),
    ("/classify", {"input": "a"}),
    ("/pooling", {"input": "a"}),
    ("/v1/score", {"text_1": "a", "text_2": "b"}),
    ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("/rerank", {"query": "a", "documents": ["b"]}),
    ("/rerank", {"query": "a", "texts": ["b"], "return_text": True}),
    ("/v1/rerank", {"query": "a", "documents": ["b"], "return_documents": False}),
    ("/v2/rerank", {"query": "a", "documents": ["b"]}),
    ("/predict", {"inputs": "a"}),
    ("/predict", {"inputs": [["a"], ["b", "c"]]}),
    ("/v1/systemone", {"state": "a", "questions": {"q": _CHOICE}}),
    ("/v1/decisions", {"input": "a", "questions": [_DECISION]}),
]
ROUTES = {route.path: route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}


@pytest.fixture
def scorer(make_scorer: Any) -> RewardScorer:
    made = make_scorer(max_length=508)
    made.record.calibration = {"temperature": 1.0}
    return made


def test_answers_have_the_documented_form(scorer):
    assert {path for path, _ in BODIES} == {path for path, route in ROUTES.items() if "POST" in route.methods}

    async def test(client: httpx2.AsyncClient) -> None:
        for path, body in BODIES:
            answer = await client.post(path, json=body)
            assert answer.status_code == 200, answer.text
            TypeAdapter(ROUTES[path].response_model).validate_json(answer.content)
        for path in ("/health", "/v1/models"):
            TypeAdapter(ROUTES[path].response_model).validate_json((await client.get(path)).content)
        for path, body in (("/score", {}), ("/score", {"prompt": "a", "response": " "}), ("/nothing", {})):
            ErrorAnswer.model_validate_json((await client.post(path, json=body)).content)

    asked(scorer, test)


def test_every_endpoint_is_documented_with_its_schemas(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        found = (await client.get("/openapi.json")).json()
        assert set(found["paths"]) == set(ROUTES) - {"/docs"}
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                assert operation["description"], path
                assert operation["tags"], path
                (media,) = operation["responses"]["200"]["content"].values()
                assert media["schema"], path
                for status in ("4XX", "5XX"):
                    error = operation["responses"][status]["content"]["application/json"]["schema"]
                    assert error == {"$ref": "#/components/schemas/ErrorAnswer"}
                if method == "post" and path != "/seed_session":
                    assert operation["requestBody"]["content"]["application/json"]["schema"], path
        named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(found)))
        assert named <= set(found["components"]["schemas"])
        for name, schema in found["components"]["schemas"].items():
            assert schema.get("description"), name  # what a reader sees first
        assert not re.search(r"HTTPValidationError", json.dumps(found))

    asked(scorer, test)


def test_the_page_refers_to_no_other_host(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        answer = await client.get("/docs")
        assert not re.findall(r"(?:https?:)?//[\w.-]+", answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "https" not in answer.headers["content-security-policy"]
        loaded = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert {"docs/assets/swagger-ui-bundle.js", "docs/assets/swagger-ui.css"} < set(loaded)
        assert "url: 'openapi.json'" in answer.text
        assert '"validatorUrl": "none"' in answer.text  # its default is on another host
        for address in loaded:
            assert address.startswith(("docs/", "data:")), address
            if not address.startswith("data:"):
                assert (await client.get(f"/{address}")).status_code == 200

    asked(scorer, test)


def test_browsers_send_the_token_as_a_password(scorer):
    def basic(words: str) -> dict[str, str]:
        return {"Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}

    async def test(client: httpx2.AsyncClient) -> None:
        for path in ("/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
            answer = await client.get(path)
            error_of(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith("Basic ")
            for wrong in (basic("me:wrong"), basic("secret"), {"Authorization": "Basic ?"}, basic("secret:")):
                error_of(await client.get(path, headers=wrong), 401, "unauthorized")
            for right in (basic("me:secret"), basic(":secret"), {"Authorization": "Bearer secret"}):
                assert (await client.get(path, headers=right)).status_code == 200
        for path in ("/metrics", "/v1/models"):  # other paths take no password, which browsers send by themselves
            error_of(await client.get(path, headers=basic("me:secret")), 401, "unauthorized")
        found = (await client.get("/openapi.json", headers=basic("me:secret"))).json()
        assert found["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"

    asked(scorer, test, token="secret")


@pytest.mark.slow  # 15 seconds
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(scorer, tmp_path):
    with running(scorer) as url, opened(tmp_path / "profile") as browser:
        browser.open(f"{url}/docs", width=1200, theme="light")
        for _ in range(100):
            if browser.ask("document.querySelectorAll('.opblock').length") >= len(ROUTES) - 1:
                break
            time.sleep(0.1)
        paths = browser.ask("[...document.querySelectorAll('.opblock-summary-path')].map(each => each.dataset.path)")
        assert set(paths) == set(ROUTES) - {"/docs"}
        assert {address for address in browser.requests() if not address.startswith((url, "data:"))} == set()
        assert browser.complaints() == []
        browser.shoot(Path(tmp_path / "docs.png"))
        assert (tmp_path / "docs.png").stat().st_size > 10_000
