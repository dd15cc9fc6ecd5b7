# SPDX-License-Identifier: Apache-2.0
"""HTTP of a directory in TLS: certificates, callers' certificates and tokens, by Python's ssl."""
import http.client
import os
import shutil
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
