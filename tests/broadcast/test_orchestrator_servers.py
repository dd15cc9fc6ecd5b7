# SPDX-License-Identifier: Apache-2.0
"""An orchestrator and servers that misbehave: stand-ins of the HTTP calls, versions by marker
files."""
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
import flow_case  # noqa: E402
from broadcast_case import read_until  # noqa: E402

TIMEOUT_S = 2


class StandIn:
    """A server of one worker, that answers as `answers` say: (method and path) -> function of it,
    which returns status and body, or None to go on as a good one would."""

    def __init__(self, version=None):
        self.version = version
        self.reverts = True  # else it does not know the call
        self.before = []  # what it can go back to
        self.paused = False
        self.joined = False
        self.run = ""
        self.answers = {}
        self.calls = []
        self.was_mixed = False  # resumed on what is no whole version
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                stand_in.handle(self, "GET")

            def do_POST(self):
                stand_in.handle(self, "POST")

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def handle(self, handler, method):
        path = handler.path.split("?")[0]
        n_bytes = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(n_bytes) or b"{}")
        with self.lock:
            self.calls.append((path, body))
        answer = self.answers.get(path)
        said = answer(self) if answer else None
        if said is None:
            said = self.obey(path, body)
        status, text = said
        data = text if isinstance(text, bytes) else json.dumps(text).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            pass

    def obey(self, path, body):
        if path == "/init_broadcaster":
            self.joined, self.run = True, body["session_id"]
            return 200, {"ranks": [body["server_rank"] + 1]}
        if path == "/pause":
            self.paused = True
            return 200, {"paused": True}
        if path == "/update_weights":
            if not self.joined:
                return 409, {"error": "not joined"}
            self.before = [self.version]
            self.version = body["version"]
            return 200, {"version": self.version}
        if path == "/resume":
            self.paused = False
            return 200, {"paused": False}
        if path == "/revert":
            if not self.reverts:
                return 404, {"error": "there is no /revert here"}
            if not self.before:
                return 409, {"error": "there is nothing to go back to"}
            self.version = self.before.pop()
            return 200, {"version": self.version}
        return 200, {"version": self.version, "paused": self.paused, "joined": self.joined,
                     "run": self.run, "state": "empty" if self.version is None else "holding"}

    def paths(self):
        """However often it was looked at in between."""
        with self.lock:
            return [path for path, _ in itertools.groupby(path for path, _ in self.calls)]

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def sleep(_):
    time.sleep(4 * TIMEOUT_S)
    return 500, {}


