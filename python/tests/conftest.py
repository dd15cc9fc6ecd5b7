# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Python package share. Whether the package is installed or comes from
PYTHONPATH with WEIR_LIBRARY is left to whoever calls pytest."""
import pathlib

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def checkout() -> pathlib.Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
    """The folder of the bytes that an independent implementation made."""
    return CHECKOUT / "tests" / "golden"
