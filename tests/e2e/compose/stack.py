"""The containers of docker-compose.yml under a name of their own, on free ports, for tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[3]
PROJECT = "statestream-test"
UP_S_MAX = 420
COMMAND_S_MAX = 120
ASKED_AT_LEAST = 50
READ_METRICS = """
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:9464/metrics", timeout=5).read().decode())
"""


def wait_until(holds: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Asks until it holds; fails, naming `what`, when it does not in time."""
    until, asked = time.monotonic() + seconds, 0
    pause = threading.Event()
    while not holds():
        asked += 1
        # On a machine that stood still meanwhile the time is up although nobody has looked.
        assert time.monotonic() < until or asked < ASKED_AT_LEAST, f"not within {seconds:g} s: {what}"
        pause.wait(0.2)


def free_address() -> str:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Stack:
    """What `docker compose up` starts. `models` is the folder of models of the user's own."""

    def __init__(self) -> None:
        self.gateway = free_address()
        self.prometheus = free_address()
        # The containers read it as another user.
        self._folder = tempfile.TemporaryDirectory(prefix="statestream-models-")
        self.models = Path(self._folder.name)
        self.models.chmod(0o755)
        self._environment = os.environ | {
            "GATEWAY_ADDRESS": self.gateway,
            "PROMETHEUS_ADDRESS": self.prometheus,
            "STATESTREAM_VERSION": "test",
            "MODELS": str(self.models),
        }

    def compose(self, *arguments: str, seconds: float = COMMAND_S_MAX) -> str:
        """Output of `docker compose ...`; fails with its errors."""
        return self._run("docker", "compose", "--project-name", PROJECT, *arguments, seconds=seconds)

    def docker(self, *arguments: str) -> str:
        """Output of `docker ...`; fails with its errors."""
        return self._run("docker", *arguments, seconds=COMMAND_S_MAX)

    def refused(self, *arguments: str) -> str:
        """Errors of a `docker ...` that must fail."""
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=COMMAND_S_MAX, check=False
        )
        assert done.returncode != 0, f"must not work: docker {' '.join(arguments)}"
        return done.stdout + done.stderr

    def _run(self, *command: str, seconds: float) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def up(self, *options: str) -> None:
        """Starts what does not run, and waits until all is healthy."""
        try:
            self.compose("up", "--detach", "--wait", *options, seconds=UP_S_MAX)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '30')}") from None

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self.compose("down", "--volumes", "--timeout", "5")
        self._folder.cleanup()

    def containers(self, service: str = "", *, every: bool = False) -> list[str]:
        """Ids of the running containers of a service, or of all; with `every`, of those that have exited too."""
        told = self.compose("ps", "--quiet", *(["--all"] if every else []), *([service] if service else []))
        return sorted(told.split())

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        return json.loads(self.docker("inspect", container))[0]

    def user_id(self, container: str) -> int:
        """Who the first process of a container runs as."""
        lines = self.docker("top", container, "-eo", "uid,pid").splitlines()
        assert len(lines) > 1, "no process in the container"
        return min(int(line.split()[0]) for line in lines[1:])

    def metric(self, container: str, name: str, **labels: str) -> float:
        """Sum of a metric over its series that have these labels, as a replica tells it itself."""
        text = self.docker("exec", container, "python", "-c", READ_METRICS)
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def ask_prometheus(self, path: str, **query: str) -> Any:
        """The `data` of an answer of Prometheus' API."""
        url = f"http://{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            answer = json.load(response)
        assert answer["status"] == "success"
        return answer["data"]

    def healthy(self, service: str) -> float:
        """Replicas of a service that the gateway sends calls to, as Prometheus has heard last."""
        return self.value(f'envoy_cluster_membership_healthy{{envoy_cluster_name="{service}"}}')

    def value(self, expression: str) -> float:
        """Value of an expression that gives one number; 0 where it gives none."""
        found = self.ask_prometheus("query", query=expression)["result"]
        assert len(found) <= 1, f"more than one series: {expression}"
        return float(found[0]["value"][1]) if found else 0.0
