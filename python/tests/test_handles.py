# SPDX-License-Identifier: Apache-2.0
"""What trainers, replicas and directories refuse alike."""
from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any, Callable

import numpy as np
import pytest

import weir


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_handle_has_one_owner(take: Callable[[Any], Any]) -> None:
    with weir.Directory() as directory, weir.Trainer("policy") as trainer:
        for handle, name in ((directory, f"directory {directory.address}"),
                             (trainer, "trainer of policy")):
            with pytest.raises(TypeError, match=f"^{name}: a handle can be neither copied"):
                take(handle)


@pytest.mark.parametrize("open_one", [
    lambda **options: weir.Directory(**options),
    lambda **options: weir.Trainer("policy", **options),
    lambda **options: weir.Replica("policy", directory="127.0.0.1:1", **options),
])
def test_security_that_is_none_is_refused(open_one: Callable[..., Any]) -> None:
    with pytest.raises(weir.CallError, match="security: {'insecure': True} is no weir.Security"):
        open_one(security={"insecure": True})


def test_seconds_are_any_real_number() -> None:
    weir.Trainer("policy", timeout=np.float32(5), lease=np.int64(60)).close()
    for bad in (np.float32("nan"), -1, True, "5"):
        with pytest.raises(weir.CallError, match="^timeout: "):
            weir.Trainer("policy", timeout=bad)


def test_packages_are_there_by_name_and_bring_nothing_before() -> None:
    code = (
        "import sys, weir\n"
        "assert not {'weir.sglang', 'weir.vllm', 'weir.frameworks'} & set(sys.modules)\n"
        "assert {'sglang', 'vllm', 'frameworks'} <= set(dir(weir))\n"
        "weir.sglang.client.Client, weir.vllm.settings.Settings\n"
        "weir.engines.worker_settings.Settings\n"
        "assert 'torch' not in sys.modules\n"
        "weir.frameworks.prime_rl.WeirWeightBroadcast\n"
        "assert not hasattr(weir.sglang, 'nothing') and not hasattr(weir, 'nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
