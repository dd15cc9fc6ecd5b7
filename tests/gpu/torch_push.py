#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""torch_push.py - tensors that PyTorch owns, on both ends of a push.

A trainer process holds bf16 weights as torch tensors and writes them on a stream of its own, which it
never waits for; an engine process holds its parameters as torch tensors. Weir is called through ctypes
inside both, beside PyTorch's own context. Checked after every version: the engine's tensors hold the
new weights at their old addresses, PyTorch's current device is what it was. Before the first: memory
lies in expandable segments where PYTORCH_CUDA_ALLOC_CONF asks for them, and only there.

    torch_push.py [TRAINER_DEVICE ENGINE_DEVICE]      cuda:0 cuda:1 by default; cpu cpu needs no GPU

Needs torch, and libweir.so.0 on LD_LIBRARY_PATH. Ends with "torch_push: ok".
"""
import ctypes as C
import os
import sys
import tempfile

import torch
import torch.multiprocessing as mp

FAMILY, MODEL, VERSIONS, TIMEOUT_MS = b"llama", b"torch", 3, 20000
BF16, F32 = 11, 12
LATEST, DIRECT, PUSH = 2**64 - 1, 1, 2


class Shape(C.Structure):
    _fields_ = [("rank", C.c_uint32), ("dim", C.c_uint64 * 8)]

    def sizes(self):
        return list(self.dim[: self.rank])


class Tensor(C.Structure):
    _fields_ = [("name", C.c_char_p), ("dtype", C.c_int), ("shape", Shape), ("data", C.c_void_p)]


class Parameter(C.Structure):
    _fields_ = [("name", C.c_char_p), ("dtype", C.c_int), ("shape", Shape),
                ("compile_target", C.c_char_p), ("compile_metadata", C.c_char_p),
                ("entry", C.c_size_t), ("output", C.c_size_t), ("is_expert", C.c_bool)]


class MapEntry(C.Structure):
    _fields_ = [("name", C.c_char_p), ("conversion", C.c_void_p), ("sources", C.POINTER(Tensor)),
                ("n_sources", C.c_size_t), ("n_experts", C.c_size_t), ("axis", C.c_uint32),
                ("keep", C.c_bool), ("layer", C.c_int), ("shape", Shape),
                ("first_parameter", C.c_size_t), ("cut", C.c_int), ("n_parts", C.c_size_t),
                ("units", C.c_uint32 * 5), ("part_rows", C.c_uint64 * 5), ("tied", C.c_bool),
                ("bundle", C.c_size_t)]


class MappingOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("family", C.c_char_p), ("layout", C.c_char_p),
                ("conversion", C.c_char_p), ("config", C.c_void_p), ("ignore", C.c_void_p),
                ("n_ignore", C.c_size_t), ("unreadable", C.c_bool)]


class DirectoryOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("listen", C.c_char_p), ("stale_after_s", C.c_uint),
                ("delete_after_s", C.c_uint), ("sweep_every_s", C.c_uint)]


class TrainerOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("directory", C.c_char_p), ("model", C.c_char_p),
                ("run", C.c_char_p), ("rank", C.c_uint32), ("n_ranks", C.c_uint32),
                ("family", C.c_char_p), ("layout", C.c_char_p), ("conversion", C.c_char_p),
                ("config", C.c_char_p), ("transport", C.c_char_p),
                ("transport_directory", C.c_char_p), ("listen", C.c_char_p), ("n_slots", C.c_uint),
                ("n_threads", C.c_uint), ("timeout_ms", C.c_uint), ("lease_ms", C.c_uint),
                ("keep_masters", C.c_bool), ("ignore", C.c_void_p), ("n_ignore", C.c_size_t),
                ("progress", C.c_void_p), ("progress_context", C.c_void_p), ("delivery", C.c_int),
                ("window_bytes", C.c_uint64), ("scan_first", C.c_bool), ("stream", C.c_void_p)]


class ReplicaOptions(C.Structure):
    _fields_ = [("size", C.c_size_t), ("directory", C.c_char_p), ("model", C.c_char_p),
                ("run", C.c_char_p), ("name", C.c_char_p), ("family", C.c_char_p),
                ("layout", C.c_char_p), ("conversion", C.c_char_p), ("config", C.c_char_p),
                ("transport", C.c_char_p), ("transport_directory", C.c_char_p),
                ("listen", C.c_char_p), ("install", C.c_int), ("n_threads", C.c_uint),
                ("timeout_ms", C.c_uint), ("lease_ms", C.c_uint), ("hooks", C.c_void_p * 4),
                ("progress", C.c_void_p), ("progress_context", C.c_void_p), ("device", C.c_char_p),
                ("window_bytes", C.c_uint64)]


def load():
    weir = C.CDLL("libweir.so.0")
    weir.weir_last_error.restype = C.c_char_p
    weir.weir_directory_address.restype = C.c_char_p
    for name in ("weir_mapping_entries", "weir_mapping_parameters"):
        getattr(weir, name).restype = C.c_void_p
    return weir


def must(weir, status):
    if status != 0:
        raise RuntimeError(f"{status}: {weir.weir_last_error().decode()}")


def options(kind, **fields):
    made = kind(**fields)
    made.size = C.sizeof(kind)
    return made


def read_config(weir, path):
    config = C.c_void_p()
    must(weir, weir.weir_config_open(path, C.byref(config)))
    return config


def model_sources(weir, config):
    """The checkpoint's tensors as config.json describes them: descriptions without data."""
    tensors, n = C.POINTER(Tensor)(), C.c_size_t()
    must(weir, weir.weir_family_sources(FAMILY, config, 0, C.byref(tensors), C.byref(n)))
    return tensors, n.value


