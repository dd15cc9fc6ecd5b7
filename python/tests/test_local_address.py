# SPDX-License-Identifier: Apache-2.0
"""Where a trainer listens that was told only where its directory is."""
from __future__ import annotations

import socket
from typing import Any

import pytest

import weir
from weir import local_address


class Probe:
    """A UDP socket of a machine that has two networks, and no way to others."""

    OWN = {"10.0.0.9": "10.0.0.1", "fd00::9": "fd00::1"}

    def __init__(self, *_: Any) -> None:
        self._own = ""

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def connect(self, address: Any) -> None:
        if address[0] not in self.OWN:
            raise OSError("Network is unreachable")
        self._own = self.OWN[address[0]]

    def getsockname(self) -> Any:
        return (self._own, 40000)


@pytest.mark.parametrize(
    "directory, own",
    [
        ("10.0.0.9:8500", "10.0.0.1"),
        ("10.0.0.9:8500,10.0.0.8:8500", "10.0.0.1"),
        ("[fd00::9]:8500", "fd00::1"),
        ("10.9.9.9:8500", None),
        ("10.0.0.9", None),
        ("10.0.0.9:port", None),
        ("", None),
    ],
)
def test_it_is_the_address_on_the_way_to_the_directory(
    monkeypatch: pytest.MonkeyPatch, directory: str, own: Any
) -> None:
    monkeypatch.setattr(local_address.socket, "socket", Probe)
    assert local_address.towards(directory) == own


@pytest.mark.parametrize("directory", ["127.0.0.1:8500", "127.0.0.2:8500", "localhost:8500"])
def test_a_directory_on_loopback_asks_for_none(directory: str) -> None:
    assert local_address.towards(directory) is None


def test_a_name_that_nobody_knows_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(local_address.socket, "getaddrinfo", unknown)
    assert local_address.towards("nowhere.invalid:8500") is None


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is reached from an address that is not loopback, which 0.0.0.0 is not."""
    monkeypatch.setattr(local_address, "towards", lambda directory: "0.0.0.0")
    for name in ("WEIR_INSECURE", "WEIR_TOKEN_FILE", "WEIR_TLS_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)


def test_a_trainer_that_others_cannot_reach_is_refused_when_it_opens(elsewhere: None) -> None:
    with weir.Directory() as directory, pytest.raises(weir.CallError) as caught:
        weir.Trainer("policy", directory=directory.address, timeout=10)
    assert caught.value.status == weir.Status.ERR_REFUSED
    for said in ("not without a certificate", directory.address, "give security", "listen="):
        assert said in str(caught.value)


@pytest.mark.parametrize("given", [{"listen": "127.0.0.1"},
                                   {"security": weir.Security(insecure=True)}])
def test_what_the_error_names_opens_it(elsewhere: None, given: Any) -> None:
    with weir.Directory() as directory:
        weir.Trainer("policy", directory=directory.address, timeout=10, **given).close()
