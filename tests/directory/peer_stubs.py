# SPDX-License-Identifier: Apache-2.0
"""Python stubs of peer_*.proto, made when a test asks for them: an independent gRPC peer.

Those files say again what proto/ says, so that a change there which a peer would notice is noticed
here."""
import os
import shutil
import subprocess
import sys

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
PROTOS = ("p2p", "refit", "health", "directory")


def generate():
    """Writes the stubs below WEIR_TEST_GEN and puts that folder on the path."""
    folder = os.path.join(os.environ.get("WEIR_TEST_GEN", "/tmp/weir-test-gen"),
                          "python-%d" % os.getpid())
    os.makedirs(folder, exist_ok=True)
    protos = [os.path.join(folder, name + ".proto") for name in PROTOS]
    for name, proto in zip(PROTOS, protos):
        shutil.copy(os.path.join(SOURCE, "tests", "directory", "peer_%s.proto" % name), proto)
    subprocess.run(["protoc", "--python_out=" + folder, "--grpc_python_out=" + folder,
                    "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin", "-I", folder]
                   + protos, check=True)
    sys.path.insert(0, folder)
    return folder
