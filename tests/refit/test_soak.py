# SPDX-License-Identifier: Apache-2.0
"""scripts/soak, short: some sixty refits while workers are killed, stopped and replaced; with one
directory, and with two over one Redis that are killed too."""
import os
import shutil
import subprocess
import sys
import unittest

SOURCE = os.environ.get("WEIR_TEST_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
BUILD = os.path.dirname(os.environ.get("WEIR_TEST_BIN", "build/bin"))
BOUND_S = 240


class SoakTest(unittest.TestCase):
    def soak(self, *options):
        ended = subprocess.run(
            [sys.executable, os.path.join(SOURCE, "scripts", "soak"), BUILD, *options],
            capture_output=True, text=True, timeout=BOUND_S, check=False)
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)

    def test_nothing_is_lost_or_stuck(self):
        self.soak("--refits", "60", "--replicas", "4")

    @unittest.skipUnless(shutil.which("redis-server"), "SKIPPED: no redis-server")
    def test_nothing_is_lost_or_stuck_over_redis(self):
        self.soak("--refits", "40", "--replicas", "4", "--ranks", "2", "--store", "redis")


if __name__ == "__main__":
    unittest.main()
