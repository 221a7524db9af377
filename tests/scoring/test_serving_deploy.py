"""The files in docs/deploy: they parse, and agree with the server, the command and the package."""

import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx2
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running_servers import free_port, running
from serving_scorers import asked

from hf_reward.cli.serving import serve
from hf_reward.evaluation.monitoring.served_run import run_monitors
from hf_reward.scoring.serving.limits import OPEN_PATHS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
OPTIONS = {f"--{name.replace('_', '-')}" for name in inspect.signature(serve).parameters}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, with continued lines joined and without comments."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def given(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def queries() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_every_metric_of_the_dashboard_exists(scorer):
    async def test(client: httpx2.AsyncClient) -> None:
        await client.post("/score", json={"prompt": "a", "response": "b"})
        await client.post("/score?run=grpo-1", json={"prompt": "a", "responses": ["b", "c d", "e"] * 2})
        await client.post("/score", json={})
        families = list(text_string_to_metric_families((await client.get("/metrics")).text))
        labels: dict[str, set[str]] = {}
        for sample in (sample for family in families for sample in family.samples):
            labels.setdefault(sample.name, {"instance", "job"}).update(sample.labels)
        asked_for = queries()
        assert len(asked_for) >= 20
        shown = set()
        for query in asked_for:
            names = re.findall(r"hf_reward_\w+", query)
            assert names, query
            for name in names:
                assert name in labels, query
            shown |= set(names)
            known = set.intersection(*(labels[name] for name in names))
            for part in re.findall(r"\{([^}]*)\}", query) + re.findall(r"by \(([^)]*)\)", query):
                for label in re.findall(r"(?:^|,)\s*(\w+)", part):
                    assert label in known, (query, label)
        # Nothing of the server is missing, apart from parts of histograms and times of creation.
        counted = {name for name in labels if name.startswith("hf_reward_") and not name.endswith("_created")}
        whole = {re.sub(r"_(bucket|sum|count)$", "", name) for name in counted}
        assert whole == {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}

    asked(scorer, test, run_monitors(2))


def test_the_panels_fill_the_grid_without_overlap():
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used == variables


def test_the_image_has_what_the_package_needs():
    found = instructions()
    copied = [word for name, rest in found if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    assert all((ROOT / each).exists() for each in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = [*wheel["packages"], *wheel["force-include"], project["project"]["readme"]]
    needed += project["project"]["license-files"]
    for each in needed:
        assert any(each == one or each.startswith(f"{one}/") for one in copied), each
    assert "serve" in project["project"]["optional-dependencies"]
    assert any("'.[serve]'" in rest for _, rest in found)


def test_the_container_runs_the_command_as_another_user():
    found = dict(instructions())
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["USER"])  # a number, so that Kubernetes can check it
    command = json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"])
    assert command[:2] == ["hf-reward", "serve"]
    assert {word for word in command if word.startswith("--")} <= OPTIONS
    assert command[command.index("--port") + 1] == found["EXPOSE"] == "8000"


def test_the_health_check_of_the_container(scorer):
    (check,) = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    command = json.loads(check.partition("CMD")[2])
    assert command[0] == "python"
    (path,) = OPEN_PATHS
    assert f":8000{path}'" in command[2]
    with running(scorer, token="secret") as url:
        for address, code in ((url, 0), (f"http://127.0.0.1:{free_port()}", 1)):
            program = command[2].replace("http://127.0.0.1:8000", address)
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
            assert done.returncode == code


def test_the_services_fit_together():
    compose = given("compose.yaml")
    server, prometheus, grafana = (compose["services"][name] for name in ("server", "prometheus", "grafana"))
    assert {word for word in server["command"] if word.startswith("--")} <= OPTIONS
    (model,) = server["volumes"]
    assert (model["target"], model["read_only"]) == ("/model", True)
    assert server["command"][server["command"].index("--model") + 1] == model["target"]
    for service in (server, prometheus, grafana):
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    mounted = [volume.split(":") for service in (prometheus, grafana) for volume in service["volumes"]]
    assert all((DEPLOY / source).is_file() for source, *_ in mounted if source.startswith("./"))
    assert {source for source, *_ in mounted if not source.startswith("./")} == set(compose["volumes"])
    (job,) = given("prometheus.yml")["scrape_configs"]
    token = "/run/secrets/token"
    assert job["authorization"]["credentials_file"] == token
    assert server["command"][server["command"].index("--token-file") + 1] == token
    assert server["secrets"] == prometheus["secrets"] == list(compose["secrets"]) == ["token"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    (source,) = given("grafana-datasource.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = given("grafana-dashboards.yaml")["providers"]
    assert any(target.startswith(provider["options"]["path"]) for _, target, *_ in mounted)