def model_mapping(weir, config, tensors, n):
    mapping = C.c_void_p()
    wish = options(MappingOptions, family=FAMILY, conversion=b"bf16_cast", config=config)
    must(weir, weir.weir_mapping_open(C.byref(wish), tensors, C.c_size_t(n), C.byref(mapping)))
    return mapping


def weights(tensors, n, version, device):
    """The same numbers on every device of one kind: a generator per tensor and version."""
    made = []
    for i in range(n):
        generator = torch.Generator(device=device).manual_seed(1000 * version + i)
        kind = torch.bfloat16 if tensors[i].dtype == BF16 else torch.float32
        made.append(torch.randn(tensors[i].shape.sizes(), generator=generator, device=device,
                                dtype=torch.float32).mul_(0.02).to(kind))
    return made


def check_segments(tensors, device):
    """A setting that PyTorch ignores would have this run prove the same as without it."""
    if not device.startswith("cuda"):
        return
    asked = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    segments = torch.cuda.memory_snapshot()
    for tensor in tensors:
        address = tensor.data_ptr()
        found = [s["is_expandable"] for s in segments
                 if s["address"] <= address < s["address"] + s["total_size"]]
        if found != [asked]:
            raise RuntimeError(f"{device}: expandable segments: asked {asked}, found {found}")
    print(f"{device}: expandable segments: {asked}", flush=True)


def train(address, config_path, device, installed, done):
    weir = load()
    on_gpu = device.startswith("cuda")
    config = read_config(weir, config_path)
    tensors, n = model_sources(weir, config)
    stream = torch.cuda.Stream(device) if on_gpu else None
    trainer = C.c_void_p()
    wish = options(TrainerOptions, directory=address, model=MODEL, family=FAMILY, config=config_path,
                   conversion=b"bf16_cast", timeout_ms=TIMEOUT_MS, delivery=PUSH if on_gpu else 0,
                   stream=stream.cuda_stream if on_gpu else None)
    must(weir, weir.weir_trainer_open(C.byref(wish), C.byref(trainer)))
    live = [torch.empty_like(t) for t in weights(tensors, n, 0, device)]
    check_segments(live, device)
    for i in range(n):
        tensors[i].data = live[i].data_ptr()
    for version in range(1, VERSIONS + 1):
        fresh = weights(tensors, n, version, device)
        if on_gpu:
            torch.cuda.synchronize(device)
            with torch.cuda.stream(stream):  # slow work first: who does not follow reads old bytes
                torch.cuda._sleep(50_000_000)
                for mine, new in zip(live, fresh):
                    mine.copy_(new)
        else:
            for mine, new in zip(live, fresh):
                mine.copy_(new)
        must(weir, weir.weir_trainer_register(trainer, tensors, C.c_size_t(n)))
        must(weir, weir.weir_trainer_publish(trainer, C.c_uint64(version), None))
        must(weir, weir.weir_trainer_wait(trainer, C.c_uint64(version), 1, 0))
        installed.wait(60)
        installed.clear()
    done.wait(60)
    weir.weir_trainer_close(trainer)


