# SPDX-License-Identifier: Apache-2.0
"""A trainer that publishes to a replica in a process of its own, by UCX: prints the version that the
replica holds, whether its bytes are the trainer's, and the libraries of UCX that it has loaded."""
import subprocess
import sys

import weir

CONFIG = {"model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 64,
          "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100}
LAYER = {"input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
         "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
         "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
SHAPES = {"model.embed_tokens": (100, 64), "model.norm": (64,), "lm_head": (100, 64),
          **{f"model.layers.0.{name}": shape for name, shape in LAYER.items()}}
ONE = b"\x80\x3f"  # in bf16


def ones(shape):
    n_values = shape[0] * (shape[1] if len(shape) == 2 else 1)
    return weir.tensor(bytearray(ONE * n_values), dtype="BF16", shape=shape)


def train():
    weights = {f"{name}.weight": ones(shape) for name, shape in SHAPES.items()}
    with weir.Trainer("policy", config=CONFIG, transport="ucx", timeout=30) as trainer:
        trainer.register(weights)
        trainer.publish(1)
        replica = subprocess.Popen([sys.executable, __file__, trainer.directory],
                                   stdin=subprocess.PIPE)
        try:
            trainer.wait(1, n_replicas=1)
        finally:
            replica.communicate(timeout=30)
        if replica.returncode != 0:
            sys.exit("the replica failed")


def serve(directory):
    with weir.Replica("policy", directory=directory, config=CONFIG, transport="ucx",
                      timeout=30) as replica:
        replica.allocate()
        report = replica.install(1)
        equal = all(bytes(tensor.raw) == ONE * (tensor.n_bytes // 2)
                    for tensor in replica.parameters.values())
        with open("/proc/self/maps", encoding="utf-8") as maps:
            libraries = {line.split()[-1] for line in maps if "/libuc" in line}
        print(report.version, equal, *sorted(libraries), flush=True)
        sys.stdin.read()  # holds the version until the trainer has seen it


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        train()
