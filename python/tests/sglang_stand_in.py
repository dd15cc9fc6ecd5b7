# SPDX-License-Identifier: Apache-2.0
"""What stands in for SGLang in its tests: a model as it keeps one, its parallel state, and a server
that answers its endpoints. Where SGLang itself is installed its own classes answer instead:
test_sglang.py."""
from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import pickle
import sys
import threading
import types

import tiny_model as tiny
import torch

import weir
from weir.sglang import LOADER, loader

torch.set_num_threads(1)


# ---- a model
# ----------------------------------------------------------------------------------------


def module_at(root, path):
    for part in path.split(".") if path else ():
        if not hasattr(root, part):
            root.add_module(part, torch.nn.Module())
        root = getattr(root, part)
    return root


def model_of(parameters, config):
    """A module tree with these parameters by name, of zeros, and a config as SGLang's models
    have."""
    root = torch.nn.Module()
    root.config = config
    for name, (dtype, shape) in parameters.items():
        path, _, attribute = name.rpartition(".")
        memory = torch.zeros(shape, dtype=dtype)
        module_at(root, path).register_parameter(
            attribute, torch.nn.Parameter(memory, requires_grad=False))
    return root


def tiny_engine():
    """The tiny model as an engine keeps it: fused, bf16, not quantised."""
    fused = tiny.fused(tiny.bits(1))
    return model_of({name: (torch.bfloat16, value.shape) for name, value in fused.items()},
                    dict(tiny.CONFIG))


def tensor_parallel_engine(rank, directory):
    """The part of the tiny model that worker `rank` of two has: dtypes and shapes as Weir cuts
    it."""
    with weir.Replica("policy", directory=directory, config=tiny.CONFIG, mesh="tp=2",
                      worker=rank, name=f"shapes-{rank}") as replica:
        replica.allocate()
        shapes = {name: (torch.bfloat16, tensor.shape)
                  for name, tensor in replica.parameters.items()}
    return model_of(shapes, dict(tiny.CONFIG))


def bytes_of(tensor):
    return bytes(tensor.detach().contiguous().view(torch.uint8).flatten().numpy())


def expect_engine_holds(model, version):
    held = dict(model.named_parameters())
    for name, value in tiny.fused(tiny.bits(version)).items():
        assert bytes_of(held[name]) == value.tobytes(), f"{name} is not that of version {version}"


# ---- its parallel state
# -------------------------------------------------------------------------------


def group(rank, size):
    return types.SimpleNamespace(rank_in_group=rank, world_size=size)


@contextlib.contextmanager
def parallel_state(rank=0, size=1, *, pp=1, attention=None, experts=(0, 1), older=False,
                   **settings):
    """SGLang's modules as this worker would find them; `older`: before runtime_context had
    groups."""
    groups = {"tp": group(rank, size), "pp": group(0, pp), "attn_tp": group(0, attention or size),
              "moe_ep": group(*experts)}
    state = types.ModuleType("sglang.srt.distributed.parallel_state")
    context = types.ModuleType("sglang.srt.runtime_context")
    context.get_server_args = lambda: types.SimpleNamespace(**settings)
    if older:
        for name, value in groups.items():
            setattr(state, f"get_{name}_group", lambda value=value: value)
    else:
        here = types.SimpleNamespace(**{f"{name}_group": value for name, value in groups.items()})
        context.get_parallel = lambda: here
    distributed = types.ModuleType("sglang.srt.distributed")
    distributed.parallel_state = state
    names = {"sglang": types.ModuleType("sglang"), "sglang.srt": types.ModuleType("sglang.srt"),
             distributed.__name__: distributed, state.__name__: state, context.__name__: context}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


# ---- its server
# ---------------------------------------------------------------------------------------


class OnlyByteTensors(pickle.Unpickler):
    """Reads what the wish may be made of, and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ("torch", "ByteTensor"):
            return torch.ByteTensor
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_payload(payload):
    return OnlyByteTensors(io.BytesIO(payload)).load()


class Engine:
    """Answers as SGLang 0.5.23 does: `begin`, `update` and `end` belong together, a loader that
    raises ends the server. `fails`: path -> (code, answer), or a function that makes one."""

    def __init__(self, model=None, *, has_sessions=True, n_ranks=1):
        self.model, self.has_sessions, self.n_ranks = model, has_sessions, n_ranks
        self.calls, self.bodies, self.fails = [], [], {}
        self.is_paused = self.in_session = False
        self.weight_version = "default"
        self.loaders = [LOADER]

    def answer(self, path, body):
        self.calls.append(path)
        self.bodies.append(body)
        if path in self.fails:
            failure = self.fails[path]
            return failure(body) if callable(failure) else failure
        method = getattr(self, "do" + path.replace("/", "_"), None)
        if method is None or (not self.has_sessions and path.endswith("_weight_update")):
            return 404, {"detail": "Not Found"}
        return method(body)

    def do_server_info(self, _):
        return 200, {"tp_size": self.n_ranks, "custom_weight_loader": self.loaders}

    def do_pause_generation(self, body):
        assert body["mode"] in ("abort", "retract", "in_place")
        self.is_paused = True
        return 200, {"status": "ok"}

    def do_continue_generation(self, _):
        self.is_paused = False
        return 200, {"status": "ok"}

    def do_begin_weight_update(self, body):
        assert body == {"selector": "draft"}
        if self.in_session:
            return 400, {"success": False, "message": "a weight-update session is already open; "
                                                      "call end_weight_update() first"}
        self.in_session = True
        return 200, {"success": True, "message": "Success"}

    def do_end_weight_update(self, _):
        if not self.in_session:
            return 400, {"success": False, "message": "no weight-update session is open"}
        self.in_session = False
        return 200, {"success": True, "message": "Success"}

    def do_update_weights_from_tensor(self, body):
        if self.has_sessions and not self.in_session:
            return 400, {"success": False, "message": "must run between begin and end"}
        assert self.is_paused and body["load_format"] == LOADER and body["selector"] == "target"
        assert len(body["serialized_named_tensors"]) == self.n_ranks
        payload = base64.b64decode(body["serialized_named_tensors"][0], validate=True)
        loader.install(self.model, read_payload(payload))
        return 200, {"success": True, "message": "Success"}

    def do_get_weights_by_name(self, body):
        try:
            return 200, self.model.get_weights_by_name(body["name"], 100, tp_size=1)
        except AttributeError:
            return 400, {"error": {"message": "Get parameter by name failed"}}

    def do_update_weight_version(self, body):
        assert body["abort_all_requests"] is False
        self.weight_version = body["new_version"]
        return 200, {"success": True, "message": "ok"}


class _Handler(http.server.BaseHTTPRequestHandler):
    def _answer(self, body):
        token = self.headers.get("Authorization")
        if self.server.token is not None and token != f"Bearer {self.server.token}":
            code, told = 401, {"error": "Unauthorized"}
        else:
            code, told = self.server.engine.answer(self.path, body)
        if code is None:  # the server dies over it
            self.close_connection = True
            return
        content = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # who asked has gone away
            self.end_headers()
            self.wfile.write(content)

    def do_GET(self):
        self._answer(None)

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(engine, token=None):
    """Runs the server; gives its "HOST:PORT"."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.engine, server.token, server.daemon_threads = engine, token, True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
