# SPDX-License-Identifier: Apache-2.0
"""What all engines have in common whose live parameters Weir writes: a torch model in a worker.

`weir.vllm` and `weir.sglang` say what their engine does with weights, and where a worker stands;
what follows from that is here, once. Nothing is imported from an engine, and torch only where a
call needs it.
"""

from weir.submodules import importer


class Refused(ValueError):
    """An engine, or a parameter of one, that Weir does not write into, and why."""


__all__ = ["Refused"]

__getattr__ = importer(__name__, "worker_settings")
