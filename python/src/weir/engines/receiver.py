# SPDX-License-Identifier: Apache-2.0
"""One worker of an engine as a replica of Weir's, whatever the engine calls it through.

Takes a torch module, its config and the worker's place; gives an installed version or an error.
Before an install the parameters must be where they were bound, and after it they still are, so
that captured CUDA graphs stay good. Nothing live changes before all workers of the engine have the
version, verified; where one fails, all hold the version before.

It pauses no scheduler and empties no cache: whoever drives the engine does.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Union

from weir import Replica, Report, Security

from . import Refused
from .agreement import Agreement
from .live_parameters import LiveModel, LiveParameter, addresses
from .placement import Placement, experts_json
from .worker_settings import Settings

logger = logging.getLogger("weir.engines")


def _with_aliases(hf_config: Any) -> Dict[str, Any]:
    """As config.json has it: transformers keeps some keys under another name of its own, and tells
    in `attribute_map` which."""
    config = dict(hf_config.to_dict())
    for alias, kept_as in (getattr(hf_config, "attribute_map", None) or {}).items():
        if kept_as in config:
            config.setdefault(alias, config[kept_as])
    inner = getattr(hf_config, "text_config", None)
    if hasattr(inner, "to_dict"):
        config["text_config"] = _with_aliases(inner)
    return config


def _json(value: Any) -> Any:
    """What JSON can say; the rest (limits that are infinite, dtypes) decides no shape."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def engine_config(hf_config: Any, dtype: Any = None) -> Dict[str, Any]:
    """The content of config.json that the engine runs: a transformers config or a mapping.

    `dtype`: what the engine computes in, where that is not what config.json says.
    """
    given = hf_config if isinstance(hf_config, Mapping) else _with_aliases(hf_config)
    config: Dict[str, Any] = _json(given)
    named = str(dtype or config.get("torch_dtype") or config.get("dtype") or "bfloat16")
    config["torch_dtype"] = named.replace("torch.", "")
    config.pop("dtype", None)
    return config


def _conversion_of(live: LiveModel, settings: Settings) -> str:
    seen = live.conversion or "bf16_cast"
    asked = settings.conversion
    if asked not in (None, "auto", seen):
        raise Refused(f"conversion {asked} was asked for, the engine's layers hold {seen}")
    return seen


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


