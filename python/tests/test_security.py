# SPDX-License-Identifier: Apache-2.0
"""weir.Security as the C struct has it."""

from __future__ import annotations

import pathlib

import pytest

import weir


def test_fields_reach_the_struct_and_stay_alive() -> None:
    told = weir.Security(
        certificate=pathlib.Path("/c.pem"),
        key="/k.pem",
        ca="system",
        token="secret",
        insecure=True,
        token_file="/t",
    ).to_abi()
    assert (told.certificate, told.key, told.ca) == (b"/c.pem", b"/k.pem", b"system")
    assert (told.token, told.insecure, told.token_file) == (b"secret", True, b"/t")


def test_nothing_is_what_the_environment_says() -> None:
    told = weir.Security().to_abi()
    assert [getattr(told, name) for name, _ in told._fields_] == [None] * 4 + [False, None]


def test_a_token_is_shown_to_nobody() -> None:
    assert "secret" not in repr(weir.Security(token="secret"))


def test_a_text_that_c_would_cut_is_refused() -> None:
    with pytest.raises(weir.CallError, match="security: token has a NUL character"):
        weir.Security(token="a\0b").to_abi()
