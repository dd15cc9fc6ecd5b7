# SPDX-License-Identifier: Apache-2.0
"""The driver: takes running SGLang servers from one version to the next, all of them or none.

    engines = weir.sglang.client.Client(["10.0.0.2:30000"], model="policy",
                                        directory="10.0.0.1:8500")
    trainer.publish(step)
    engines.update(step)

Per update, each call to all servers at once:

    look      GET /server_info: its ranks, and whether it has the loader
    pause     POST /pause_generation
    begin     POST /begin_weight_update, where this version of SGLang has it. For the draft model,
              so that SGLang repacks nothing of the one that Weir writes in kernels' bytes
    update    POST /update_weights_from_tensor, with the wish, for the target model
    end       POST /end_weight_update, whatever came of it
    ask       POST /get_weights_by_name: what the workers hold now, by their own word
    name      POST /update_weight_version
    resume    POST /continue_generation

Servers are resumed when all of them hold the same version whole, by what they have said after their
last order: the new one, or, where none has taken it, the one before. Else they stay paused, and the
error says which holds what; update() again, of this version or a newer one, mends that.

Neither SGLang nor torch is needed here. Weights do not pass through here.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, Union

from weir.errors import CallError, PeerError, Status, VersionError, WeirError

from . import LOADER, STATUS_NAME
from .http_calls import CallRefused, Server, base64_text
from .wish import Wish, WishError, payload_of, status_of

T = TypeVar("T")
WHOLE = ("holding", "empty")


@dataclass(frozen=True)
class Update:
    """What an update came to. `seconds`: of the whole; `paused_seconds`: without generation."""

    version: int
    seconds: float
    paused_seconds: float
    servers: Tuple[str, ...]


@dataclass
class _Outcome:
    """One server's, of one update. `holds`: (state, version); None: it has not said."""

    error: Optional[WeirError] = None
    holds: Optional[Tuple[str, Optional[int]]] = None

    def is_at(self, version: Union[int, str]) -> bool:
        if self.error is not None or self.holds is None or self.holds[0] != "holding":
            return False
        return version in ("latest", self.holds[1])


def _said(outcome: _Outcome) -> str:
    if outcome.holds is None:
        return "holds what nobody knows"
    state, version = outcome.holds
    if state == "empty":
        return "holds what it came with"
    return f"holds version {version}" if state == "holding" else "holds no whole version"


