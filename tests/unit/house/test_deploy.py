"""What stands in several files of the deployment agrees, and every container is held as tightly as the next."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from services.runtime.config import Settings
from tests.unit.house.tree import ROOT, task_names

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ENVOY: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "envoy" / "envoy.yaml").read_text())["static_resources"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
DOCKERFILE = (ROOT / "deploy" / "docker" / "service.Dockerfile").read_text()
# No shell and no client of any kind is in its image: Prometheus sees whether it answers.
NO_HEALTH_CHECK = {"redis-exporter", "credentials"}


def port(setting: str) -> int:
    """The port that the image of a service sets."""
    found = re.search(rf"\b{setting}=0\.0\.0\.0:(\d+)", DOCKERFILE)
    assert found, setting
    return int(found[1])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_container_is_held(name: str) -> None:
    """No root, no capability, no writable root, limits on memory and processes, a bound on logs, a health check."""
    service = SERVICES[name]
    assert service["user"].split(":")[0] not in {"root", "0"}
    assert service["read_only"]
    assert service["init"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"memory", "pids"}
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert ("healthcheck" in service) == (name not in NO_HEALTH_CHECK)
    assert service["restart"] == ("no" if name == "credentials" else "unless-stopped")


def test_only_loopback_is_published() -> None:
    """What listens on the host does so on loopback, unless the operator says otherwise."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"gateway", "prometheus"}
    for ports in published.values():
        assert all(re.fullmatch(r"\$\{\w+:-127\.0\.0\.1:\d+\}:\d+", entry) for entry in ports)


def test_images_are_named_with_their_version() -> None:
    """No image floats, and what others build stands in one place."""
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2].rstrip("}")
        assert tag, name
        assert "latest" not in tag, name
    assert f"PYTHON_IMAGE={_default(SERVICES[task_names()[0]]['build']['args']['PYTHON_IMAGE'])}" in DOCKERFILE


def _default(variable: str) -> str:
    found = re.fullmatch(r"\$\{\w+:-([^}]+)\}", variable)
    assert found, variable
    return found[1]


@pytest.mark.parametrize("task", task_names())
def test_a_task_is_wired_alike_everywhere(task: str) -> None:
    """Compose, Envoy and Prometheus name the task as its folder is named, and mean the ports of its image."""
    service = SERVICES[task]
    assert service["build"]["args"]["SERVICE"] == task
    assert service["image"].startswith(f"statestream-{task}:")
    assert service["deploy"]["replicas"] >= 2
    assert f"127.0.0.1:{port('STATESTREAM_LISTEN')}" in service["healthcheck"]["test"]

    [cluster] = [cluster for cluster in ENVOY["clusters"] if cluster["name"] == task]
    [host] = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert host["endpoint"]["address"]["socket_address"] == {
        "address": task,
        "port_value": port("STATESTREAM_LISTEN"),
    }
    [job] = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == task]
    [discovery] = job["dns_sd_configs"]
    assert discovery["names"] == [task]
    assert discovery["port"] == port("STATESTREAM_METRICS_LISTEN")


@pytest.mark.parametrize("task", task_names())
def test_the_settings_of_a_task_can_be_used(task: str) -> None:
    """Every line of its environment is a setting and a value that the server takes; stopping leaves time to drain."""
    lines = [
        line
        for name in SERVICES[task]["env_file"]
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    named = dict(line.split("=", 1) for line in lines)
    assert len(named) == len(lines), "a setting stands twice"
    given = {
        name.removeprefix("STATESTREAM_").removesuffix("_FILE").lower(): "redis://x"
        if name.endswith("_FILE")
        else value
        for name, value in named.items()
    }
    settings = Settings(**given)  # pyright: ignore[reportArgumentType] - text, as the environment gives it
    assert settings.store == "redis"
    assert settings.drain_s < int(SERVICES[task]["stop_grace_period"].removesuffix("s"))
    circuit = next(cluster for cluster in ENVOY["clusters"] if cluster["name"] == task)["circuit_breakers"]
    assert circuit["thresholds"][0]["max_requests"] >= 2 * settings.streams_max


def test_the_folder_of_models_is_followed() -> None:
    """What inference serves besides its image's artefacts is the folder that compose mounts, unwritable, and polled."""
    [folder] = [volume for volume in SERVICES["inference"]["volumes"] if volume["type"] == "bind"]
    assert folder["read_only"]
    assert not folder["bind"]["create_host_path"]
    lines = (ROOT / "deploy" / "env" / "inference.env").read_text().splitlines()
    assert "STATESTREAM_MODEL_CONTROL_MODE=poll" in lines
    [shipped] = re.findall(r"\bSTATESTREAM_ARTEFACTS=(\S+)", DOCKERFILE)
    assert f"STATESTREAM_ARTEFACTS={shipped}:{folder['target']}" in lines


def test_everything_is_scraped() -> None:
    """Prometheus has a job for each service that runs on."""
    jobs = {job["job_name"] for job in PROMETHEUS["scrape_configs"]}
    assert jobs == set(SERVICES) - {"credentials", "redis-exporter"}
