# SPDX-License-Identifier: Apache-2.0
"""A worker of vLLM's as a replica of Weir's: what all interfaces of vLLM have in common.

Brings what vLLM knows to `weir.engines.receiver`, which does the rest: how parameters are found,
which experts are here, the model's config and the worker's place.
"""

from __future__ import annotations

import json
import os
from typing import Any

from weir.engines.placement import Placement
from weir.engines.receiver import Receiver
from weir.engines.worker_settings import Settings

from .vllm_parameters import find_parameters, has_experts, local_experts
from .vllm_placement import placement_of_vllm


def open_receiver(
    model: Any,
    settings: Settings,
    *,
    config: Any,
    placement: Placement,
    model_name: str,
    dtype: Any = None,
) -> Receiver:
    """The receiver of a model of vLLM's, made by all workers of the engine at once."""
    return Receiver(
        model,
        settings,
        config=config,
        placement=placement,
        model_name=model_name,
        find=find_parameters,
        experts_of=local_experts,
        dtype=dtype,
    )


def config_of_vllm(model_config: Any) -> Any:
    """The model's config.json where it is served from a folder, which is what a trainer has too;
    else what transformers made of it."""
    path = os.path.join(str(model_config.model), "config.json")
    if not os.path.isfile(path):
        return model_config.hf_config
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def receiver_for_vllm(model: Any, vllm_config: Any, settings: Settings) -> Receiver:
    """The receiver of the worker that runs in this process, as vLLM's own state describes it."""
    model_config = vllm_config.model_config
    served = getattr(model_config, "served_model_name", None) or model_config.model
    return open_receiver(
        model,
        settings,
        config=config_of_vllm(model_config),
        dtype=model_config.dtype,
        placement=placement_of_vllm(vllm_config.parallel_config, has_experts(model)),
        model_name=served if isinstance(served, str) else served[0],
    )
