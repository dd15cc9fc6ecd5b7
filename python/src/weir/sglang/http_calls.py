# SPDX-License-Identifier: Apache-2.0
"""Calls on one SGLang server: JSON over HTTP, each within a bound, with the standard library
alone."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from typing import Any, Mapping, Optional

from weir.errors import CallError, PeerError, Status, TimedOut

MOST_ANSWER_BYTES = 16 * 1024 * 1024


class CallRefused(PeerError):
    """The server answered, but not with 2xx. `code` is what it answered with."""

    default_status = Status.ERR_REFUSED

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _text_of(content: bytes) -> str:
    """What an error's body says, in one line."""
    try:
        told = json.loads(content)
    except ValueError:
        told = content.decode("utf-8", "replace")
    if isinstance(told, dict):
        inner = told.get("error")
        inner = inner.get("message") if isinstance(inner, dict) else inner
        told = told.get("message") or inner or told.get("detail") or told
    return " ".join(str(told).split())[:1000]


class Server:
    """One server at `address`: "HOST:PORT", or a URL. `token`: its API or admin key. `ca`: a PEM
    file that certificates must be signed by. A token does not travel beyond this machine in the
    clear."""

    def __init__(
        self, address: str, *, token: Optional[str] = None, ca: Optional[str] = None
    ) -> None:
        url = address if "://" in address else f"http://{address}"
        self.url = url.rstrip("/")
        self.name = self.url.partition("://")[2]
        self._token = token
        self._context = ssl.create_default_context(cafile=ca) if url.startswith("https:") else None
        if not url.startswith(("http://", "https://")):
            raise CallError(f"'{address}': HOST:PORT, or a URL of http or https, is wanted")
        host = self.name.rpartition(":")[0].strip("[]") or self.name
        if token and self._context is None and host not in ("localhost", "127.0.0.1", "::1"):
            raise CallError(f"{self.name}: a token would travel in the clear: give an https URL")

    def call(self, path: str, body: Optional[Mapping[str, Any]], timeout: float) -> Any:
        """POSTs `body`, or GETs where it is None. Returns what the JSON of the answer is.

        Raises TimedOut, PeerError for a server that is not there, CallRefused for a refusal: each
        names server and call.
        """
        data = None if body is None else json.dumps(body).encode("utf-8")
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        what = f"{self.name}: {'GET' if data is None else 'POST'} {path}"
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self._context) as answer:
                content = answer.read(MOST_ANSWER_BYTES)
        except urllib.error.HTTPError as refusal:
            with refusal:
                text = _text_of(refusal.read(64 * 1024))
            raise CallRefused(f"{what}: {refusal.code}: {text}", refusal.code) from None
        except TimeoutError as problem:
            raise TimedOut(f"{what}: no answer within {timeout:g} s") from problem
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
            reason = getattr(problem, "reason", problem)
            if isinstance(reason, TimeoutError):
                raise TimedOut(f"{what}: no answer within {timeout:g} s") from problem
            raise PeerError(f"{what}: {reason or type(problem).__name__}") from problem
        if not content.strip():
            return None
        try:
            return json.loads(content)
        except ValueError as problem:
            raise PeerError(f"{what}: the answer is no JSON: {content[:80]!r}") from problem

    def call_ok(self, path: str, body: Mapping[str, Any], timeout: float) -> Any:
        """The same of a call that answers {"success": …, "message": …}."""
        answer = self.call(path, body, timeout)
        if isinstance(answer, dict) and answer.get("success") is False:
            message = _text_of(json.dumps(answer).encode("utf-8"))
            raise CallRefused(f"{self.name}: POST {path}: {message}", 200)
        return answer


def base64_text(content: bytes) -> str:
    """As JSON carries bytes to SGLang."""
    return base64.b64encode(content).decode("ascii")
