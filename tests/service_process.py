"""The task API as processes: `latentsync serve` and `work`, and a real PostgreSQL."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "examples/photo.png"
SPEECH = ROOT / "examples/speech.wav"
COMMAND = (sys.executable, "-m", "latentsync")
DEMO = ("--model", "demo", "--device", "cpu", "--weights", str(ROOT / "weights"))

# In a process of its own: it warns while it is imported, and stops its server at exit.
POSTGRES = """
import pgserver, sys
server = pgserver.get_server(sys.argv[1])
print(server.get_uri(), flush=True)
sys.stdin.read()
server.cleanup()
"""

Found = TypeVar("Found")


def eventually(what: Callable[[], Found], seconds: float = 240.0) -> Found:
    """The first true answer of `what`; fails when none comes in time."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return answer


def voice(path: Path, seconds: float) -> Path:
    """The beginning of the example's sentence."""
    with wave.open(str(SPEECH)) as whole, wave.open(str(path), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(round(whole.getframerate() * seconds)))
    return path


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody has asked yet doesn't."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()[:200]
    except FileNotFoundError:
        return False


class Process:
    """A command of ours that goes on until it is stopped; its words are in `log`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / f"{arguments[0]}-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "--verbose", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, how: int = signal.SIGTERM) -> int:
        """The exit code."""
        self.process.send_signal(how)
        return self.process.wait(60)


class Server(Process):
    """`latentsync serve` on a free port, that answers; its data in `folder`/data."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        self.port, self.url, self.data = port, f"http://127.0.0.1:{port}", folder / "data"
        data = ("--data", str(self.data), "--lease-seconds", "2")
        super().__init__(folder, "serve", "--port", str(port), *data, *DEMO, *options)
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False


class Postgres:
    """A server in `folder`; to call it makes an empty database of that name and gives its URL."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Let it run; also again, with all that it held."""
        command = [sys.executable, "-W", "ignore", "-c", POSTGRES, f"{self._folder}/data"]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout
        # By its socket: nothing of it can be reached over a network.
        uri = self._server.stdout.readline().strip()
        self._uri = uri.replace("postgresql:", "postgresql+psycopg:")

    def __call__(self, name: str) -> str:
        from sqlalchemy import create_engine

        engine = create_engine(self._uri, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        engine.dispose()
        return self._uri.replace("/postgres?", f"/{name}?")

    def stop(self) -> None:
        """End it, and every connection to it."""
        self._server.communicate("")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for a test."""
    with tempfile.TemporaryDirectory(prefix="latentsync-pg-") as folder:
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.stop()
