# SPDX-License-Identifier: Apache-2.0
"""serve_replica.py - an inference server whose weights follow a trainer.

    python train_publish.py                          prints the directory's address
    python serve_replica.py --directory ADDRESS      prints its own, then a line per version
    curl 'http://ADDRESS/generate?tokens=3,5,7&n=2'  {"version": 60, "tokens": [3, 5, 7, 9, 11]}

While a version goes in, requests wait: `pause` takes the lock that they compute under, `resume`
gives it back. If an install fails half way nothing resumes, and requests are answered with 503.
"""
from __future__ import annotations

import argparse
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import torch
from torch import Tensor

import weir
from tiny_engine import engine_logits, engine_parameters
from tiny_lm import CONFIG


class Engine:
    """Live parameters, and the lock under which they are read and replaced."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.parameters: dict[str, Tensor] = engine_parameters(device)
        self.lock = threading.Lock()
        self.version = 0

    def pause(self) -> None:
        if not self.lock.acquire(timeout=30):
            raise TimeoutError("a request has run for 30 s")

    def installed(self, version: int) -> None:
        self.version = version

    def resume(self) -> None:
        self.lock.release()

    def generate(self, tokens: list[int], n: int) -> dict[str, object]:
        if not self.lock.acquire(timeout=30):
            raise TimeoutError("no whole version is held")
        try:
            for _ in range(n):
                scores = engine_logits(self.parameters, torch.tensor([tokens], device=self.device))
                tokens = [*tokens, int(scores[0, -1].argmax())]
            return {"version": self.version, "tokens": tokens}
        finally:
            self.lock.release()


def handler(engine: Engine) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                asked = parse_qs(urlsplit(self.path).query)
                tokens = [int(t) % CONFIG["vocab_size"] for t in asked["tokens"][0].split(",")]
                n = min(int(asked.get("n", ["1"])[0]), 64)
                code, answer = 200, engine.generate(tokens, n)
            except (KeyError, ValueError):
                code, answer = 400, {"error": "/generate?tokens=1,2,3&n=4"}
            except TimeoutError as error:
                code, answer = 503, {"error": str(error)}
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", required=True, help="HOST:PORT that the trainer printed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    engine = Engine(args.device)
    server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(engine))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with weir.Replica("counter", directory=args.directory, config=CONFIG, pause=engine.pause,
                      postprocess=engine.installed, resume=engine.resume) as replica:
        replica.register(engine.parameters)
        print(f"serving on 127.0.0.1:{server.server_port}", flush=True)
        try:
            for report in replica.watch():
                print(f"version {report.version} in {report.total_seconds * 1e3:.1f} ms", flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)


if __name__ == "__main__":
    main()