class Receiver:
    """A worker that installs versions.

    `placement`: this worker's place in its engine; its mesh is what the trainer publishes for.
    `find`: what finds the engine's parameters. `experts_of`: the ids of a worker's experts in slot
    order, None where it holds all; needed where experts are spread over all workers. Made by all
    workers of the engine at once. Raises Refused for an engine or a parameter that Weir does not
    write into, weir.WeirError for what the replica or its directory refuses.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        *,
        config: Any,
        placement: Placement,
        model_name: str,
        find: Callable[..., LiveModel],
        experts_of: Callable[[Any], Optional[List[int]]] = lambda model: None,
        dtype: Any = None,
    ) -> None:
        self.settings = settings
        self._experts_of = experts_of
        self._live = find(model, settings.ignore, is_padded=placement.mesh is not None)
        self._device = self._live.parameters[0].memory.device if self._live.parameters else None
        self._agreement: Optional[Agreement] = None
        self._replica: Optional[Replica] = None
        self._unused: List[str] = []
        try:
            if placement.n_workers > 1:
                self._agreement = Agreement(placement, settings.agreement_seconds)
            experts = self._gather_experts(model, placement)
            self._replica = self._open(config, dtype, placement, model_name, experts)
            self._bind()
        except BaseException:
            self.close()
            raise
        self._bound_at = addresses(self._live.parameters)

    # ---- before the first version ----------------------------------------------------------------

    def _gather_experts(self, model: Any, placement: Placement) -> Optional[str]:
        if not placement.expert_parallel or placement.ep_size == 1:
            return None
        mine = self._experts_of(model) or []
        if self._agreement is None:
            return experts_json([mine]) if mine else None
        workers = self._agreement.gather(mine, most=4096)
        by_rank: List[List[int]] = [[] for _ in range(placement.ep_size)]
        for worker, ids in enumerate(workers):
            place = worker // placement.tp_size
            rank = (place // placement.pp_size) * placement.tp_size + worker % placement.tp_size
            if ids and by_rank[rank] and by_rank[rank] != ids:
                raise Refused(
                    f"pipeline stages place experts differently: {by_rank[rank][:8]} and {ids[:8]}"
                )
            by_rank[rank] = by_rank[rank] or ids
        return experts_json(by_rank)

    def _open(
        self, config: Any, dtype: Any, placement: Placement, model_name: str, experts: Optional[str]
    ) -> Replica:
        s = self.settings
        alone = self._agreement is None
        return Replica(
            s.model or model_name,
            directory=s.directory,
            config=engine_config(config, dtype),
            run=s.run,
            name=s.name,
            family=s.family,
            layout=s.layout,
            conversion=_conversion_of(self._live, s),
            transport=s.transport,
            wire=s.wire,
            install=s.install,
            timeout=s.timeout,
            lease=s.lease,
            n_threads=s.n_threads,
            mesh=placement.mesh,
            worker=placement.worker,
            experts=experts,
            window_bytes=s.window_bytes,
            listen=s.listen,
            transport_directory=s.transport_directory,
            security=Security(**s.security) if s.security else None,
            pause=self._synchronize,
            resume=self._copy_derived,
            agree=None if alone else self._agree,
        )

    def _bind(self) -> None:
        assert self._replica is not None
        parameters = {p.name: p.tensor for p in self._live.parameters}
        unused = self._replica.register(parameters, extras="ignore")
        names = {p.name: p.engine_name for p in self._live.parameters}
        self._unused = [names[n] for n in unused]
        if self._unused:
            raise Refused(
                f"the family has no parameter for {_few(self._unused)}: they would keep the "
                "weights they came with; ignore=[...] says that they may"
            )
        if self._live.ignored:
            logger.warning(
                "%d parameters keep the weights they came with: %s",
                len(self._live.ignored),
                ", ".join(self._live.ignored[:8]),
            )

    # ---- what the replica calls ------------------------------------------------------------------

    def _agree(self, version: int, error: Optional[BaseException]) -> bool:
        assert self._agreement is not None
        return self._agreement.agree(version, error)

    def _synchronize(self) -> None:
        """Kernels that were started before the engine paused may still read the parameters."""
        if self._device is not None and self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    def _copies(self) -> List[LiveParameter]:
        return [p for p in self._live.parameters if p.is_copied]

    def _copy_derived(self) -> None:
        """W_UV and W_UK_T where the engine keeps them with strides, which no kernel of Weir's
        writes: from the memory beside them. Of one whole version, be it the one before: where an
        install is undone they are computed again from what came back, and only then resumed."""
        for parameter in self._copies():
            parameter.memory.data.copy_(parameter.tensor)
        self._synchronize()

    # ---- versions --------------------------------------------------------------------------------

    def check_addresses(self) -> None:
        """Raises Refused when the engine has moved a parameter since it was bound."""
        for name, address in addresses(self._live.parameters).items():
            if address != self._bound_at[name]:
                raise Refused(
                    f"parameter {name} was bound at 0x{self._bound_at[name]:x} and is at "
                    f"0x{address:x}: the engine has replaced it; init binds it again"
                )

    def install(self, version: Union[int, str]) -> Report:
        """Installs one version into the live parameters, or leaves them as they were.

        Blocks for at most settings.timeout per stop. Raises weir.WeirError or Refused.
        """
        if self._replica is None:
            raise Refused("not initialised, or shut down: call init first")
        self.check_addresses()
        report = self._replica.install(version)
        self.check_addresses()
        return report

    @property
    def version(self) -> int:
        """The version that is held; 0: none."""
        return int(self._replica.version) if self._replica is not None else 0

    def state(self) -> Dict[str, Any]:
        """What a person wants to know, as JSON values."""
        replica = self._replica
        return {
            "state": replica.state.name if replica is not None else "closed",
            "version": self.version,
            "conversion": self._live.conversion or "bf16_cast",
            "n_parameters": len(self._live.parameters),
            "n_bytes": sum(
                p.tensor.numel() * p.tensor.element_size() for p in self._live.parameters
            ),
            "n_copied": len(self._copies()),
            "ignored": list(self._live.ignored),
        }

    def cancel(self) -> None:
        """Ends an install that waits, from another thread."""
        if self._replica is not None:
            self._replica.cancel()

    def close(self) -> None:
        """Lets go of the parameters. Twice does no harm."""
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.close()
        agreement, self._agreement = self._agreement, None
        if agreement is not None:
            agreement.close()
