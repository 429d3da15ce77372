"""`statestream health`. Imports little, since container probes run it every few seconds.

It takes about 0.2 s of one core, half of it for starting Python and importing gRPC; with the server's modules it would
take four times as long.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import grpc
from grpc_health.v1 import health_pb2

from services.cli.address import address_option

if TYPE_CHECKING:
    _Check = grpc.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


@click.command(name="health", short_help="Ask a server whether it serves; for probes.")
@address_option
@click.option("--service", default="", metavar="NAME", help="Full name of one gRPC service; default: the whole server.")
@click.option("--timeout", "timeout_s", default=2.0, show_default=True, metavar="S", help="Seconds to wait.")
def command(address: str, service: str, timeout_s: float) -> None:
    """Ask a server whether it serves; for probes.

    Prints what it says. Exit status 0 if it serves, else 1.
    """
    answer = ask(address, service, timeout_s)
    click.echo(answer)
    sys.exit(answer != "SERVING")


def ask(address: str, service: str = "", timeout_s: float = 2.0) -> str:
    """What the health service says, "SERVING" or else; the gRPC code where it does not answer."""
    with grpc.insecure_channel(address) as channel:
        check: _Check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            # A gateway with several services behind it cannot see in the path which one is meant.
            named = (("statestream-service", service),) if service else None
            response = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s, metadata=named)
        except grpc.RpcError as error:
            return error.code().name if isinstance(error, grpc.Call) else "UNKNOWN"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
