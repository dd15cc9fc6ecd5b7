# SPDX-License-Identifier: Apache-2.0
"""test_examples.py - the examples run, and print what their docstrings promise."""
from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Iterator

import pytest

import weir

pytest.importorskip("torch")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1",
               "PYTHONPATH": str(Path(weir.__file__).resolve().parents[1])}
SECONDS = 100


def start(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(EXAMPLES / script), *args], env=ENVIRONMENT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def lines_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """Reads what it prints up to a line that matches; its end before that is a failure."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        found = re.search(pattern, line)
        if found:
            return found
    raise AssertionError(f"no line matches {pattern!r}:\n{''.join(seen)}")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_logits_of_every_version_are_equal_bit_for_bit() -> None:
    command = [sys.executable, str(EXAMPLES / "follow_logits.py"), "--versions", "4", "--steps", "6"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row[2]) for row in rows] == [0.0] * 4
    assert float(rows[-1][1]) < 0.75 * float(rows[0][1]), "it has learned something"


def test_a_replica_serves_what_a_training_loop_publishes(
        started: list[subprocess.Popen[str]]) -> None:
    trainer = start("train_publish.py", "--steps", "45")
    started.append(trainer)
    directory = lines_until(trainer, r"^directory (\S+)$")[1]
    server = start("serve_replica.py", "--directory", directory)
    started.append(server)
    address = lines_until(server, r"^serving on (\S+)$")[1]
    lines_until(trainer, r"^step 45: loss 0\.\d+, \d+ bytes published$")
    assert trainer.wait(SECONDS) == 0
    url = f"http://{address}/generate?tokens="
    with urllib.request.urlopen(url + "3,5,7,9&n=3", timeout=SECONDS) as answer:
        assert json.load(answer) == {"version": 45, "tokens": [3, 5, 7, 9, 11, 13, 15]}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(url + "three", timeout=SECONDS)
    server.send_signal(signal.SIGINT)
    assert server.wait(SECONDS) == 0
    lines_until(server, r"^version 45 in [\d.]+ ms$")
