# SPDX-License-Identifier: Apache-2.0
"""What one publish or install did, and how long each stop took: ``weir_report`` as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

from weir import abi


@dataclass(frozen=True)
class Report:
    """``weir_report``. Seconds are wall-clock time of the rank or worker that reports.

    ``seconds`` has an entry per stop, 0.0 for those of the other side: source, stage, slot and
    publish are a trainer's; discover, transfer, install, postprocess and ack a replica's.
    ``counters`` says what Weir itself did on the way: allocations, registrations, plans,
    connections. A second refit of one layout leaves all of them at zero.
    """

    version: int
    n_tensors: int  # published by this rank, or installed by this replica
    n_bytes: int
    waited_seconds: float  # until the version was READY, counted in no stop
    seconds: Dict[str, float]
    total_seconds: float  # of the stops
    counters: Dict[str, int]
    read_from: str  # the replica worker that the bytes came from; "": the trainers

    @classmethod
    def of(cls, report: abi.weir_report) -> "Report":
        """Copies a C report."""
        return cls(
            version=report.version,
            n_tensors=report.n_tensors,
            n_bytes=report.n_bytes,
            waited_seconds=report.waited_seconds,
            seconds=dict(zip(abi.STOPS, report.seconds)),
            total_seconds=report.total_seconds,
            counters={
                field[0]: getattr(report.counters, field[0]) for field in abi.weir_counters._fields_
            },
            read_from=report.read_from.decode("utf-8", "replace"),
        )
