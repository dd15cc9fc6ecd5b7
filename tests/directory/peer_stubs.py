# SPDX-License-Identifier: Apache-2.0
"""Python stubs of proto/*.proto, made when a test asks for them: an independent gRPC peer."""
import os
import subprocess
import sys

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
PROTOS = ("p2p", "refit", "health", "directory")


def generate():
    """Writes the stubs below WEIR_TEST_GEN and puts that folder on the path."""
    folder = os.path.join(os.environ.get("WEIR_TEST_GEN", "/tmp/weir-test-gen"),
                          "python-%d" % os.getpid())
    os.makedirs(folder, exist_ok=True)
    proto = os.path.join(SOURCE, "proto")
    subprocess.run(["protoc", "--python_out=" + folder, "--grpc_python_out=" + folder,
                    "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin", "-I", proto]
                   + [os.path.join(proto, name + ".proto") for name in PROTOS], check=True)
    sys.path.insert(0, folder)
    return folder
