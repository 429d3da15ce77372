"""What docker-compose.yml promises, on real containers. Run by `make compose-test`."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from tests.e2e.compose.stack import ROOT, UP_S_MAX, Stack, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from statestream import Client, SentimentUpdate

pytestmark = [pytest.mark.compose, pytest.mark.timeout(UP_S_MAX + 180)]

RULES = ROOT / "deploy" / "prometheus"
CLASSIFY = "/statestream.sentiment.v1.SentimentService/Classify"
STREAMING = "/statestream.sentiment.v1.SentimentService/StreamingClassify"
REVIEW = (
    "At first I thought this would be one more dull sequel, and for ten minutes it is. Then the old man starts to "
    "speak, and what follows is the funniest, saddest hour I have spent in a cinema this year."
)
PIECES = [REVIEW[start : start + 17] for start in range(0, len(REVIEW), 17)]


def told(updates: list[SentimentUpdate]) -> list[tuple[str, float, int, bool]]:
    """What the replies say of the text, whoever gave them."""
    return [(u.sentiment.label, u.sentiment.positive_probability, u.sentiment.word_count, u.final) for u in updates]


def undisturbed(client: Client, pieces: Sequence[str] = PIECES) -> list[tuple[str, float, int, bool]]:
    """The replies to the review when nothing happens."""
    with client.sentiment.stream() as stream:
        return told([*(stream.send(piece) for piece in pieces), stream.end()])


def test_one_client_reaches_every_replica(stack: Stack, client: Client) -> None:
    """Calls of one client, on one connection, are spread: nothing sticks to a replica."""
    replicas = stack.containers("sentiment")
    before = [stack.metric(replica, "statestream_requests_total", method=CLASSIFY, code="OK") for replica in replicas]
    for _ in range(40):
        [result] = client.sentiment.classify([REVIEW])
        assert result.word_count > 0
    after = [stack.metric(replica, "statestream_requests_total", method=CLASSIFY, code="OK") for replica in replicas]

    served = [now - then for now, then in zip(after, before, strict=True)]
    assert len(served) == 2
    assert sum(served) == 40
    assert min(served) >= 4


def test_a_sequence_moves_between_replicas_with_every_call(stack: Stack, client: Client) -> None:
    """Each step over a stream of its own may meet another replica; the replies are those of one stream."""
    replicas = stack.containers("sentiment")
    before = [stack.metric(replica, "statestream_stream_messages_total") for replica in replicas]
    sequence_id = uuid4().hex
    replies: list[SentimentUpdate] = []
    for number, piece in enumerate(PIECES):
        with client.sentiment.stream(sequence_id, resume=number > 0) as stream:
            replies.append(stream.send(piece))
    with client.sentiment.stream(sequence_id, resume=True) as stream:
        replies.append(stream.end())
    after = [stack.metric(replica, "statestream_stream_messages_total") for replica in replicas]

    assert told(replies) == undisturbed(client)
    assert min(now - then for now, then in zip(after, before, strict=True)) > 0


@pytest.mark.parametrize("loss", ["kill --signal KILL", "kill --signal TERM", "pause"])
def test_a_sequence_outlives_its_replica(stack: Stack, client: Client, loss: str) -> None:
    """The replica that serves a stream is killed, drained or hangs in mid-step: the stream goes on, same bits."""
    pieces = PIECES * 40
    expected = undisturbed(client, pieces)
    replicas = stack.containers("sentiment")
    before = {replica: stack.metric(replica, "statestream_stream_messages_total") for replica in replicas}
    with client.sentiment.stream() as stream, ThreadPoolExecutor(1) as sender:
        updates = [stream.send(piece) for piece in pieces[:5]]
        [serving] = [r for r in replicas if stack.metric(r, "statestream_stream_messages_total") == before[r] + 5]
        [other] = [replica for replica in replicas if replica != serving]
        at_other = stack.metric(other, "statestream_stream_messages_total")

        sending = sender.submit(lambda: updates.extend(stream.send(piece) for piece in pieces[5:]))
        wait_until(lambda: len(updates) > 20, "steps are on their way")
        assert len(updates) < len(pieces) / 2, "the replica goes in mid-stream"
        stack.docker(*loss.split(), serving)
        sending.result(timeout=60)
        updates.append(stream.end())

    assert told(updates) == expected
    assert stack.metric(other, "statestream_stream_messages_total") > at_other
    wait_until(
        lambda: stack.healthy("sentiment") == 1, "Prometheus sees, through the gateway, that one replica is left"
    )
    wait_until(lambda: stack.value('count(up{job="sentiment"} == 1)') == 1, "Prometheus sees that one replica is left")
    if loss == "pause":
        stack.docker("unpause", serving)
    else:
        wait_until(lambda: not stack.inspect(serving)["State"]["Running"], "the replica ends")
        assert stack.inspect(serving)["State"]["ExitCode"] == (137 if loss.endswith("KILL") else 0)


def test_a_sequence_outlives_redis(stack: Stack, client: Client) -> None:
    """Redis is killed and comes back with every step that was acknowledged."""
    expected = undisturbed(client)
    [redis] = stack.containers("redis")
    with client.sentiment.stream() as stream:
        replies = [stream.send(piece) for piece in PIECES[:5]]
        stack.docker("kill", redis)
        stack.docker("start", redis)
        replies += [stream.send(piece) for piece in PIECES[5:]]
        replies.append(stream.end())

    assert told(replies) == expected


def test_prometheus_sees_everything(stack: Stack, client: Client) -> None:
    """Every service is scraped, its work shows, and every rule is evaluated without an error."""
    undisturbed(client)
    for job, targets in {"sentiment": 2, "inference": 2, "gateway": 1, "redis": 1, "prometheus": 1}.items():
        wait_until(lambda j=job, n=targets: stack.value(f'count(up{{job="{j}"}} == 1)') == n, f"{job} is scraped")
    wait_until(lambda: stack.value("sum(statestream_stream_messages_total)") > len(PIECES), "steps are counted")
    wait_until(lambda: stack.value("sum(statestream_sequences_started_total)") > 0, "sequences are counted")
    wait_until(
        lambda: stack.value(f'sum(statestream_requests_total{{method="{STREAMING}", code="OK"}})') > 0,
        "calls are counted by method and code",
    )
    assert stack.value('count(statestream_model_info{model="sentiment", job="sentiment"})') == 2
    assert stack.value('count(statestream_model_info{model="sentiment", job="inference"})') == 2
    wait_until(lambda: stack.value("redis_up") == 1, "Redis answers its exporter")
    alerts = (RULES / "rules" / "alerts.yml").read_text()
    for name in sorted(set(re.findall(r"\b(?:redis|envoy)_[a-z_]+", alerts)) - {"envoy_cluster_name"}):
        assert stack.value(f"count({name})") > 0, f"an alert asks for {name}, which nobody tells"

    def rules() -> list[dict[str, str]]:
        return [rule for group in stack.ask_prometheus("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] == "ok" for rule in rules()), "every rule is evaluated")
    assert {rule["name"] for rule in rules()} >= {"TaskUnreachable", "RedisNearlyFull", "RequestsFail"}


def test_the_rules_do_what_their_tests_say(stack: Stack) -> None:
    """The alert and recording rules pass their unit tests, run by the promtool of the image that evaluates them."""
    image = stack.inspect(stack.containers("prometheus")[0])["Config"]["Image"]
    promtool = ("run", "--rm", "--network", "none", "--entrypoint", "promtool", "--volume", f"{RULES}:/rules:ro", image)
    assert "SUCCESS" in stack.docker(*promtool, "test", "rules", "/rules/tests/rules_test.yml")


def test_no_container_has_more_rights_than_it_needs(stack: Stack) -> None:
    """Nobody is root or can become it, no root file system can be written, every container has its limits."""
    containers = stack.containers()
    assert len(containers) == 8
    for container in containers:
        facts = stack.inspect(container)
        name, host = facts["Name"], facts["HostConfig"]
        assert stack.user_id(container) > 0, name
        assert host["ReadonlyRootfs"], name
        assert host["CapDrop"] == ["ALL"], name
        assert any("no-new-privileges" in option for option in host["SecurityOpt"]), name
        assert host["Memory"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"]["max-size"], name


@pytest.mark.parametrize("service", ["sentiment", "inference"])
def test_the_image_holds_what_serves_and_no_more(stack: Stack, service: str) -> None:
    """Neither torch nor onnx nor a test is in the image of a service."""
    [replica, _] = stack.containers(service)
    for package in ("torch", "onnx", "pytest", "tests"):
        answer = stack.refused("exec", replica, "python", "-c", f"import {package}")
        assert f"No module named '{package}'" in answer


def test_redis_is_reached_by_the_services_alone(stack: Stack) -> None:
    """No port of Redis is published, the gateway does not reach it, and without the password it answers nobody."""
    [redis], [gateway] = stack.containers("redis"), stack.containers("gateway")
    assert not any(stack.inspect(redis)["NetworkSettings"]["Ports"].values())
    stack.refused("exec", gateway, "bash", "-c", "exec 3<>/dev/tcp/redis/6379")
    [address] = {network["IPAddress"] for network in stack.inspect(redis)["NetworkSettings"]["Networks"].values()}
    stack.refused("exec", gateway, "timeout", "2", "bash", "-c", f"exec 3<>/dev/tcp/{address}/6379")
    assert "NOAUTH" in stack.docker("exec", redis, "redis-cli", "get", "any")


def test_only_the_gateway_and_prometheus_are_published(stack: Stack) -> None:
    """Both on loopback; everything else is inside."""
    published: dict[str, set[str]] = {}
    for container in stack.containers():
        facts = stack.inspect(container)
        bound = [at for ports in facts["NetworkSettings"]["Ports"].values() for at in ports or ()]
        if bound:
            published[facts["Config"]["Labels"]["com.docker.compose.service"]] = {at["HostIp"] for at in bound}
    assert published == {"gateway": {"127.0.0.1"}, "prometheus": {"127.0.0.1"}}


def test_the_password_is_told_to_nobody(stack: Stack) -> None:
    """The password of Redis stands in no setting that the engine shows, and in no log."""
    [redis] = stack.containers("redis")
    password = stack.docker("exec", redis, "cat", "/run/statestream/redis_password")
    assert len(password) >= 40
    for container in stack.containers(every=True):
        assert password not in json.dumps(stack.inspect(container))
    assert password not in stack.compose("logs")
