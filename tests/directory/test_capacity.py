# SPDX-License-Identifier: Apache-2.0
"""What a directory does where descriptors are few: how many it takes, whom it lets go."""
import os
import shutil
import socket
import sys
import time
import unittest

import grpc

import peer_stubs

SOURCE = os.path.abspath(peer_stubs.SOURCE)
sys.path.insert(0, os.path.join(SOURCE, "tests", "refit"))
FOLDER = peer_stubs.generate()
import health_pb2  # noqa: E402
import health_pb2_grpc  # noqa: E402
from flow_case import WEIR, Process  # noqa: E402


def tearDownModule():
    shutil.rmtree(FOLDER, ignore_errors=True)


class CapacityTest(unittest.TestCase):
    def serve(self, descriptors, *more):
        self.server = Process("serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json",
                              *more, program=("prlimit", f"--nofile={descriptors}", WEIR))
        self.addCleanup(self.server.end)
        said = self.server.line()
        return [self.parse(said[kind]) for kind in ("address", "http")]

    @staticmethod
    def parse(address):
        host, port = address.rsplit(":", 1)
        return host, int(port)

    def connect(self, address):
        connection = socket.create_connection(address, timeout=10)
        self.addCleanup(connection.close)
        return connection

    def n_open(self):
        return len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

    def assert_served(self, address):
        channel = grpc.insecure_channel("%s:%d" % address)
        self.addCleanup(channel.close)
        stub = health_pb2_grpc.HealthServiceStub(channel)
        self.assertTrue(stub.GetHealth(health_pb2.HealthRequest(), timeout=20,
                                       wait_for_ready=True).status)

    def end(self):
        """What it said on stderr."""
        self.server.process.terminate()
        return self.server.process.communicate(timeout=20)[1].decode()

    def test_all_descriptors_are_taken_and_the_log_says_how_far_they_go(self):
        self.serve("256:2048", "--max-connections", "5000")
        with open(f"/proc/{self.server.process.pid}/limits", encoding="ascii") as file:
            limits = [line.split()[3:5] for line in file if line.startswith("Max open files")]
        self.assertEqual(limits, [["2048", "2048"]])
        self.assertIn("takes 1408 connections, not 5000: this process may have 2048 descriptors",
                      self.end())

    def test_a_bound_of_connections_is_kept(self):
        address, _ = self.serve("2048:2048", "--max-connections", "3")
        kept = [self.connect(address) for _ in range(3)]
        self.assertEqual(self.connect(address).recv(1), b"")
        for connection in kept:
            self.assertNotEqual(connection.recv(1), b"")  # the greeting of HTTP/2

    def test_the_longest_silent_gives_way_where_descriptors_are_out(self):
        """HTTP takes what gRPC may not, so that connections find no descriptor though they may be."""
        address, http = self.serve("160:160")
        first = self.connect(address)
        silent = [first]
        while self.n_open() < 85:
            before = self.n_open()
            silent.append(self.connect(address))
            deadline = time.monotonic() + 5
            while self.n_open() == before and time.monotonic() < deadline:
                time.sleep(0.001)  # no more come than it has taken: none is refused
        time.sleep(1.1)  # nobody goes within a second
        pages = [self.connect(http) for _ in range(100)]
        deadline = time.monotonic() + 8
        while self.n_open() < 160 and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.n_open(), 160, len(pages))
        self.assert_served(address)
        first.settimeout(10)
        while first.recv(4096):
            pass  # the greeting, then the end
        said = self.end()
        self.assertIn("cannot accept: Too many open files", said)
        self.assertIn("the idlest, 127.0.0.1:%d, is closed" % first.getsockname()[1], said)
        self.assertLess(said.count("cannot accept"), 10, said)


if __name__ == "__main__":
    unittest.main()
