# SPDX-License-Identifier: Apache-2.0
"""A directory, trainers and replicas that speak TLS with certificates of both sides and a token, as
processes; Python's own gRPC as their client; and what those are told that may not."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

import grpc

import peer_stubs

SOURCE = os.path.abspath(peer_stubs.SOURCE)
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
FOLDER = peer_stubs.generate()
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
import refit_pb2  # noqa: E402
import refit_pb2_grpc  # noqa: E402
from flow_case import WAIT_S, WEIR, FlowCase  # noqa: E402

TOKEN = "a-token-of-the-tests"
VARIABLES = ("WEIR_TLS_CERTIFICATE", "WEIR_TLS_KEY", "WEIR_TLS_CA", "WEIR_TOKEN_FILE",
             "WEIR_INSECURE")


def setUpModule():
    for variable in VARIABLES:
        os.environ.pop(variable, None)


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


class SecurityTest(FlowCase):
    versions = 2

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.certificates = tempfile.mkdtemp(prefix="weir-tls-")
        subprocess.run([os.path.join(SOURCE, "tests", "rpc", "make_certificates.sh"),
                        cls.certificates], check=True, timeout=WAIT_S)
        for name, token in (("token", TOKEN), ("other-token", "another")):
            with open(cls.file(name), "w", opener=lambda path, flags: os.open(path, flags, 0o600),
                      encoding="ascii") as file:
                file.write(token + "\n")

    @classmethod
    def tearDownClass(cls):
        super().tearDownClass()
        shutil.rmtree(cls.certificates, ignore_errors=True)

    @classmethod
    def file(cls, name):
        return os.path.join(cls.certificates, name)

    @classmethod
    def shows(cls, certificate="worker", ca="ca", token="token"):
        """Options of one who shows these and believes that."""
        options = []
        if certificate is not None:
            options += ["--tls-cert", cls.file(certificate + ".pem"),
                        "--tls-key", cls.file(certificate + ".key")]
        if ca is not None:
            options += ["--tls-ca", cls.file(ca + ".pem")]
        if token is not None:
            options += ["--token-file", cls.file(token)]
        return options

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="weir-flow-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.directory = self.start("serve", "--listen", "127.0.0.1:0", "--json",
                                    *self.shows("server"))
        self.address = self.directory.line()["address"]
        self.open_flow = ["--directory", self.address, "--model", "m", "--conversion",
                          "fp8_128x128", "--json", "--transport-directory", self.folder]
        self.flow = [*self.open_flow, *self.shows()]

    # ---- Python's gRPC ----------------------------------------------------------------------

    def read(self, name):
        with open(self.file(name), "rb") as file:
            return file.read()

    def channel(self, certificate="worker", ca="ca"):
        pair = {}
        if certificate is not None:
            pair = {"private_key": self.read(certificate + ".key"),
                    "certificate_chain": self.read(certificate + ".pem")}
        credentials = grpc.ssl_channel_credentials(self.read(ca + ".pem"), **pair)
        channel = grpc.secure_channel(self.address, credentials)
        self.addCleanup(channel.close)
        return channel

    def call(self, channel, token):
        metadata = [("authorization", "Bearer " + token)] if token is not None else []
        with self.assertRaises(grpc.RpcError) as caught:
            refit_pb2_grpc.RefitServiceStub(channel).GetWeightVersion(
                refit_pb2.GetWeightVersionRequest(uid="none"), metadata=metadata, timeout=10)
        return caught.exception

    def assert_served(self, channel):
        self.assertEqual(self.call(channel, TOKEN).code(), grpc.StatusCode.NOT_FOUND)

    def test_python_with_a_certificate_and_the_token_is_served(self):
        self.assert_served(self.channel())

    def test_python_without_the_token_is_unauthenticated(self):
        for token in (None, "x", TOKEN + "x", TOKEN[:-1]):
            error = self.call(self.channel(), token)
            self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED)
            self.assertIn("authorization: Bearer", error.details())

    def test_python_without_a_certificate_or_with_another_ca_gets_no_connection(self):
        for certificate, ca in ((None, "ca"), ("stranger", "ca"), ("worker", "other-ca")):
            error = self.call(self.channel(certificate, ca), TOKEN)
            self.assertEqual(error.code(), grpc.StatusCode.UNAVAILABLE)
        self.assert_served(self.channel())

    def test_health_answers_without_the_token(self):
        stub = health_pb2_grpc.HealthServiceStub(self.channel())
        self.assertNotEqual(stub.GetHealth(health_pb2.HealthRequest(), timeout=10).status, "")

    # ---- refits -----------------------------------------------------------------------------

    def trainers_of(self, *more):
        return [self.start("publish", "--follow", "--version", "1", "--rank", str(rank), "--ranks",
                           "2", *self.flow, *more) for rank in range(2)]

    def refit(self, trainer_options, replica_options):
        trainers = self.trainers_of(*trainer_options)
        replicas = [self.replica(name, "--follow", *replica_options) for name in ("one", "two")]
        for version in (1, 2):
            for trainer in trainers:
                trainer.send(self.checkpoint(version))
            for replica in replicas:
                said = self.expect_installed(replica, version)
        for trainer in trainers:
            while trainer.line()["version"] != 2:
                pass  # one line or two of each, as they are delivered
        for name in ("one", "two"):
            self.verify(name, 2)
        return said

    def test_versions_are_pulled_with_certificates_of_both_sides_and_a_token(self):
        said = self.refit(("--transport", "file"), ("--transport", "file"))
        self.assertEqual(said["counters"]["connections"], 0)

    def put_token(self, text):
        """As programs do it that leave nothing half done."""
        with open(self.file("next"), "w", opener=lambda path, flags: os.open(path, flags, 0o600),
                  encoding="ascii") as file:
            file.write(text + "\n")
        os.replace(self.file("next"), self.file("rotating"))

    def test_a_fleet_goes_on_when_its_token_is_rotated(self):
        self.put_token("the-first")
        directory = self.start("serve", "--listen", "127.0.0.1:0", "--json",
                               *self.shows("server", token="rotating"))
        self.address = directory.line()["address"]
        self.flow = ["--directory", self.address, *self.open_flow[2:],
                     *self.shows(token="rotating")]
        trainers = self.trainers_of("--transport", "file")
        replica = self.replica("one", "--follow", "--transport", "file")
        for version in (1, 2):
            for trainer in trainers:
                trainer.send(self.checkpoint(version))
            self.expect_installed(replica, version)
            self.put_token("the-second")
        self.verify("one", 2)
        error = self.call(self.channel(), "the-third")
        self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED)
        self.assertEqual(self.call(self.channel(), "the-second").code(), grpc.StatusCode.NOT_FOUND)

    def test_versions_are_pushed_over_a_link_within_tls(self):
        info = subprocess.run([WEIR, "info"], capture_output=True, text=True, timeout=WAIT_S,
                              check=True).stdout
        if "ucx" not in info:
            self.skipTest("without UCX nothing is pushed between host memories")
        push = ("--delivery", "push", "--transport", "ucx", "--replicas", "2", "--timeout", "30")
        self.refit(push, ("--install", "direct", "--timeout", "30"))

    def test_the_environment_says_the_same_as_options(self):
        environment = {**os.environ, "WEIR_TLS_CERTIFICATE": self.file("worker.pem"),
                       "WEIR_TLS_KEY": self.file("worker.key"),
                       "WEIR_TLS_CA": self.file("ca.pem"),
                       "WEIR_TOKEN_FILE": self.file("token")}
        said = subprocess.run([WEIR, "discover", *self.open_flow[:4], "--json"], text=True,
                              env=environment, capture_output=True, timeout=WAIT_S, check=False)
        self.assertEqual(json.loads(said.stdout)["sources"], [], said.stderr)

    # ---- who may not ------------------------------------------------------------------------

    def expect_refused(self, options, *words):
        result = subprocess.run([WEIR, "publish", self.checkpoint(1), "--version", "1",
                                 "--transport", "file", *self.open_flow, *options],
                                capture_output=True, text=True, timeout=20, check=False)
        self.assertEqual(result.returncode, 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_a_trainer_is_told_what_is_wrong(self):
        cases = (
            (self.shows(certificate=None, ca=None), ("the server wants TLS",)),
            (self.shows(certificate=None), ("asks for a client certificate",)),
            (self.shows(certificate="stranger"), ("CA did not sign the certificate", "stranger")),
            (self.shows(ca="other-ca"), ("its certificate is not signed by CA", "other-ca.pem")),
            (self.shows(token=None), ("UNAUTHENTICATED", "the token is missing")),
            (self.shows(token="other-token"), ("UNAUTHENTICATED", "or another")),
            (self.shows(token="missing"), ("cannot open the token's file", "missing")),
            (["--tls-cert", self.file("worker.pem")], ("given without its key",)),
        )
        for options, words in cases:
            with self.subTest(options=options):
                self.expect_refused(options, *words)

    def expect_no_server(self, arguments, *words):
        result = subprocess.run([WEIR, "serve", *arguments], capture_output=True, text=True,
                                timeout=WAIT_S, check=False)
        self.assertEqual(result.returncode, 1)
        for word in words:
            self.assertIn(word, result.stderr)

    def test_a_directory_for_all_wants_a_certificate_and_a_token(self):
        listen = ("--listen", "0.0.0.0:0")
        self.expect_no_server(listen, "0.0.0.0:0: not without a certificate and a token",
                              "--insecure")
        self.expect_no_server((*listen, *self.shows(None, None)), "not without a certificate:")
        self.expect_no_server((*listen, *self.shows("server", None, None)), "not without a token")
        for options in (self.shows("server", None), ["--insecure"]):
            server = self.start("serve", *listen, "--json", *options)
            self.assertIn(":", server.line()["address"])


del FlowCase

if __name__ == "__main__":
    unittest.main()
