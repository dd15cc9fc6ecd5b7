# SPDX-License-Identifier: Apache-2.0
"""Marker files by which prime-rl's trainer and orchestrator tell each other about a step.

In BROADCASTS/step_N the trainer touches STABLE when the version can be had, and the orchestrator
NCCL_READY once every server has been told to install it. Shared file systems announce nothing, so
both are looked for, every 100 ms or less, within a bound. A directory that is deleted meanwhile is
not an error: its run is gone.
"""

from __future__ import annotations

import logging
import pathlib
import time
from typing import Union

from weir.errors import TimedOut

STABLE, NCCL_READY = "STABLE", "NCCL_READY"
LOOK_EVERY_SECONDS = 0.05

logger = logging.getLogger("weir.prime_rl")


def step_directory(output: Union[str, pathlib.Path], step: int) -> pathlib.Path:
    """Where the markers of a step are, under a run's output directory."""
    return pathlib.Path(output) / "broadcasts" / f"step_{step}"


def step_of(path: Union[str, pathlib.Path]) -> int:
    """The step of ".../step_N". Raises ValueError for any other path."""
    name = pathlib.PurePath(path).name
    number = name[len("step_"):] if name.startswith("step_") else ""
    if not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise ValueError(f"'{path}': .../step_N is wanted")
    return int(number)


def set_stable(directory: pathlib.Path) -> bool:
    """Tells the orchestrator. False, and a warning, where the run's directory is gone."""
    try:
        directory.parent.mkdir(exist_ok=True)
        directory.mkdir(exist_ok=True)
        (directory / NCCL_READY).unlink(missing_ok=True)  # of an attempt before
        (directory / STABLE).touch()
    except FileNotFoundError:
        logger.warning("weir: %s is deleted, its run is skipped", directory)
        return False
    return True


def await_ready(directory: pathlib.Path, timeout: float) -> bool:
    """Waits for the orchestrator. False, and a warning, where the directory is deleted meanwhile.

    Raises TimedOut, naming the file.
    """
    deadline = time.monotonic() + timeout
    marker = directory / NCCL_READY
    while not marker.exists():
        if not directory.is_dir():
            logger.warning("weir: %s is deleted, its run is skipped", directory)
            return False
        if time.monotonic() >= deadline:
            raise TimedOut(
                f"{marker}: the orchestrator has not told the servers within {timeout:g} s"
            )
        time.sleep(LOOK_EVERY_SECONDS)
    return True
