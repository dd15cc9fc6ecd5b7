# SPDX-License-Identifier: Apache-2.0
"""Inference servers as real processes, driven by curl and http.client: what they hold when all is
well, and when a trainer or a server is killed, stalls, or is of another model."""
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from replica_case import SOURCE, WORKERS, ReplicaCase, by_client, by_curl
import flow_case


class WhenAllIsWell(ReplicaCase):
    def test_two_servers_of_two_workers_take_three_versions(self):
        trainers = self.trainers()
        servers = [self.server(0, "--dump", os.path.join(self.folder, "dump")),
                   self.server(1, ask=by_client)]
        self.publish(trainers, 1)
        self.join(servers[0])
        self.join(servers[0])  # again: the same, and nothing is done
        body = self.join_body(servers[1], rank_offset=2, inference_world_size=4)
        del body["server_rank"], body["num_inference_server"]
        self.assertEqual(servers[1].post("/init_broadcaster", body), (200, {"ranks": [3, 4]}))
        for version in (1, 2, 3):
            if version > 1:
                self.publish(trainers, version)
            for server in servers:
                self.update(server, version)
                self.verify_all(server, version)
        for version in (1, 2, 3):
            for worker in range(WORKERS):
                path = os.path.join(self.folder, "dump", f"v{version}.worker{worker}.safetensors")
                self.assertTrue(os.path.exists(path), path)
        events = [servers[0].event()["event"] for _ in range(10)]
        self.assertEqual(events, ["joined"] + 3 * ["paused", "updated", "resumed"])

    def test_a_checkpoint_travels_where_the_flag_is_not_set(self):
        trainers = self.trainers("--wire", "checkpoint")
        servers = [self.server(0), self.server(1, ask=by_client)]
        self.publish(trainers, 1)
        for server in servers:
            self.join(server, quantize_in_weight_transfer=False)
        for version in (1, 2):
            if version > 1:
                self.publish(trainers, version)
            for server in servers:
                self.update(server, version)
                self.verify_all(server, version)
                self.assertEqual(server.get("/weight_info")[1]["mode"], "checkpoint")
        self.join(servers[0], quantize_in_weight_transfer=True)  # the trainer does not convert
        self.publish(trainers, 3)
        self.expect_refused(servers[0].post("/update_weights", {"version": 3}), 500,
                            "server-0, worker", "trainer rank")
        self.expect_held(servers[0], 2)

    def test_a_server_goes_back_without_its_trainer(self):
        trainers = self.trainers()
        server = self.server(0)
        self.publish(trainers, 1)
        self.join(server, 1)
        self.expect_refused(server.post("/revert"), 409, "nothing to go back to")
        self.update(server, 1)
        self.publish(trainers, 2)
        self.update(server, 2)
        for trainer in trainers:
            trainer.signal(signal.SIGKILL)
        self.assertEqual(server.post("/revert", {"timeout": 5}),
                         (200, {"version": 1, "state": "holding", "paused": False}))
        self.expect_held(server, 1)
        self.verify_all(server, 1)
        self.expect_refused(server.post("/revert"), 409, "nothing to go back to")

    def test_curl_sends_long_bodies_and_chunks(self):
        self.publish(self.trainers(), 1)
        server = self.server(0)
        body = self.join_body(server, 1, padding="x" * 3000)
        more = ("-H", "Expect: 100-continue")
        self.assertEqual(by_curl("POST", server.url + "/init_broadcaster", body, *more),
                         (200, {"ranks": [1, 2]}))
        status, said = by_curl("POST", server.url + "/update_weights", {}, "-H",
                               "Transfer-Encoding: chunked")
        self.assertEqual((status, said["version"]), (200, 1))
        body["padding"] = "x" * 100000
        self.expect_refused(by_curl("POST", server.url + "/init_broadcaster", body), 413, "too long")

    def test_sigterm_ends_a_server_that_waits_at_once(self):
        self.publish(self.trainers(), 1)
        server = self.server(0)
        self.join(server, 1)
        answers = []

        def ask():
            try:
                answers.append(server.post("/update_weights", {"version": 9, "timeout": 50}))
            except ConnectionError:
                answers.append(None)

        asking = threading.Thread(target=ask)
        asking.start()
        self.until(lambda: server.get("/weight_info")[1]["updating"])
        begun = time.monotonic()
        server.process.signal(signal.SIGTERM)
        self.assertEqual(server.process.wait(10)[0], 0)
        self.assertLess(time.monotonic() - begun, 5)
        asking.join()
        if answers[0] is not None:
            self.expect_refused(answers[0], 503, "the server is closing")

    def test_a_port_that_is_taken_is_named(self):
        server = self.server(0)
        address = server.url[len("http://"):]
        second = self.start("replica", "--http", address, "--config", self.config)
        code, error = second.wait()
        self.assertEqual(code, 1)
        self.assertIn(address, error)
        self.assertIn("in use", error)


