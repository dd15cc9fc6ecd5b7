# SPDX-License-Identifier: Apache-2.0
"""`weir bench copy` and `weir bench refit`: what they print, and what they refuse."""
import unittest

from cli_case import CliCase


class BenchCopy(CliCase):
    def test_every_way_is_listed_with_a_figure_or_a_reason(self):
        said = self.weir_json("bench", "copy", "--bytes", "4M")
        self.assertEqual(said["bytes"], 4 << 20)
        rows = {(row["transport"], row["over"]): row for row in said["results"]}
        names = [row["transport"] for row in said["results"]]
        self.assertEqual(names, ["memcpy", "ucx", "ucx", "file", "device", "peer", "to host",
                                 "from host", "nccl"])
        for row in said["results"]:
            self.assertIs(row["failed"], False, row)
            self.assertEqual(row["available"], row["why_not"] == "", row)
            self.assertEqual(row["gb_per_s"] is not None and row["gb_per_s"] > 0,
                             row["available"], row)
        for key in (("memcpy", "1 thread"), ("ucx", "shm"), ("file", "page cache")):
            self.assertTrue(rows[key]["available"], rows[key])
        self.assertGreater(rows[("ucx", "shm")]["fraction_of_limit"], 0)
        self.assertGreater(said["limit_gb_per_s"], 0)

    def test_one_way_alone_and_a_table(self):
        said = self.weir_json("bench", "copy", "--transport", "file", "--bytes", "1M")
        self.assertEqual([row["transport"] for row in said["results"]], ["file"])
        text = self.weir("bench", "copy", "--transport", "memcpy", "--bytes", "1M").stdout
        self.assertIn("1048576 bytes a copy", text)
        self.assertIn("bytes read and written", text)

    def test_what_was_asked_for_and_is_not_there_is_an_error(self):
        if self.weir_json("info")["gpus"]:
            self.skipTest("there is a GPU")
        self.assertIn("peer: ", self.error("bench", "copy", "--transport", "peer"))

    def test_wrong_command_lines_are_exit_code_2(self):
        for arguments in (("--transport", "pigeon"), ("--bytes", "0"), ("--bytes", "5T"),
                          ("--gpus", "0,"), ("--gpus", "a"), ("surplus",)):
            self.error("bench", "copy", *arguments, code=2)


if __name__ == "__main__":
    unittest.main()
