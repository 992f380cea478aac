"""Does the task API lose anything under load, while its workers are killed?

    python benchmarks/load.py                             # 200 tasks, 20 clients, 6 kills
    python benchmarks/load.py --tasks 20 --clients 5 --kills 2

`latentsync serve` with the demo model on the loopback; a photo and 0.4 s of speech, uploaded once,
and one step each: the queue is measured, not the network. Each client submits a task with a
webhook, asks for its result until it has ended, and goes on to the next. Meanwhile worker processes
that have a task are killed with SIGKILL, one after the other, evenly over the run. Then everything
is counted: tasks, outputs, deliveries.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
from sqlalchemy import select

from latentsync.service.keys import Keys
from latentsync.service.settings import MODEL_PATH
from latentsync.service.tables import ENDED, Database, Task

ROOT = Path(__file__).resolve().parent.parent
POLL_SECONDS = 0.5
VOICE_SECONDS = 0.4  # 10 frames
DEADLINE = 60.0  # s a task may take, at most, all in all


class Hooks(ThreadingHTTPServer):
    """Counts what it is told of each task."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        told = self.told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                told[json.loads(body)["id"]] += 1
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def memory(pid: int) -> float:
    """MiB that the process holds."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if "VmRSS" in line) / 1024


def serve(folder: Path, workers: int) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentsync", "serve", "--port", str(port), "--model", "demo"]
    options = ["--data", str(folder), "--weights", str(ROOT / "weights"), "--device", "cpu"]
    limits = ["--workers", str(workers), "--lease-seconds", "5", "--private-addresses"]
    with (folder / "serve.log").open("wb") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(
            [*command, *options, *limits], stdout=log, stderr=log, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            httpx.get(f"{url}/health")
        except httpx.TransportError:
            assert server.poll() is None, (folder / "serve.log").read_text()
            time.sleep(0.1)
        else:
            return server, url


def upload(client: httpx.Client, name: str, content: bytes) -> str:
    asked = {"filename": name, "size": len(content)}
    ticket = client.post("/api/v3/media/uploads", json=asked).raise_for_status().json()["data"]
    httpx.request(**ticket["upload"], content=content).raise_for_status()
    address: str = ticket["download_url"]
    return address


def inputs(client: httpx.Client, folder: Path) -> dict[str, object]:
    path = folder / "voice.wav"
    with wave.open(str(ROOT / "examples/speech.wav")) as whole, wave.open(str(path), "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(whole.readframes(round(whole.getframerate() * VOICE_SECONDS)))
    photo = (ROOT / "examples/photo.png").read_bytes()
    video, audio = (
        upload(client, "photo.png", photo), upload(client, "voice.wav", path.read_bytes())
    )  # fmt: skip
    return {"video": video, "audio": audio, "steps": 1}


class Load:
    """Clients that submit and ask, and what they saw."""

    def __init__(self, client: httpx.Client, asked: dict[str, object], hook: str) -> None:
        self.client, self.asked, self.hook = client, asked, hook
        self.submits: list[float] = []  # s
        self.looks: list[float] = []  # s
        self.waits: list[float] = []  # s from submitting to the end
        self.ended: dict[str, dict[str, object]] = {}

    def one(self, number: int) -> None:
        began = time.perf_counter()
        answer = self.client.post(
            f"/api/v3/{MODEL_PATH}", params={"webhook": self.hook},
            json=self.asked | {"seed": number + 1}, headers={"Idempotency-Key": str(number)},
        ).raise_for_status()  # fmt: skip
        self.submits.append(time.perf_counter() - began)
        address = answer.json()["data"]["urls"]["get"]
        while True:
            look = time.perf_counter()
            data = self.client.get(address).raise_for_status().json()["data"]
            self.looks.append(time.perf_counter() - look)
            if data["status"] in ENDED:
                break
            time.sleep(POLL_SECONDS)
        self.waits.append(time.perf_counter() - began)
        self.ended[data["id"]] = data


def kill_workers(database: Database, kills: int, load: Load, tasks: int) -> list[int]:
    """Kill whoever has a task, each time so many more have ended; their numbers."""
    killed: list[int] = []
    while len(killed) < kills and len(load.ended) < tasks:
        time.sleep(0.1)
        if len(load.ended) < (len(killed) + 1) * tasks // (kills + 1):
            continue
        with database.reading() as session:
            worker = session.scalar(select(Task.worker).where(Task.status == "processing").limit(1))
        if worker and (pid := int(worker.rsplit(":")[-1])) not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


def line(name: str, seconds: list[float]) -> str:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return f"| {name} | {len(seconds)} | {p50:.0f} | {p95:.0f} | {1000 * max(seconds):.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="latentsync-load-") as name:
        folder, hooks = Path(name), Hooks()
        server, url = serve(folder, given.workers)
        database = Database(f"sqlite:///{folder / 'tasks.db'}")
        try:
            _, shown = Keys(database).create("load", per_minute=10**6, at_once=10**6)
            client = httpx.Client(
                base_url=url, headers={"Authorization": f"Bearer {shown}"}, timeout=60,
                limits=httpx.Limits(max_connections=given.clients),
            )  # fmt: skip
            hook = f"http://127.0.0.1:{hooks.server_port}/"
            load = Load(client, inputs(client, folder), hook)
            measure(given, server, database, load, hooks, folder)
        finally:
            database.close()
            server.terminate()
            server.wait()


def measure(
    given: argparse.Namespace, server: subprocess.Popen[bytes], database: Database, load: Load,
    hooks: Hooks, folder: Path,
) -> None:  # fmt: skip
    load.one(-1)  # so that the model is loaded, and the server has seen everything once
    for seen in (load.submits, load.looks, load.waits, load.ended):
        seen.clear()
    sizes = [memory(server.pid)]
    began = time.perf_counter()
    killer = ThreadPoolExecutor(1).submit(kill_workers, database, given.kills, load, given.tasks)
    with ThreadPoolExecutor(given.clients) as clients:
        running = [clients.submit(load.one, number) for number in range(given.tasks)]
        while not all(one.done() for one in running):
            time.sleep(1)
            sizes.append(memory(server.pid))
            assert time.perf_counter() - began < DEADLINE * given.tasks, "it doesn't end"
    for one in running:
        one.result()
    seconds = time.perf_counter() - began
    while sum(hooks.told.values()) < given.tasks + 1:
        time.sleep(0.2)
    time.sleep(6)  # whatever were delivered twice would be by now; the sweeper has been once more
    killed = killer.result()
    statuses = Counter(str(data["status"]) for data in load.ended.values())
    with database.reading() as session:
        rows = session.scalars(select(Task)).all()
    stored = sum(1 for path in (folder / "files").rglob("*.mp4") if path.is_file())
    again = sum(row.fence > 1 for row in rows)
    changed = sum(
        load.client.get(f"/api/v3/predictions/{name}/result").json()["data"]["timings"]
        != data["timings"]
        for name, data in load.ended.items()
    )
    print(f"{given.tasks} tasks, {given.clients} clients, {given.workers} workers, {seconds:.0f} s")
    print(f"ended: {dict(statuses)}; rows {len(rows)} and outputs {stored}, with the first task")
    print(f"workers killed {len(killed)}; tasks begun again {again}; ended twice {changed}")
    print(f"webhooks: {len(hooks.told)} told, {sum(n > 1 for n in hooks.told.values())} twice")
    print("\n| request | number | p50, ms | p95, ms | max, ms |\n| --- | --- | --- | --- | --- |")
    print(line("submit", load.submits))
    print(line("result", load.looks))
    print(line("from submit to the end", load.waits))
    third = max(1, len(sizes) // 3)
    print(f"\nmemory of the server: {sizes[0]:.0f} MiB before; mean of the first third of the run "
          f"{np.mean(sizes[1 : third + 1]):.0f}, of the last {np.mean(sizes[-third:]):.0f}, "
          f"peak {max(sizes):.0f}")  # fmt: skip
    assert statuses == {"completed": given.tasks}, "some were lost, or failed"
    assert stored == len(rows) == len(hooks.told) == given.tasks + 1, "delivered twice, or not"
    assert changed == 0


if __name__ == "__main__":
    main()