class WhenSomethingFails(ReplicaCase):
    def test_a_trainer_that_is_silent_is_named_and_given_up_in_time(self):
        server = self.server(0)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            port = silent.getsockname()[1]
            begun = time.monotonic()
            self.expect_refused(server.post("/init_broadcaster",
                                            self.join_body(server, port=port, timeout=1)),
                                504, f"the trainer's directory at 127.0.0.1:{port} has not answered "
                                "within 1.0 s")
            self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(server.post("/pause")[0], 200)

    def test_servers_of_another_model_are_named_and_the_others_go_on(self):
        subprocess.run([flow_case.WEIR, "synth", "--family", "llama", "--preset", "tiny", "-o",
                        self.folder + "/llama"], check=True, capture_output=True, timeout=60)
        trainers = self.trainers()
        self.publish(trainers, 1)
        good, other_name = self.server(0), self.server(1, model="other")
        other_shape = self.server(1, config=self.folder + "/llama/config.json")
        self.join(good)
        self.expect_refused(other_name.post("/init_broadcaster",
                                            self.join_body(other_name, timeout=0.5)),
                            504, "no trainer of model 'other'", "it has one of 'm'")
        self.join(other_shape)
        said = self.expect_refused(other_shape.post("/update_weights", {"version": 1}), 500,
                                   "server-1, worker")
        self.assertEqual((said["state"], said["version"]), ("empty", None))
        self.assertEqual(other_shape.post("/resume")[0], 200)  # its own parameters are untouched
        self.update(good, 1)
        self.verify_all(good, 1)

    def test_a_trainer_that_is_gone_leaves_the_old_version(self):
        trainers = self.trainers()
        server = self.server(0)
        self.publish(trainers, 1)
        self.join(server, 1)
        self.update(server, 1)
        for trainer in trainers:
            trainer.signal(signal.SIGKILL)
        begun = time.monotonic()
        self.expect_refused(server.post("/update_weights", {"version": 2, "timeout": 1}), 504,
                            "server-0", "version 2 of model 'm' did not come within 1.0 s")
        self.assertLess(time.monotonic() - begun, 3)
        self.expect_held(server, 1)
        self.verify_all(server, 1)
        self.directory.signal(signal.SIGKILL)
        begun = time.monotonic()
        self.expect_refused(server.post("/update_weights", {"version": 2, "timeout": 1}), 504,
                            self.address)
        self.assertLess(time.monotonic() - begun, 3)
        self.expect_held(server, 1)
        self.assertEqual(server.get("/health")[0], 200)

    def test_a_rank_that_another_server_has_is_refused(self):
        self.publish(self.trainers(), 1)
        first, second = self.server(0), self.server(0)
        self.join(first)
        self.update(first, 1)
        self.expect_refused(second.post("/init_broadcaster", self.join_body(second)), 409,
                            "server-0, worker", "is running already")
        self.assertEqual(second.get("/weight_info")[1]["mode"], None)
        second.rank = 1
        self.join(second)
        for server in (first, second):
            self.update(server, 1)
            self.verify_all(server, 1)

    def test_one_that_cannot_join_another_run_is_in_its_own_still(self):
        trainers = self.trainers()
        self.publish(trainers, 1)
        first, second = self.server(0), self.server(1)
        self.join(first)
        self.update(first, 1)
        self.join(second)
        self.update(second, 1)
        wrong = self.join_body(second)
        wrong["server_rank"] = 0
        self.expect_refused(second.post("/init_broadcaster", wrong), 409, "is running already")
        wrong = self.join_body(second, port=1, timeout=0.5)
        self.assertEqual(second.post("/init_broadcaster", wrong)[0], 504)
        self.assertTrue(second.get("/weight_info")[1]["joined"])
        self.join(second)
        self.publish(trainers, 2)
        self.update(second, 2)
        self.verify_all(second, 2)

    def test_a_version_made_anew_under_its_number_is_taken_again(self):
        trainers = self.trainers()
        server = self.server(0)
        self.publish(trainers, 1)
        self.join(server, 1)
        self.update(server, 1)
        for trainer in trainers:
            trainer.signal(signal.SIGKILL)
            trainer.process.wait()
        trainers = self.trainers()  # from the start, with other weights
        for trainer in trainers:
            trainer.send(self.checkpoint(2))
        for trainer in trainers:
            self.assertEqual(trainer.line()["version"], 1)
        self.update(server, 1)
        for worker in range(WORKERS):
            self.verify_worker("server-0-dp0", worker, 1, self.checkpoint(2))

    def test_a_server_killed_at_each_stop_is_replaced_and_the_other_goes_on(self):
        trainers = self.trainers()
        steady = self.server(0)
        self.publish(trainers, 1)
        self.publish(trainers, 2)
        self.join(steady)
        self.update(steady, 1)
        for stop in ("discover", "transfer", "install", "postprocess", "ack"):
            doomed = self.server(1, "--die-at", f"{stop}:2")
            self.join(doomed)
            self.update(doomed, 1)
            with self.assertRaises(ConnectionError):
                doomed.post("/update_weights", {"version": 2})
            self.assertEqual(doomed.process.wait()[0], -signal.SIGKILL)
        again = self.server(1)
        self.join(again)
        for server in (steady, again):
            self.update(server, 2)
            self.verify_all(server, 2)
        for trainer in trainers:  # they would wait for the leases of those that were killed
            trainer.signal(signal.SIGKILL)

    def corrupt(self, version):
        """One byte of what rank 1 has published."""
        path, = glob.glob(f"{self.folder}/*/v{version:08d}*rank-1*.safetensors")
        with open(path, "r+b") as stream:
            stream.seek(-4096, os.SEEK_END)
            byte = stream.read(1)
            stream.seek(-4096, os.SEEK_END)
            stream.write(bytes([byte[0] ^ 1]))

    def test_a_direct_install_that_breaks_is_not_resumed_until_one_succeeds(self):
        trainers = self.trainers("--transport", "file")
        self.publish(trainers, 1)
        server = self.server(0, "--install", "direct", "--transport-directory", self.folder)
        self.join(server, 1)
        self.expect_refused(server.post("/update_weights", {"version": 1}), 409, "/pause first")
        self.update(server, 1)
        self.publish(trainers, 2)
        self.corrupt(2)
        self.assertEqual(server.post("/pause")[0], 200)
        self.expect_refused(server.post("/update_weights", {"version": 2}), 500,
                            "server-0, worker", "unusable", "digest of")
        self.expect_held(server, None, paused=True, state="unusable")
        self.expect_refused(server.post("/resume"), 409, "no whole version is held")
        self.assertEqual(server.get("/health")[0], 503)
        self.assertEqual(server.get("/is_paused"), (200, {"is_paused": True}))
        self.publish(trainers, 3)
        self.update(server, 3)
        self.verify_all(server, 3)


