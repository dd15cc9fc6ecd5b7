# SPDX-License-Identifier: Apache-2.0
"""Weir in SGLang: a custom weight loader for its workers, and a driver for its HTTP side.

    python -m sglang.launch_server ... --custom-weight-loader weir.sglang.loader.install

`weir.sglang.loader` runs inside SGLang's workers, `weir.sglang.client` wherever the training loop
is: it needs neither SGLang nor torch. They meet in `weir.sglang.wish`. Importing this package
imports nothing of SGLang.
"""

from weir.submodules import importer

LOADER = "weir.sglang.loader.install"
STATUS_NAME = "weir.status"

__all__ = ["LOADER", "STATUS_NAME"]

__getattr__ = importer(__name__, "client", "loader")
