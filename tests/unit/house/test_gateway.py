"""Where the gateway sends each call, and which it may repeat."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.unit.house.tree import ROOT, task_names

_LISTENER, *_ = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())["static_resources"]["listeners"]
CONNECTIONS: dict[str, Any] = _LISTENER["filter_chains"][0]["filters"][0]["typed_config"]
HOST: dict[str, Any] = CONNECTIONS["route_config"]["virtual_hosts"][0]
UNAPPLIED = {"connect-failure", "refused-stream", "reset-before-request"}

MAY_HAVE_BEEN_APPLIED = {
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/inference.GRPCInferenceService/RepositoryModelLoad",
    "/inference.GRPCInferenceService/RepositoryModelUnload",
    "/statestream.inference.v1.InferenceService/StreamingInfer",
    "/statestream.sentiment.v1.SentimentService/StreamingClassify",
}


def methods() -> set[str]:
    """Path of every method in the protos."""
    paths: set[str] = set()
    for proto in (ROOT / "protos").rglob("*.proto"):
        text = proto.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        for service, body in re.findall(r"^service (\w+) *\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            assert package
            paths |= {f"/{package[1]}.{service}/{method}" for method in re.findall(r"^ *rpc (\w+)", body, re.MULTILINE)}
    return paths


def fits(match: dict[str, Any], path: str, metadata: dict[str, str]) -> bool:
    """Whether a call of a path with some metadata is one that a route is for, as Envoy has it."""
    for header in match.get("headers", ()):
        if not metadata.get(header["name"], "").startswith(header["string_match"]["prefix"]):
            return False
    if "safe_regex" in match:
        return re.fullmatch(match["safe_regex"]["regex"], path) is not None
    return path == match["path"] if "path" in match else path.startswith(match["prefix"])


def route(path: str, **metadata: str) -> dict[str, Any]:
    """Where a call goes."""
    names = {name.replace("_", "-"): value for name, value in metadata.items()}
    return next(entry["route"] for entry in HOST["routes"] if fits(entry["match"], path, names))


def test_every_method_goes_to_who_serves_it() -> None:
    """Each call of a task goes to that task; what all services have goes to the one that has every model."""
    assert len(methods()) > 20
    for path in methods():
        package = path.removeprefix("/").removeprefix("statestream.").partition(".")[0]
        expected = package if package in task_names() else "inference"
        assert route(path)["cluster"] == expected, path
        assert route(path)["timeout"] == "0s", path


def test_nothing_that_may_have_been_applied_is_repeated() -> None:
    """After a break only calls are repeated that change nothing when they come twice; steps are left to the client."""
    assert set(HOST["retry_policy"]["retry_on"].split(",")) == UNAPPLIED
    assert methods() > MAY_HAVE_BEEN_APPLIED
    for path in methods():
        policy = route(path).get("retry_policy", HOST["retry_policy"])
        repeated = set(policy["retry_on"].split(",")) - UNAPPLIED
        assert bool(repeated) == (path not in MAY_HAVE_BEEN_APPLIED), path


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.reflection.v1alpha.ServerReflection/X"])
def test_who_asks_for_a_task_is_told_of_it(path: str) -> None:
    """Health and reflection go to the task that the metadata names, without it to inference."""
    for task in task_names():
        assert route(path, statestream_service=f"statestream.{task}.v1.Any")["cluster"] == task
    assert route(path, statestream_service="inference.GRPCInferenceService")["cluster"] == "inference"
    assert route(path)["cluster"] == "inference"


def test_metadata_of_tritons_clients_passes() -> None:
    """They say `triton_grpc_error`; a proxy may take headers with underscores amiss."""
    assert CONNECTIONS["common_http_protocol_options"]["headers_with_underscores_action"] == "ALLOW"