class Client:
    """Drives the servers at `addresses` ("HOST:PORT" or URLs).

    model, directory and **settings are what their workers are told: the fields of
    `weir.engines.worker_settings.Settings`, paths among them being those of the workers' machines.
    n_ranks  tensor parallel ranks of each server; None: as it says itself
    mode     of /pause_generation: "retract" lets requests wait and go on with the new weights,
             "abort" ends them, "in_place" keeps their KV cache of the old weights
    timeout  seconds that a version may take, from wish to answer; `call_timeout`: any other call
    token, ca  of the servers' HTTP side

    One update at a time. Raises CallError for what makes no sense.
    """

    def __init__(
        self,
        addresses: Union[str, Sequence[str]],
        *,
        model: str,
        directory: str,
        n_ranks: Optional[int] = None,
        mode: str = "retract",
        timeout: float = 120.0,
        call_timeout: float = 30.0,
        token: Optional[str] = None,
        ca: Optional[str] = None,
        **settings: Any,
    ) -> None:
        from weir.engines.worker_settings import Settings

        named = [addresses] if isinstance(addresses, str) else list(addresses)
        if not named or len(set(named)) != len(named):
            raise CallError(f"addresses {named}: one or several, each once")
        if mode not in ("abort", "retract", "in_place"):
            raise CallError(f"mode '{mode}': there are abort, retract and in_place")
        self._settings: Dict[str, Any] = {"model": model, "directory": directory, **settings}
        self._settings.setdefault("timeout", timeout / 2)
        try:
            Settings(**self._settings)
        except (TypeError, ValueError) as problem:
            raise CallError(str(problem)) from problem
        self._servers = [Server(address, token=token, ca=ca) for address in named]
        self._n_ranks = n_ranks
        self._ranks: Dict[str, int] = {}
        self._mode = mode
        self._timeout, self._call_timeout = timeout, call_timeout

    # ---- single calls ----------------------------------------------------------------------------

    def _check(self, server: Server) -> None:
        """Learns what one server is. One that has not the loader would end itself over the wish."""
        try:
            told = server.call("/server_info", None, self._call_timeout)
        except CallRefused as refusal:
            if refusal.code != 404:
                raise
            told = server.call("/get_server_info", None, self._call_timeout)
        told = told if isinstance(told, dict) else {}
        loaders = told.get("custom_weight_loader", [LOADER])
        if LOADER not in (loaders or []):
            raise CallError(f"{server.name}: is not run with --custom-weight-loader {LOADER}")
        n_ranks = self._n_ranks or told.get("tp_size")
        if not isinstance(n_ranks, int) or n_ranks < 1:
            raise PeerError(f"{server.name}: does not say its tp_size: give n_ranks")
        self._ranks[server.name] = n_ranks

    def _pause(self, server: Server) -> None:
        server.call("/pause_generation", {"mode": self._mode}, self._call_timeout)

    def _begin(self, server: Server) -> bool:
        """Whether this version of SGLang has sessions. One that a driver left open is closed."""
        for is_last in (False, True):
            try:
                server.call_ok("/begin_weight_update", {"selector": "draft"}, self._call_timeout)
                return True
            except CallRefused as refusal:
                if refusal.code == 404:
                    return False
                if is_last or "already open" not in str(refusal):
                    raise
                server.call_ok("/end_weight_update", {}, self._call_timeout)
        return True

    def _order(self, server: Server, version: Union[int, str]) -> None:
        payload = base64_text(payload_of(Wish(version, self._settings)))
        body = {
            "serialized_named_tensors": [payload] * self._ranks[server.name],
            "load_format": LOADER,
            "selector": "target",
            "flush_cache": self._mode != "in_place",
        }
        has_session = self._begin(server)
        try:
            server.call_ok("/update_weights_from_tensor", body, self._timeout)
        finally:
            if has_session:
                server.call_ok("/end_weight_update", {}, self._call_timeout)

    def _ask(self, server: Server) -> Mapping[str, Any]:
        answer = server.call("/get_weights_by_name", {"name": STATUS_NAME}, self._call_timeout)
        try:
            return status_of(answer)
        except WishError as problem:
            raise PeerError(
                f"{server.name}: {problem} (is it run with --custom-weight-loader {LOADER}?)"
            ) from problem

    def _order_and_ask(self, server: Server, version: Union[int, str]) -> _Outcome:
        outcome = _Outcome()
        try:
            self._order(server, version)
        except WeirError as problem:
            outcome.error = problem
        try:
            outcome.holds, failure = self._held_by(server)
        except CallRefused as refusal:
            # The loader answers for itself once it has run: an order that was refused as well has
            # not come as far.
            if isinstance(outcome.error, CallRefused):
                outcome.holds = ("empty", None)
            outcome.error = outcome.error or refusal
            return outcome
        except WeirError as problem:
            outcome.error = outcome.error or problem
            return outcome
        if failure and not outcome.error:
            outcome.error = VersionError(f"{server.name}: {failure}")
        if outcome.error is None and not outcome.is_at(version):
            outcome.error = VersionError(f"{server.name}: {_said(outcome)}, not {version}")
        return outcome

    def _held_by(self, server: Server) -> Tuple[Tuple[str, Optional[int]], str]:
        told = self._ask(server)
        return (str(told.get("state")), told.get("version")), str(told.get("error") or "")

    def _name_version(self, server: Server, version: int) -> None:
        """For /model_info; some versions of SGLang know no names."""
        body = {"new_version": str(version), "abort_all_requests": False}
        try:
            server.call_ok("/update_weight_version", body, self._call_timeout)
        except CallRefused as refusal:
            if refusal.code != 404:
                raise

    def _resume(self, server: Server) -> None:
        server.call("/continue_generation", {}, self._call_timeout)

    # ---- all servers -----------------------------------------------------------------------------

    def _all(self, call: Callable[[Server], T]) -> List[Union[T, WeirError]]:
        """The call on every server at the same time; an error stands where its result would."""

        def caught(server: Server) -> Union[T, WeirError]:
            try:
                return call(server)
            except WeirError as problem:
                return problem

        with ThreadPoolExecutor(max_workers=len(self._servers)) as pool:
            return list(pool.map(caught, self._servers))

    def _all_ok(self, call: Callable[[Server], T]) -> List[T]:
        results = self._all(call)
        errors = [result for result in results if isinstance(result, WeirError)]
        if errors:
            raise _of_several(errors)
        return [result for result in results if not isinstance(result, WeirError)]

    def update(self, version: Union[int, str]) -> Update:
        """Brings all servers to `version` (or "latest"), and has them go on.

        Blocks within the bounds. Raises WeirError, naming the servers that failed: all generate
        again if they hold one version whole, and stay paused otherwise.
        """
        begin = time.monotonic()
        payload_of(Wish(version, self._settings))
        self._pause_all()
        paused = time.monotonic()
        outcomes = self._all_ok(lambda server: self._order_and_ask(server, version))
        errors = [outcome.error for outcome in outcomes if outcome.error is not None]
        held = {outcome.holds for outcome in outcomes}
        if errors:
            self._after_failure(outcomes, errors)
        if len(held) != 1:
            raise VersionError("servers stay paused: " + self._who_holds(outcomes))
        installed = int(outcomes[0].holds[1] or 0) if outcomes[0].holds else 0
        named = self._all(lambda server: self._name_version(server, installed))
        self._all_ok(self._resume)
        unnamed = [result for result in named if isinstance(result, WeirError)]
        if unnamed:
            raise _of_several(unnamed)
        end = time.monotonic()
        names = tuple(server.name for server in self._servers)
        return Update(installed, end - begin, end - paused, names)

    def _pause_all(self) -> None:
        """Nothing has been ordered yet: those that were paused go on when another one cannot be,
        unless an update before has left the servers with different versions."""
        self._all_ok(self._check)
        results = self._all(self._pause)
        errors = [result for result in results if isinstance(result, WeirError)]
        if not errors:
            return
        pairs = zip(self._servers, results)
        paused = [server for server, result in pairs if not isinstance(result, WeirError)]
        held = {self._held_before(server) for server in self._servers}
        if len(held) == 1 and next(iter(held))[0] in WHOLE:
            for server in paused:
                self._resume(server)
        raise _of_several(errors)

    def _held_before(self, server: Server) -> Tuple[str, Optional[int]]:
        try:
            return self._held_by(server)[0]
        except CallRefused:
            return ("empty", None)
        except WeirError:
            return ("unknown", None)

    def _after_failure(self, outcomes: Sequence[_Outcome], errors: Sequence[WeirError]) -> None:
        """Raises. Servers that all hold the same, whole, go on with it."""
        held = {outcome.holds for outcome in outcomes}
        state = next(iter(held)) if len(held) == 1 else None
        if state is not None and state[0] in WHOLE:
            self._all(self._resume)
            raise _of_several(errors)
        raise _of_several(errors, "servers stay paused: " + self._who_holds(outcomes))

    def _who_holds(self, outcomes: Sequence[_Outcome]) -> str:
        pairs = zip(self._servers, outcomes)
        return ", ".join(f"{server.name} {_said(outcome)}" for server, outcome in pairs)

    def status(self) -> Dict[str, Mapping[str, Any]]:
        """What the workers of each server say of themselves, by its name: see
        weir.sglang.loader.Worker.status(). A server that was never updated cannot say."""
        names = [server.name for server in self._servers]
        return dict(zip(names, self._all_ok(self._ask)))


def _of_several(errors: Sequence[WeirError], more: str = "") -> WeirError:
    """One error that says what all do, of the class of the first."""
    if len(errors) == 1 and not more:
        return errors[0]
    message = "; ".join([str(error) for error in errors] + ([more] if more else []))
    first = errors[0]
    group = PeerError if isinstance(first, CallRefused) else type(first)
    return group(message, Status(first.status))
