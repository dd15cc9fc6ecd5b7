# SPDX-License-Identifier: Apache-2.0
"""prime-rl's weight broadcast: Weir in its trainer, and in the workers of its inference servers.

Trainer, where `setup_weight_broadcast()` makes the broadcast of the configured type:

    from weir.frameworks.prime_rl import WeirWeightBroadcast
    return WeirWeightBroadcast(output_dir, config)

Inference, instead of prime-rl's own worker:

    worker_extension_cls = "weir.frameworks.prime_rl.WeirWeightUpdateWorker"

The configuration's NCCL block stays as it is: host, port, timeout, inference_world_size and
quantize_in_weight_transfer mean here what they mean there. At host:port rank 0 runs Weir's
directory (it must then listen for the servers: TLS and a token, or WEIR_INSECURE=1). With the flag
kernel bytes travel, fp8_128x128 unless the engine's config.json says otherwise; without it the
checkpoint in bf16, which each worker fuses, cuts and converts. Every rank sends what it holds:
nothing is gathered.

A step is the version, so steps grow from 1 on. prime-rl is imported only where it is installed.
"""

from __future__ import annotations

import os
import pathlib
import socket
import time
from typing import Any, List, Mapping, Optional, Union

from weir.errors import CallError, TimedOut
from weir.frameworks.markers import await_ready, set_stable, step_directory, step_of
from weir.shards import is_sharded, torch_ranks
from weir.vllm.extension import WeirWorkerExtension

MODEL = "policy"
ANY_HOST = ("", "0.0.0.0", "::")

try:
    from prime_rl.trainer.rl.broadcast.base import WeightBroadcast as _BroadcastBase
except ImportError:
    _BroadcastBase = object
try:
    from prime_rl.transports.weights.base import WeightSender as _SenderBase
except ImportError:
    _SenderBase = object


def _field(config: Any, name: str, default: Any) -> Any:
    """Of the configuration's block: an object, or a mapping of the same."""
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    return default if value is None else value


def _config_of(model: Any) -> Optional[Mapping[str, Any]]:
    config = getattr(model, "config", None)
    if config is None or isinstance(config, Mapping):
        return config
    as_dict = getattr(config, "to_dict", None)
    told: Optional[Mapping[str, Any]] = as_dict() if as_dict is not None else None
    return told


def _reachable(host: str) -> str:
    """The host by which this run's other ranks find the directory that listens at `host`."""
    return os.environ.get("MASTER_ADDR", "127.0.0.1") if host in ANY_HOST else host


