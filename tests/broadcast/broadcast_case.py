# SPDX-License-Identifier: Apache-2.0
"""A whole run as processes: trainer ranks, an orchestrator, inference servers, one
configuration."""
import json
import os
import socket
import subprocess
import sys
import time

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
import flow_case  # noqa: E402
from replica_case import Server  # noqa: E402

WORKERS = 2  # of each server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_until(process, event, **wanted):
    """The next line of that event (and members), however many others come before."""
    until = time.monotonic() + flow_case.WAIT_S
    while time.monotonic() < until:
        said = process.line()
        assert said is not None, f"{process.arguments} has ended: {process.wait()}"
        if said["event"] == event and all(said.get(k) == v for k, v in wanted.items()):
            return said
    raise AssertionError(f"{process.arguments} has not said {event} {wanted}, but: {said}")


class BroadcastCase(flow_case.FlowCase):
    kernel_mode = True
    n_workers = WORKERS
    timeout = 20
    window = 0  # bytes of each trainer rank; 0: the default

    def setUp(self):
        super().setUp()
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.flow[1] = self.address

    def write_config(self, urls, policy="abort", timeout=None, marker_dir=None):
        path = os.path.join(self.folder, "run.yaml")
        markers = f"  marker_dir: {marker_dir}\n" if marker_dir else ""
        with open(path, "w", encoding="ascii") as file:
            file.write(f"""
model: {{name: m}}
deployment: {{num_infer_gpus: {self.n_workers * len(urls)}}}
weight_broadcast:
  type: nccl
  transport: ucx
  port: {self.port}
  timeout: {timeout or self.timeout}
  quantize_in_weight_transfer: {"true" if self.kernel_mode else "false"}
{markers}inference:
  model: {{path: {self.checkpoint(1)}}}
  conversion: fp8_128x128
  tp: {self.n_workers}
trainer:
  model: {{impl: custom}}
  weight_broadcast: {{host: 127.0.0.1, window_bytes: {self.window}}}
orchestrator:
  servers: {json.dumps(urls)}
  server_policy: {policy}
  weight_broadcast: {{host: 127.0.0.1}}
""")
        return path

    def replica_server(self, rank, *more, http="127.0.0.1:0", model="m", config=None):
        process = self.start("replica", "--http", http, "--tp", str(self.n_workers), "--model", model,
                             "--conversion", "fp8_128x128", "--config",
                             config or self.config, "--json", "--threads", "1", *more)
        return Server(process, rank)

    def servers(self, n=2):
        return [self.replica_server(rank) for rank in range(n)]

    def broadcast(self, config, rank, *more, first=1):
        return self.start("broadcast", config, "--follow", "--version", str(first), "--rank",
                          str(rank), "--ranks", "2", "--mesh", "fsdp=2", "--json", "--threads", "1",
                          *more)

    def broadcasts(self, config, *more, first=1):
        return [self.broadcast(config, rank, *more, first=first) for rank in range(2)]

    def orchestrate(self, config, *more):
        return self.start("orchestrate", config, "--json", *more)

    def send(self, trainers, version):
        """SRC of a version is one of a few."""
        for trainer in trainers:
            trainer.send(self.checkpoint(1 + (version - 1) % self.versions))

    def expect_served(self, orchestrator, version):
        said = read_until(orchestrator, "served")
        self.assertEqual(said["version"], version)
        return said

    def expect_holds(self, server, version, paused=False):
        said = server.get("/weight_info")[1]
        self.assertEqual((said["version"], said["paused"]), (version, paused), said)

    def begin_verification(self, server, worker, version):
        mesh = ("--replica-mesh", f"tp={self.n_workers}") if self.n_workers > 1 else ()
        return subprocess.Popen(
            [flow_case.WEIR, "verify", self.checkpoint(1 + (version - 1) % self.versions),
             "--replica", f"server-{server.rank}-dp0", "--worker", str(worker), *mesh,
             "--config", self.config, "--threads", "1", *self.flow],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def verify_servers(self, servers, version):
        """All workers at once: each is a process of its own, and most of it is its start."""
        begun = [self.begin_verification(server, worker, version)
                 for server in servers for worker in range(self.n_workers)]
        try:
            for process in begun:
                said, errors = process.communicate(timeout=flow_case.WAIT_S)
                self.assertEqual(process.returncode, 0, errors)
                said = json.loads(said)
                self.assertTrue(said["verified"])
                self.assertEqual(said["version"], version)
        finally:
            for process in begun:
                process.kill()
                process.communicate()
