# SPDX-License-Identifier: Apache-2.0
"""Weir behind the weight-sync hooks of training frameworks: prime-rl, verl, NeMo-RL.

One module per framework, each loadable by the name that the framework's configuration takes.
`arena` keeps what a framework lends for a moment, `channel` is what the hooks share. No framework
is imported unless it is installed, and none of them by importing this package.
"""

from weir.submodules import importer

__getattr__ = importer(__name__, "nemo_rl", "prime_rl", "verl")
