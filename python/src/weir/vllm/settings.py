# SPDX-License-Identifier: Apache-2.0
"""The settings of `weir.engines.worker_settings`, by the name that users of vLLM know them by."""

from weir.engines.worker_settings import Settings, Update

__all__ = ["Settings", "Update"]
