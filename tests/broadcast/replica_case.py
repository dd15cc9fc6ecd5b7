# SPDX-License-Identifier: Apache-2.0
"""Inference servers as processes, driven over HTTP by curl or http.client as orchestrators do."""
import http.client
import json
import os
import subprocess
import sys

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
import flow_case  # noqa: E402

WORKERS = 2  # of each server


def by_curl(method, url, body=None, *more):
    """Status and answer."""
    result = subprocess.run(
        ["curl", "-sS", "-m", "60", "-X", method, "-w", "\n%{http_code}", *more, url,
         *(["-d", "@-"] if body is not None else [])],
        input=json.dumps(body) if body is not None else None, capture_output=True, text=True,
        timeout=70, check=False)
    if result.returncode != 0:
        raise ConnectionError(result.stderr)
    text, status = result.stdout.rsplit("\n", 1)
    return int(status), json.loads(text)


def by_client(method, url, body=None):
    address, path = url[len("http://"):].split("/", 1)
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, "/" + path, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class Server:
    """One `weir replica`, and how an orchestrator sees it."""

    def __init__(self, process, rank, ask=by_curl):
        self.process = process
        self.rank = rank
        self.ask = ask
        self.url = "http://" + process.line()["http"]

    def get(self, path):
        return self.ask("GET", self.url + path)

    def post(self, path, body=None):
        return self.ask("POST", self.url + path, body)

    def event(self):
        return self.process.line()


class ReplicaCase(flow_case.FlowCase):
    """Trainers of two ranks for engines of two workers; servers are started by each test."""

    def trainer(self, rank, *more, first=1):
        return super().trainer(rank, "--mesh", "fsdp=2", "--replica-mesh", f"tp={WORKERS}",
                               "--config", self.config, *more, first=first)

    def server(self, rank, *more, ask=by_curl, config=None, model="m"):
        process = self.start("replica", "--http", "127.0.0.1:0", "--tp", str(WORKERS), "--model",
                             model, "--conversion", "fp8_128x128", "--config",
                             config or self.config, "--json", "--threads", "1", *more)
        return Server(process, rank, ask)

    def join_body(self, server, n_servers=2, **more):
        host, port = self.address.rsplit(":", 1)
        return {"host": host, "port": int(port), "server_rank": server.rank,
                "num_inference_server": n_servers, "timeout": 30,
                "quantize_in_weight_transfer": True, **more}

    def join(self, server, n_servers=2, **more):
        first = server.rank * WORKERS + 1
        self.assertEqual(server.post("/init_broadcaster", self.join_body(server, n_servers, **more)),
                         (200, {"ranks": list(range(first, first + WORKERS))}))

    def update(self, server, version):
        """As an orchestrator does it."""
        self.assertEqual(server.post("/pause?mode=keep&clear_cache=false")[0], 200)
        status, said = server.post("/update_weights",
                                   {"weight_dir": f"/runs/broadcasts/step_{version}"})
        self.assertEqual((status, said.get("version")), (200, version), said)
        self.assertEqual(server.post("/resume")[0], 200)
        self.expect_held(server, version)

    def expect_held(self, server, version, paused=False, state="holding"):
        status, said = server.get("/weight_info")
        self.assertEqual(status, 200)
        self.assertEqual((said["state"], said["version"], said["paused"]), (state, version, paused),
                         said)
        self.assertEqual(said["weight_version"], None if version is None else str(version))
        if state == "holding":
            self.assertEqual([worker["version"] for worker in said["workers"]], [version] * WORKERS)

    def expect_refused(self, answer, status, *words):
        self.assertEqual(answer[0], status, answer)
        for word in words:
            self.assertIn(word, answer[1]["error"])
        return answer[1]

    def verify_all(self, server, version):
        """Every worker's live parameters equal an independent conversion."""
        for worker in range(WORKERS):
            self.verify_worker(f"server-{server.rank}-dp0", worker, version)

    def verify_worker(self, name, worker, version, checkpoint=None):
        result = subprocess.run(
            [flow_case.WEIR, "verify", checkpoint or self.checkpoint(version), "--replica", name, "--worker",
             str(worker), "--replica-mesh", f"tp={WORKERS}", "--config", self.config, *self.flow],
            capture_output=True, text=True, timeout=flow_case.WAIT_S, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        said = json.loads(result.stdout)
        self.assertTrue(said["verified"])
        self.assertEqual(said["version"], version)