def _await_listener(host: str, port: int, timeout: float) -> None:
    """Ranks and servers may be told of a directory that is still starting."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, timeout)).close()
            return
        except OSError as problem:
            if time.monotonic() >= deadline:
                raise TimedOut(
                    f"no trainer's directory at {host}:{port} within {timeout:g} s: {problem}"
                ) from problem
        time.sleep(0.1)


class Broadcaster:
    """One trainer rank. Options: `model`, the name that the servers' workers ask for;
    `engine_config`, the engine's config.json as a path or a mapping (None: the model's own,
    unquantised); and `replica_mesh`, `conversion`, `transport` and what else `weir.Trainer`
    takes."""

    def __init__(
        self, config: Any, *, model: str = MODEL, engine_config: Any = None, **options: Any
    ) -> None:
        self._name, self._engine_config, self._options = model, engine_config, options
        self._host = str(_field(config, "host", "localhost"))
        self._port = int(_field(config, "port", 29501))
        self.timeout = float(_field(config, "timeout", 1200))
        self.n_workers = int(_field(config, "inference_world_size", 1))
        self._is_kernel = bool(_field(config, "quantize_in_weight_transfer", False))
        self._run = _field(config, "session_id", None)
        self._directory: Any = None
        self._trainer: Any = None
        self._registered: Any = None
        self.last = 0
        self.rank, self.n_ranks = torch_ranks() or (0, 1)
        if self.rank == 0:
            self._open_directory()

    def _open_directory(self) -> None:
        import weir

        # A name would be resolved to what the servers reach; the directory listens at addresses.
        host = "127.0.0.1" if self._host == "localhost" else self._host or "0.0.0.0"
        self._directory = weir.Directory(
            f"{host}:{self._port}", security=self._options.get("security")
        )

    @property
    def directory(self) -> str:
        """ "HOST:PORT" by which this rank reaches the directory."""
        host = "127.0.0.1" if self._host == "localhost" else _reachable(self._host)
        if self._directory is not None:
            return f"{host}:{self._directory.address.rpartition(':')[2]}"
        return f"{host}:{self._port}"

    def _open_trainer(self, model: Any) -> Any:
        import weir

        options = {"timeout": self.timeout, "run": self._run, **self._options}
        config = self._engine_config if self._engine_config is not None else _config_of(model)
        if self._is_kernel and self._engine_config is None:
            options.setdefault("conversion", "fp8_128x128")
        wire = "kernel" if self._is_kernel else "checkpoint"
        return weir.Trainer(
            self._name, config=config, directory=self.directory, wire=wire, **options
        )

    def check_step(self, step: int) -> None:
        """Raises CallError for a step that is no version, or does not grow."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise CallError(f"step {step!r}: steps that are broadcast count from 1")
        if step <= self.last:
            raise CallError(f"step {step} does not grow: step {self.last} was broadcast before")

    def publish(self, model: Any, step: int) -> None:
        """Publishes what this rank holds of the model. Collective where weights are sharded."""
        self.check_step(step)
        if self.rank != 0 and not self._is_sharded(model):
            self.last = step
            return
        if self._trainer is None:
            host, _, port = self.directory.rpartition(":")
            _await_listener(host, int(port), self.timeout)
            self._trainer = self._open_trainer(model)
        if self._registered is not model:
            self._trainer.register(model)
            self._registered = model
        self._trainer.publish(step)
        self.last = step

    @staticmethod
    def _is_sharded(model: Any) -> bool:
        weights = model.values() if isinstance(model, Mapping) else model.state_dict().values()
        return any(is_sharded(weight) for weight in weights)

    def wait(self, step: int) -> None:
        """Rank 0: until all workers of all servers hold the step. TimedOut names who has."""
        if self.rank == 0:
            self._trainer.wait(step, self.n_workers)

    def close(self) -> None:
        """Takes back what was published. May be called twice."""
        for handle in (self._trainer, self._directory):
            if handle is not None:
                handle.close()
        self._trainer = self._directory = self._registered = None


class WeirWeightBroadcast(_BroadcastBase):  # type: ignore[misc,unused-ignore]
    """In the place of prime-rl's NCCLWeightBroadcast: broadcast_weights(model, step).

    `runs` is prime-rl's, where a trainer trains several (used_idxs, ready_to_update, get_run_dir,
    progress); None: the one whose output directory is given. `markers=False`: nobody waits for
    marker files, as with `weir orchestrate`, which asks the directory. Other options: Broadcaster.
    """

    def __init__(
        self,
        output_dir: Union[str, pathlib.Path],
        config: Any,
        device: Any = None,
        dtype: Any = None,
        *,
        lora_config: Any = None,
        runs: Any = None,
        markers: bool = True,
        **options: Any,
    ) -> None:
        if lora_config is not None:
            raise CallError("Weir's weight broadcast does not support LoRA")
        if _BroadcastBase is not object:
            super().__init__(pathlib.Path(output_dir), lora_config)
        self.output_dir = pathlib.Path(output_dir)
        self.runs = runs
        self._markers = markers
        self.broadcaster = Broadcaster(config, **options)

    def broadcast_weights(self, model: Any, step: int) -> None:
        """Publishes the model as version `step`, tells the orchestrator, and returns on rank 0 when
        all workers hold it. The weights may change as soon as it returns. Raises WeirError: what a
        server has not done in time is named, and the next step can be broadcast."""
        self.broadcaster.publish(model, step)
        if self.broadcaster.rank != 0:
            return
        if self._markers:
            told = [directory for directory in self._notify(step) if set_stable(directory)]
            deadline = time.monotonic() + self.broadcaster.timeout
            ready = [await_ready(d, max(0.0, deadline - time.monotonic())) for d in told]
            if not any(ready):
                return  # all of their runs are deleted: nobody will take it
        self.broadcaster.wait(step)

    def _notify(self, step: int) -> List[pathlib.Path]:
        """The directories of the step, of each run that is ready for it; then it is not."""
        if self.runs is None:
            return [step_directory(self.output_dir, step)]
        found = []
        for index in self.runs.used_idxs:
            if not self.runs.ready_to_update[index]:
                continue
            self.runs.ready_to_update[index] = False
            run_step = int(self.runs.progress[index].step)
            found.append(step_directory(self.runs.get_run_dir(index), run_step))
        return found

    def shutdown(self) -> None:
        """Takes back what was published."""
        self.broadcaster.close()