class WhoMayAsk(ReplicaCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.secrets = tempfile.mkdtemp(prefix="weir-replica-tls-")
        subprocess.run([os.path.join(SOURCE, "tests", "rpc", "make_certificates.sh"), cls.secrets],
                       check=True)
        with open(os.open(cls.secrets + "/token", os.O_WRONLY | os.O_CREAT, 0o600), "w",
                  encoding="ascii") as file:
            file.write("a-token-of-the-fleet\n")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.secrets)
        super().tearDownClass()

    def test_tls_and_a_token_are_wanted_of_everybody(self):
        secure = ["--tls-cert", self.secrets + "/worker.pem", "--tls-key",
                  self.secrets + "/worker.key", "--tls-ca", self.secrets + "/ca.pem",
                  "--token-file", self.secrets + "/token"]
        directory = self.start("serve", "--listen", "127.0.0.1:0", "--no-http", "--json", *secure)
        self.address = directory.line()["address"]
        self.flow[1] = self.address
        self.flow += secure
        trainers = self.trainers()
        self.publish(trainers, 1)
        certificate = ("--cacert", self.secrets + "/ca.pem", "--cert", self.secrets + "/worker.pem",
                       "--key", self.secrets + "/worker.key")
        token = ("-H", "Authorization: Bearer a-token-of-the-fleet")

        def ask(method, url, body=None):
            return by_curl(method, url.replace("http://", "https://"), body, *certificate, *token)

        server = self.server(0, *secure, ask=ask)
        https = server.url.replace("http://", "https://")
        self.expect_refused(by_curl("POST", https + "/pause", None, *certificate), 401, "token")
        self.expect_refused(by_curl("POST", https + "/pause", None, *certificate[:2], *token), 403,
                            "certificate")
        with self.assertRaises(ConnectionError):
            by_curl("GET", server.url + "/health")
        self.assertEqual(by_curl("GET", https + "/health", None, *certificate[:2])[0], 200)
        self.join(server, 1)
        self.update(server, 1)
        self.verify_all(server, 1)


if __name__ == "__main__":
    unittest.main()