def check(version, parameters, entries, n_entries, names, wanted):
    for e in range(n_entries):
        entry = entries[e]
        parts = [wanted[names[entry.sources[s].name]] for s in range(entry.n_sources)]
        expected = torch.cat(parts, dim=entry.axis) if len(parts) > 1 else parts[0]
        found = parameters[entry.first_parameter]
        if not torch.equal(found, expected.to(found.dtype)):
            raise RuntimeError(f"version {version}: {entry.name.decode()} differs")


def serve(address, config_path, device, installed, done):
    weir = load()
    config = read_config(weir, config_path)
    tensors, n = model_sources(weir, config)
    mapping = model_mapping(weir, config, tensors, n)
    n_entries, n_parameters = C.c_size_t(), C.c_size_t()
    entries = C.cast(weir.weir_mapping_entries(mapping, C.byref(n_entries)), C.POINTER(MapEntry))
    wanted = C.cast(weir.weir_mapping_parameters(mapping, C.byref(n_parameters)),
                    C.POINTER(Parameter))
    kinds = {BF16: torch.bfloat16, F32: torch.float32}
    live = [torch.full(wanted[i].shape.sizes(), float("nan"), dtype=kinds[wanted[i].dtype],
                       device=device) for i in range(n_parameters.value)]
    check_segments(live, device)
    engine = (Tensor * len(live))()
    for i, tensor in enumerate(live):
        engine[i] = Tensor(wanted[i].name, wanted[i].dtype, wanted[i].shape, tensor.data_ptr())
    replica = C.c_void_p()
    wish = options(ReplicaOptions, directory=address, model=MODEL, name=b"engine", family=FAMILY,
                   conversion=b"bf16_cast", config=config_path, install=DIRECT,
                   timeout_ms=TIMEOUT_MS)
    must(weir, weir.weir_replica_open(C.byref(wish), C.byref(replica)))
    must(weir, weir.weir_replica_register(replica, engine, wanted, C.c_size_t(len(live))))
    addresses = [t.data_ptr() for t in live]
    current = torch.cuda.current_device() if device.startswith("cuda") else None
    names = {tensors[i].name: i for i in range(n)}
    for version in range(1, VERSIONS + 1):
        must(weir, weir.weir_replica_install(replica, C.c_uint64(LATEST), None))
        check(version, live, entries, n_entries.value, names, weights(tensors, n, version, device))
        assert addresses == [t.data_ptr() for t in live]
        assert current is None or current == torch.cuda.current_device()
        print(f"version {version}: {len(live)} tensors of PyTorch's hold it", flush=True)
        installed.set()
    done.set()
    weir.weir_replica_close(replica)


def main():
    trainer_device, engine_device = sys.argv[1:3] if len(sys.argv) > 2 else ("cuda:0", "cuda:1")
    mp.set_start_method("spawn")
    weir = load()
    directory = C.c_void_p()
    must(weir, weir.weir_directory_open(C.byref(options(DirectoryOptions)), C.byref(directory)))
    address = weir.weir_directory_address(directory)
    text = C.c_char_p()
    must(weir, weir.weir_family_preset(FAMILY, b"ragged", C.byref(text)))
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(text.value)
        file.flush()
        path = os.fsencode(file.name)
        installed, done = mp.Event(), mp.Event()
        sides = [mp.Process(target=train, args=(address, path, trainer_device, installed, done)),
                 mp.Process(target=serve, args=(address, path, engine_device, installed, done))]
        for side in sides:
            side.start()
        for side in sides:
            side.join(120)
        codes = [side.exitcode for side in sides]
        for side in sides:
            side.kill()
    if codes != [0, 0]:
        sys.exit(f"torch_push: trainer and engine ended with {codes}")
    print("torch_push: ok")


if __name__ == "__main__":
    main()