class OrchestratorCase(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-orchestrate-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.markers = os.path.join(self.folder, "broadcasts")
        self.servers = [StandIn(6) for _ in range(3)]
        for server in self.servers:
            self.addCleanup(server.close)

    def config(self, policy="abort", urls=None, timeout=TIMEOUT_S):
        path = os.path.join(self.folder, "run.yaml")
        with open(path, "w", encoding="ascii") as file:
            file.write(f"""
model: {{name: m}}
deployment: {{num_infer_gpus: 8}}
weight_broadcast:
  {{type: nccl, transport: ucx, timeout: {timeout}, marker_dir: {self.markers}}}
inference: {{tp: 1}}
orchestrator:
  servers: {json.dumps(urls or [server.url for server in self.servers])}
  server_policy: {policy}
""")
        return path

    def orchestrate(self, *more, **config):
        process = flow_case.Process("orchestrate", self.config(**config), "--json", *more)
        self.addCleanup(process.end)
        return process

    def announce(self, version):
        step = os.path.join(self.markers, f"step_{version}")
        os.makedirs(step)
        open(os.path.join(step, "STABLE"), "w", encoding="ascii").close()

    def one_step(self, policy="abort", **answers):
        """Server 1 answers as told, once all have joined. How it ended, and after how long."""
        orchestrator = self.orchestrate("--steps", "1", policy=policy)
        read_until(orchestrator, "joined")
        self.servers[1].answers = {"/" + name: answer for name, answer in answers.items()}
        self.announce(7)
        begun = time.monotonic()
        while True:
            said = orchestrator.line()
            if said["event"] in ("failed", "served"):
                return said, time.monotonic() - begun

    def expect(self, version, paused, *indexes):
        for i in indexes:
            server = self.servers[i]
            self.assertEqual((server.version, server.paused), (version, paused), f"server {i}")

    def expect_aborted(self, said, *words):
        self.assertEqual(said["event"], "failed", said)
        self.assertIn("version 7 is not installed, the run is on version 6", said["error"])
        for word in (self.servers[1].url, *words):
            self.assertIn(word, said["error"])
        self.expect(6, False, 0, 2)


class WhenAllIsWell(OrchestratorCase):
    def test_every_version_is_paused_for_installed_looked_at_and_resumed(self):
        orchestrator = self.orchestrate("--steps", "3")
        read_until(orchestrator, "joined")
        for version in (7, 8, 11):
            self.announce(version)
            said = read_until(orchestrator, "served")
            self.assertEqual((said["version"], said["updated"]), (version, 3))
            self.assertTrue(os.path.exists(f"{self.markers}/step_{version}/NCCL_READY"))
        self.assertEqual(orchestrator.wait()[0], 0)
        self.expect(11, False, 0, 1, 2)
        step = ["/weight_info", "/pause", "/update_weights", "/weight_info", "/resume"]
        for i, server in enumerate(self.servers):
            self.assertEqual(server.paths(), ["/weight_info", "/init_broadcaster"] + 3 * step)
            joined, updated = [next(body for path, body in server.calls if path == wanted)
                               for wanted in ("/init_broadcaster", "/update_weights")]
            self.assertEqual((joined["server_rank"], joined["num_inference_server"]), (i, 3))
            self.assertEqual(updated["weight_dir"], f"{self.markers}/step_7")

    def test_a_step_directory_that_is_deleted_is_no_failure(self):
        self.servers[1].answers = {"/pause": lambda _: shutil.rmtree(self.markers)}
        orchestrator = self.orchestrate("--steps", "1")
        read_until(orchestrator, "joined")
        self.announce(7)
        self.assertEqual(read_until(orchestrator, "served")["version"], 7)
        code, error = orchestrator.wait()
        self.assertEqual(code, 0)
        self.assertIn("its directory was deleted", error)

    def test_a_server_without_init_broadcaster_is_left_out_with_a_warning(self):
        for path in ("/init_broadcaster", "/weight_info"):
            self.servers[1].answers[path] = lambda _: (404, {})
        orchestrator = self.orchestrate("--steps", "1")
        read_until(orchestrator, "joined")
        self.announce(7)
        said = read_until(orchestrator, "served")
        self.assertEqual((said["updated"], said["dropped"]), (2, 1))
        self.assertEqual(said["servers"][1]["state"], "dropped")
        self.expect(7, False, 0, 2)
        self.assertIn("left out", orchestrator.wait()[1])
        self.assertNotIn("/pause", self.servers[1].paths())

    def test_sigterm_ends_the_wait_for_a_version_at_once(self):
        orchestrator = self.orchestrate(timeout=60)
        read_until(orchestrator, "joined")
        begun = time.monotonic()
        orchestrator.signal(signal.SIGTERM)
        self.assertEqual(orchestrator.wait(10)[0], 0)
        self.assertLess(time.monotonic() - begun, 2)

    def test_sigterm_lets_a_version_be_seen_through(self):
        orchestrator = self.orchestrate()
        read_until(orchestrator, "joined")

        def stop(_):
            orchestrator.signal(signal.SIGTERM)
            time.sleep(0.3)

        self.servers[1].answers = {"/update_weights": stop}
        self.announce(7)
        self.assertEqual(read_until(orchestrator, "served")["version"], 7)
        self.assertEqual(orchestrator.wait(10)[0], 0)
        self.expect(7, False, 0, 1, 2)


class WhenOneServerFails(OrchestratorCase):
    def test_one_that_is_dead_costs_the_others_no_pause(self):
        orchestrator = self.orchestrate("--steps", "1")
        read_until(orchestrator, "joined")
        self.servers[1].close()
        self.announce(7)
        said = read_until(orchestrator, "failed")
        self.expect_aborted(said, "GET /weight_info", "cannot be reached")
        self.assertNotIn("/pause", self.servers[0].paths())
        self.assertEqual(orchestrator.wait()[0], 1)
        self.servers[1] = StandIn()  # for the cleanup

    def test_each_call_that_fails_brings_all_back(self):
        garbled = (200, b"<html>502 Bad Gateway</html>")
        for name, answer, *words in (
                ("pause", lambda _: (500, {"error": "the engine is stuck"}), "POST /pause",
                 "HTTP 500: the engine is stuck"),
                ("update_weights", lambda _: (500, {"error": "worker 0: digest differs"}),
                 "POST /update_weights of version 7", "digest differs"),
                ("weight_info", lambda _: garbled, "GET /weight_info", "says no version"),
                ("weight_info", lambda _: (200, b"x" * 300000), "more than 262144 bytes"),
                ("update_weights", lambda _: (200, {"version": 7}),
                 "said OK, and holds version 6")):
            with self.subTest(name, words=words):
                self.setUp()
                said, seconds = self.one_step(**{name: answer})
                self.expect_aborted(said, *words)
                self.assertLess(seconds, TIMEOUT_S)
                if name != "weight_info":
                    self.expect(6, False, 1)

    def test_one_that_is_slow_ends_within_the_bound_and_stays_paused(self):
        said, seconds = self.one_step(update_weights=sleep)
        self.expect_aborted(said, "POST /update_weights", "no answer within 3.5 s")
        self.assertLess(seconds, 2.5 * TIMEOUT_S)
        self.expect(6, True, 1)  # it may install it yet
        self.assertEqual(said["servers"][1]["state"], "unknown")

    def test_one_that_cannot_pause_in_time_is_named(self):
        said, seconds = self.one_step(pause=sleep)
        self.expect_aborted(said, "POST /pause", "no answer within 1.0 s")
        self.assertLess(seconds, 2 * TIMEOUT_S)

    def test_workers_of_different_versions_are_never_resumed(self):
        def mixed(server):
            if server.version != 7:
                return None
            return 200, {"version": 7, "state": "holding", "paused": server.paused, "joined": True,
                         "run": "default", "workers": [{"version": 7}, {"version": 6}]}

        said, _ = self.one_step(weight_info=mixed)
        self.expect_aborted(said, "said OK, and holds no whole version")
        self.assertEqual(said["servers"][1]["state"], "broken")
        self.assertTrue(self.servers[1].paused)

    def test_those_that_took_it_go_back_by_themselves(self):
        for policy in ("abort", "wait"):
            with self.subTest(policy):
                self.setUp()
                said, _ = self.one_step(policy, update_weights=lambda _: (500, {"error": "no"}))
                self.expect_aborted(said, "POST /update_weights of version 7: HTTP 500: no")
                self.assertNotIn("paused:", said["error"])
                for i in (0, 2):
                    self.assertEqual(self.servers[i].paths().count("/update_weights"), 1)
                    self.assertEqual(self.servers[i].paths().count("/revert"), 1)
                self.assertNotIn("/revert", self.servers[1].paths())
                self.doCleanups()

    def test_the_first_version_is_taken_back_by_all(self):
        for server in self.servers:
            server.version = None
        said, _ = self.one_step(update_weights=lambda _: (500, {"error": "no"}))
        self.assertIn("the run is on what it came with", said["error"])
        self.assertIn(self.servers[1].url, said["error"])
        self.assertNotIn("paused:", said["error"])
        self.expect(None, False, 0, 1, 2)

    def test_one_that_does_not_know_the_way_back_is_told_the_old_version(self):
        self.servers[0].reverts = False
        said, _ = self.one_step(update_weights=lambda _: (500, {"error": "no"}))
        self.expect_aborted(said)
        self.assertEqual(self.servers[0].paths().count("/update_weights"), 2)

    def test_one_that_may_still_go_back_stays_paused(self):
        self.servers[0].answers = {"/revert": sleep}
        said, seconds = self.one_step(update_weights=lambda _: (500, {"error": "no"}))
        self.assertIn(f"server {self.servers[0].url}: POST /revert: no answer", said["error"])
        self.assertLess(seconds, 3 * TIMEOUT_S)
        self.assertTrue(self.servers[0].paused)
        self.expect(6, False, 1, 2)

    def test_a_version_that_cannot_be_taken_back_stays_paused_and_is_named(self):
        def once(server):
            if server.version == 7:
                return 500, {"error": "version 6 is gone"}
            return None

        self.servers[0].reverts = False
        self.servers[0].answers = {"/update_weights": once}
        said, _ = self.one_step(update_weights=lambda _: (500, {"error": "no"}))
        self.assertIn(f"paused: {self.servers[0].url} (holds version 7)", said["error"])
        self.expect(7, True, 0)
        self.expect(6, False, 1, 2)

    def test_drop_goes_on_without_it_and_takes_it_up_again(self):
        orchestrator = self.orchestrate("--steps", "2", policy="drop")
        read_until(orchestrator, "joined")
        self.servers[1].answers = {"/update_weights": lambda _: (500, {"error": "no"})}
        self.announce(7)
        said = read_until(orchestrator, "served")
        self.assertEqual((said["updated"], said["dropped"]), (2, 1))
        self.expect(7, False, 0, 2)
        self.expect(6, True, 1)
        self.servers[1].answers = {}
        self.announce(8)
        said = read_until(orchestrator, "served")
        self.assertEqual((said["updated"], said["dropped"]), (3, 0))
        self.expect(8, False, 0, 1, 2)
        self.assertEqual(self.servers[1].paths().count("/init_broadcaster"), 2)

    def test_drop_does_not_wait_for_one_that_is_frozen(self):
        orchestrator = self.orchestrate("--steps", "2", policy="drop", timeout=60)
        read_until(orchestrator, "joined")
        thawed = threading.Event()
        self.addCleanup(thawed.set)
        self.servers[1].answers = dict.fromkeys(("/update_weights", "/weight_info"),
                                                lambda _: thawed.wait(60) and None)
        begun = time.monotonic()
        self.announce(7)
        said = read_until(orchestrator, "served")
        self.assertEqual((said["updated"], said["dropped"]), (2, 1))
        self.assertLess(time.monotonic() - begun, 10)
        self.assertIn("the others have been through", said["servers"][1]["error"])
        self.expect(7, False, 0, 2)
        thawed.set()
        self.announce(8)
        said = read_until(orchestrator, "served")
        self.assertEqual((said["updated"], said["dropped"]), (3, 0))

    def test_wait_tries_again_until_it_is_well(self):
        failures = [500, 500, 503]
        said, _ = self.one_step(
            "wait", update_weights=lambda _: (failures.pop(), {}) if failures else None)
        self.assertEqual((said["event"], said["updated"]), ("served", 3))
        self.expect(7, False, 0, 1, 2)

    def test_wait_aborts_when_the_time_is_up(self):
        said, seconds = self.one_step("wait", update_weights=lambda _: (500, {"error": "never"}))
        self.expect_aborted(said, "HTTP 500: never")
        self.assertLess(seconds, 2.5 * TIMEOUT_S)
        self.expect(6, False, 1)

    def test_one_that_was_started_again_joins_anew(self):
        orchestrator = self.orchestrate("--steps", "2")
        read_until(orchestrator, "joined")
        self.announce(7)
        read_until(orchestrator, "served")
        again = self.servers[1]
        again.version, again.joined, again.run = None, False, ""
        self.announce(8)
        self.assertEqual(read_until(orchestrator, "served")["updated"], 3)
        self.expect(8, False, 0, 1, 2)
        self.assertEqual(again.paths().count("/init_broadcaster"), 2)


class BetweenVersions(OrchestratorCase):
    def watch(self):
        orchestrator = self.orchestrate(timeout=60)
        read_until(orchestrator, "joined")
        self.announce(7)
        read_until(orchestrator, "served")
        return orchestrator

    def test_one_that_is_gone_is_said_and_once(self):
        orchestrator = self.watch()
        self.servers[1].close()
        begun = time.monotonic()
        said = read_until(orchestrator, "server", server=self.servers[1].url, step="look")
        self.assertLess(time.monotonic() - begun, 2.5)
        self.assertEqual(said["state"], "unknown")
        self.assertIn("cannot be reached", said["error"])
        self.announce(8)
        said = orchestrator.line()  # nothing more of it until then
        self.assertEqual((said["event"], said["step"]), ("server", "look"))
        self.servers[1] = StandIn()  # for the cleanup

    def test_one_that_serves_something_else_is_paused_and_taken_in_again(self):
        orchestrator = self.watch()
        again = self.servers[1]
        with again.lock:
            again.version, again.joined, again.run, again.paused = None, False, "", False
        begun = time.monotonic()
        said = read_until(orchestrator, "server", server=again.url, step="pause")
        self.assertLess(time.monotonic() - begun, 2.5)
        self.assertEqual((said["state"], said["version"]), ("paused", None))
        self.assertIn("was started anew", said["error"])
        self.assertIn("the run is on version 7", said["error"])
        self.assertTrue(again.paused)
        self.expect(7, False, 0, 2)
        self.announce(8)
        self.assertEqual(read_until(orchestrator, "served")["updated"], 3)
        self.expect(8, False, 0, 1, 2)

    def test_one_that_is_frozen_holds_nobody_up(self):
        orchestrator = self.watch()
        thawed = threading.Event()
        self.addCleanup(thawed.set)
        self.servers[1].answers = {"/weight_info": lambda _: thawed.wait(60) and None}
        said = read_until(orchestrator, "server", server=self.servers[1].url, step="look")
        self.assertEqual(said["state"], "unknown")
        self.assertIn("no answer within 1.0 s", said["error"])
        thawed.set()
        said = read_until(orchestrator, "server", server=self.servers[1].url, step="look")
        self.assertEqual((said["state"], said["error"]), ("serving", ""))


class AFleetThatWasLeftPaused(OrchestratorCase):
    def leave(self, *versions):
        for server, version in zip(self.servers, versions):
            server.version, server.paused = version, True

    def test_on_one_version_it_runs_again_before_another_one_comes(self):
        self.leave(6, 6, 6)
        orchestrator = self.orchestrate(timeout=60)
        said = read_until(orchestrator, "joined")
        self.assertEqual({server["state"] for server in said["servers"]}, {"serving"})
        self.expect(6, False, 0, 1, 2)

    def test_without_a_trainer_it_runs_again_and_that_is_said(self):
        self.leave(6, 6, 6)
        for server in self.servers:
            server.answers = {"/init_broadcaster": lambda _: (504, {"error": "no trainer"})}
        orchestrator = self.orchestrate("--keep-going")
        said = read_until(orchestrator, "failed")
        self.expect(6, False, 0, 1, 2)
        self.assertIn("HTTP 504: no trainer", said["error"])
        self.assertIn("all that were asked hold version 6, so these run again", said["error"])
        for server in self.servers:
            server.answers = {}
        read_until(orchestrator, "joined")  # it has gone on trying

    def test_mixed_it_stays_paused(self):
        self.leave(6, 7, 6)
        read_until(self.orchestrate(timeout=60), "joined")
        self.expect(6, True, 0, 2)
        self.expect(7, True, 1)


class BeforeItBegins(OrchestratorCase):
    def test_servers_that_cannot_be_reached_are_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            process = self.orchestrate(urls=[self.servers[0].url, url])
            code, error = process.wait()
        self.assertEqual(code, 1)
        self.assertIn(f"not all servers take part: server {url}", error)

    def test_no_version_in_time_is_an_error_that_says_where(self):
        process = self.orchestrate(timeout=1)
        code, error = process.wait(10)
        self.assertEqual(code, 1)
        self.assertIn("no version after 6 can be had within 1.0 s", error)
        self.assertIn(self.markers, error)


if __name__ == "__main__":
    unittest.main(verbosity=2)
