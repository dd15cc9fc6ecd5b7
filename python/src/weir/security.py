# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom: certificates and tokens of a handle's connections."""

from __future__ import annotations

import dataclasses
import os
from typing import Optional, Union

from weir import abi
from weir.errors import CallError

_Path = Union[str, "os.PathLike[str]"]


@dataclasses.dataclass(frozen=True)
class Security:
    """For every connection of a handle, as ``weir_security``.

    What is None is taken from the environment (WEIR_TLS_CERTIFICATE, WEIR_TLS_KEY, WEIR_TLS_CA,
    WEIR_TOKEN_FILE; WEIR_INSECURE=1), so that a whole fleet can be told in one place.

    ``certificate``, ``key``: PEM files; it listens with TLS alone and shows them where it calls.
    ``ca``: a PEM file or "system"; it believes only whom this signed. ``token``: sent with every
    call and asked of every caller; ``token_file`` instead is read again when it is replaced.
    ``insecure``: may listen beyond loopback without TLS or without a token.
    """

    certificate: Optional[_Path] = None
    key: Optional[_Path] = None
    ca: Optional[_Path] = None
    token: Optional[str] = dataclasses.field(default=None, repr=False)
    insecure: bool = False
    token_file: Optional[_Path] = None

    def to_abi(self) -> abi.weir_security:
        """The C struct, which keeps its own strings alive."""
        return abi.weir_security(
            certificate=_text("certificate", self.certificate),
            key=_text("key", self.key),
            ca=_text("ca", self.ca),
            token=_text("token", self.token),
            insecure=self.insecure,
            token_file=_text("token_file", self.token_file),
        )


def _text(field: str, value: Optional[_Path]) -> Optional[bytes]:
    if value is None:
        return None
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise CallError(f"security: {field} has a NUL character")
    return encoded
