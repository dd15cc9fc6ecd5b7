# SPDX-License-Identifier: Apache-2.0
"""HTTP of a directory in TLS: certificates, callers' certificates and tokens, by Python's ssl."""
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
import flow_case  # noqa: E402

TOKEN = "a-token-of-the-fleet"


class HttpTls(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="weir-http-tls-")
        subprocess.run([os.path.join(SOURCE, "tests", "rpc", "make_certificates.sh"), cls.folder],
                       check=True)
        with open(os.open(cls.file("token"), os.O_WRONLY | os.O_CREAT, 0o600), "w",
                  encoding="ascii") as file:
            file.write(TOKEN + "\n")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def file(cls, name):
        return os.path.join(cls.folder, name)

    def serve(self, *more):
        process = flow_case.Process("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
                                    "--json", "--tls-cert", self.file("server.pem"), "--tls-key",
                                    self.file("server.key"), *more)
        self.addCleanup(process.end)
        return process.line()["http"]

    def status(self, address, path="/metrics", token=None, certificate=None, ca="ca"):
        context = ssl.create_default_context(cafile=self.file(ca + ".pem"))
        if certificate:
            context.load_cert_chain(self.file(certificate + ".pem"), self.file(certificate + ".key"))
        connection = http.client.HTTPSConnection(address, timeout=10, context=context)
        self.addCleanup(connection.close)
        connection.request("GET", path, headers={"Authorization": "Bearer " + token} if token else {})
        return connection.getresponse().status

    # ---- files that are replaced ------------------------------------------------------------

    def secrets(self, generation, **names):
        """A folder as Kubernetes has it: server.pem -> ..data/server.pem, ..data -> the one in force."""
        folder = os.path.join(self.mount, generation)
        os.mkdir(folder)
        for name, of in names.items():
            kind = {"pem": "server.pem", "key": "server.key", "ca": "ca.pem",
                    "token": "token"}[name]
            if kind == "token":
                with open(os.open(os.path.join(folder, kind), os.O_WRONLY | os.O_CREAT, 0o600), "w",
                          encoding="ascii") as file:
                    file.write(of + "\n")
            else:
                shutil.copy(self.file(of + (".key" if name == "key" else ".pem")),
                            os.path.join(folder, kind))
            link = os.path.join(self.mount, kind)
            if not os.path.lexists(link):
                os.symlink(os.path.join("..data", kind), link)
        os.symlink(generation, os.path.join(self.mount, "..next"))
        os.rename(os.path.join(self.mount, "..next"), os.path.join(self.mount, "..data"))

    def serve_secrets(self, **names):
        self.mount = tempfile.mkdtemp(prefix="weir-secrets-")
        self.addCleanup(shutil.rmtree, self.mount)
        self.secrets("..1", **names)
        options = ["--tls-cert", "server.pem", "--tls-key", "server.key"]
        options += ["--tls-ca", "ca.pem"] if "ca" in names else []
        options += ["--token-file", "token"] if "token" in names else []
        options = [os.path.join(self.mount, o) if not o.startswith("-") else o for o in options]
        self.process = flow_case.Process("serve", "--listen", "127.0.0.1:0", "--http",
                                         "127.0.0.1:0", "--json", *options)
        self.addCleanup(self.process.end)
        said = self.process.line()
        return said["address"], said["http"]

    def shown(self, address, http2=False):
        """The common name of the certificate there, and the connection."""
        context = ssl.create_default_context(cafile=self.file("ca.pem"))
        if http2:
            context.set_alpn_protocols(["h2"])
        host, port = address.rsplit(":", 1)
        connection = context.wrap_socket(socket.create_connection((host, int(port)), timeout=10),
                                         server_hostname=host)
        self.addCleanup(connection.close)
        return dict(part[0] for part in connection.getpeercert()["subject"])["commonName"], connection

    def ask(self, connection):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read()
        return response.status

    def test_a_renewed_certificate_is_shown_to_whom_connects_next(self):
        grpc, page = self.serve_secrets(pem="server", key="server")
        name, old = self.shown(page)
        self.assertEqual((name, self.ask(old)), ("directory", 200))
        self.secrets("..2", pem="renewed", key="renewed")
        self.assertEqual(self.shown(page)[0], "renewed")
        self.assertEqual(self.shown(grpc, http2=True)[0], "renewed")
        self.assertEqual(self.ask(old), 200)
        self.secrets("..3", pem="server", key="renewed")  # which do not belong to each other
        for _ in range(3):
            self.assertEqual(self.shown(page)[0], "renewed")
            self.assertEqual(self.shown(grpc, http2=True)[0], "renewed")
        self.secrets("..4", pem="server", key="server")
        self.assertEqual(self.shown(page)[0], "directory")
        self.assertEqual(self.ask(old), 200)
        self.process.process.terminate()
        said = self.process.process.communicate(timeout=20)[1].decode()
        self.assertEqual(said.count("what was read before stays in force"), 2, said)  # HTTP's, gRPC's

    def test_another_ca_counts_for_whom_connects_next(self):
        _, address = self.serve_secrets(pem="server", key="server", ca="ca")
        self.assertEqual(self.status(address, certificate="worker"), 200)
        self.secrets("..2", pem="server", key="server", ca="other-ca")
        self.assertEqual(self.status(address, certificate="worker"), 403)
        self.assertEqual(self.status(address, certificate="stranger"), 200)

    def test_a_rotated_token_is_wanted_at_once_and_the_one_before_is_good_for_a_while(self):
        _, address = self.serve_secrets(pem="server", key="server", token="one")
        self.assertEqual(self.status(address, token="one"), 200)
        self.assertEqual(self.status(address, token="two"), 401)
        self.secrets("..2", pem="server", key="server", token="two")
        self.assertEqual(self.status(address, token="two"), 200)
        self.assertEqual(self.status(address, token="one"), 200)
        self.assertEqual(self.status(address, token="three"), 401)

    # ---- who may ask ------------------------------------------------------------------------

    def test_who_believes_its_ca_is_answered(self):
        address = self.serve()
        self.assertEqual(self.status(address), 200)
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.status(address, ca="other-ca")

    def test_plain_text_is_not_answered(self):
        address = self.serve()
        connection = http.client.HTTPConnection(address, timeout=10)
        self.addCleanup(connection.close)
        with self.assertRaises((http.client.HTTPException, OSError)):
            connection.request("GET", "/healthz")
            connection.getresponse()
        self.assertEqual(self.status(address, "/healthz"), 200)

    def test_old_tls_is_not_spoken(self):
        address = self.serve()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.file("ca.pem"))
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        connection = http.client.HTTPSConnection(address, timeout=10, context=context)
        self.addCleanup(connection.close)
        with self.assertRaises((ssl.SSLError, OSError)):
            connection.request("GET", "/healthz")

    def test_callers_show_a_certificate_of_the_fleet(self):
        address = self.serve("--tls-ca", self.file("ca.pem"))
        self.assertEqual(self.status(address, certificate="worker"), 200)
        self.assertEqual(self.status(address), 403)
        self.assertEqual(self.status(address, certificate="stranger"), 403)
        self.assertEqual(self.status(address, "/healthz"), 200)

    def test_a_token_is_wanted_beside_it(self):
        address = self.serve("--tls-ca", self.file("ca.pem"), "--token-file", self.file("token"))
        self.assertEqual(self.status(address, certificate="worker"), 401)
        self.assertEqual(self.status(address, token=TOKEN), 403)
        self.assertEqual(self.status(address, certificate="worker", token=TOKEN), 200)
        self.assertEqual(self.status(address, certificate="worker", token=TOKEN + "x"), 401)


if __name__ == "__main__":
    unittest.main(verbosity=2)