class WeirWeightSender(_SenderBase):  # type: ignore[misc,unused-ignore]
    """The same for versions of prime-rl whose WeightSender.broadcast(model, step) does the
    handshake and asks a transport for _broadcast() alone."""

    def __init__(self, output_dir: Union[str, pathlib.Path], config: Any, **options: Any) -> None:
        self.broadcaster = Broadcaster(config, **options)
        if _SenderBase is not object:
            super().__init__(pathlib.Path(output_dir), int(self.broadcaster.timeout))

    def _broadcast(self, model: Any, step: int, step_dir: Any) -> None:
        """Publishes and, on rank 0, waits until all workers hold it: they are told already."""
        self.broadcaster.publish(model, step)
        self.broadcaster.wait(step)


def setup_weight_broadcast(
    output_dir: Union[str, pathlib.Path], config: Any, lora_config: Any = None
) -> WeirWeightBroadcast:
    """Of the same arguments as prime-rl's function of this name."""
    return WeirWeightBroadcast(output_dir, config, lora_config=lora_config)


# ---- inference -----------------------------------------------------------------------------------


class WeirWeightUpdateWorker(WeirWorkerExtension):
    """Weir's worker extension for vLLM, with the methods that prime-rl's server calls on every
    worker.

    `weir_model` is the name that the trainer publishes; subclass it where that is another one.
    Installs are staged: one that fails leaves the version before, on every worker of the engine.
    """

    weir_model = MODEL

    def init_broadcaster(
        self,
        host: str,
        port: int,
        rank_offset: int = 0,
        inference_world_size: int = 0,
        timeout: float = 1200,
        quantize_in_weight_transfer: bool = False,
        session_id: Optional[str] = None,
        *,
        server_rank: Optional[int] = None,
        num_inference_server: Optional[int] = None,
        engine_world_size: Optional[int] = None,
    ) -> None:
        """Joins the trainer's directory at host:port, once it listens, within `timeout` seconds.

        The fields of older servers (server_rank, num_inference_server, in the places of rank_offset
        and inference_world_size too) and of newer ones are taken alike: where a worker stands in
        its engine is the engine's to say, so they are only checked. Called again, it joins anew.
        """
        first = server_rank if server_rank is not None else rank_offset
        n_all = num_inference_server if num_inference_server is not None else inference_world_size
        if first < 0 or (n_all and first >= n_all):
            raise ValueError(f"rank {first} is beyond the group of {n_all}")
        if not host or not 0 < int(port) < 65536 or timeout <= 0:
            raise ValueError(
                f"host {host!r}, port {port!r}, timeout {timeout!r}: address and seconds are wanted"
            )
        _await_listener(host, int(port), float(timeout))
        self.weir_init(
            directory=f"{host}:{port}",
            model=self.weir_model,
            run=session_id,
            wire="kernel" if quantize_in_weight_transfer else "checkpoint",
            timeout=float(timeout),
        )

    def update_weights_from_path(self, weight_dir: Optional[str] = None) -> None:
        """Installs the version of ".../step_N"; None: the newest. Raises WeirError; all workers
        then hold the one before."""
        self.weir_update("latest" if weight_dir is None else step_of(weight_dir))

    def liveness_probe(self) -> None:
        """Answers, and does nothing."""
