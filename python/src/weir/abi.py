# SPDX-License-Identifier: Apache-2.0
"""Weir's C interface as ctypes sees it: enumerators, structs, callbacks.

Names, fields and their order are those of ``include/weir/*.h``, where their meaning stands. Nothing
here calls the library; its functions are in ``weir.prototypes``. What Python does not need is left
out; a struct that is here is here whole. A test compiles the headers and compares every size,
offset and number, so that neither side can change alone.

Pointers to const char are ``c_char_p``: a struct keeps the bytes that are assigned to it alive.
Opaque handles are ``c_void_p``.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_double,
    c_int,
    c_size_t,
    c_uint,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Tuple, Type

SIZE_MAX = ctypes.c_size_t(-1).value
WEIR_LATEST = 2**64 - 1
WEIR_MAX_RANK = 8
WEIR_MAX_OUTPUTS = 4
WEIR_MAX_PARTS = 5
WEIR_WHOLE = 0
WEIR_SHAPE_TEXT = 192
WEIR_MESH_TEXT = 160
WEIR_MESH_EXPLICIT = "explicit"
WEIR_LAYOUT_CHECKPOINT = "checkpoint"

# ---- enumerators; statuses are in errors.py, dtypes in dtypes.py -----------------------------

STOPS: Tuple[str, ...] = (  # their numbers are their places
    "source",
    "stage",
    "slot",
    "publish",
    "discover",
    "transfer",
    "install",
    "postprocess",
    "ack",
)
WEIR_N_STOPS = len(STOPS)

WEIR_LOG_ERROR = 1
WEIR_LOG_WARN = 2
WEIR_LOG_INFO = 3
WEIR_LOG_DEBUG = 4

WEIR_DELIVERY_DEFAULT = 0
WEIR_DELIVERY_PULL = 1
WEIR_DELIVERY_PUSH = 2

WEIR_WIRE_KERNEL = 0
WEIR_WIRE_CHECKPOINT = 1

WEIR_INSTALL_STAGED = 0
WEIR_INSTALL_DIRECT = 1

WEIR_REPLICA_EMPTY = 0
WEIR_REPLICA_HOLDING = 1
WEIR_REPLICA_UNUSABLE = 2

WEIR_NAMING_HF = 0
WEIR_NAMING_HF_FUSED = 1
WEIR_NAMING_STACKED = 2

WEIR_CUT_NONE = 0
WEIR_CUT_COLUMN = 1
WEIR_CUT_ROW = 2
WEIR_CUT_VOCABULARY = 3
WEIR_CUT_ONE_RANK = 4

WEIR_DERIVED_MLA_W_UV = 1
WEIR_DERIVED_MLA_W_UK_T = 2

weir_status = c_int
weir_dtype = c_int
weir_stop = c_int
weir_log_level = c_int
weir_delivery = c_int
weir_wire = c_int
weir_install_mode = c_int
weir_replica_state = c_int
weir_naming = c_int
weir_cut = c_int
weir_derived_kind = c_int
weir_dtype_set = c_uint32

# ---- tensor.h --------------------------------------------------------------------------------


class weir_shape(Structure):
    _fields_ = [("rank", c_uint32), ("dim", c_uint64 * WEIR_MAX_RANK)]


class weir_box(Structure):
    _fields_ = [
        ("rank", c_uint32),
        ("lo", c_uint64 * WEIR_MAX_RANK),
        ("hi", c_uint64 * WEIR_MAX_RANK),
    ]


class weir_tensor(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("dtype", weir_dtype),
        ("shape", weir_shape),
        ("data", c_void_p),
    ]


class weir_digest(Structure):
    _fields_ = [("product", c_uint64), ("sum", c_uint64)]


# ---- convert.h -------------------------------------------------------------------------------


class weir_conversion_output(Structure):
    _fields_ = [
        ("suffix", c_char_p),
        ("dtype", weir_dtype),
        ("cell_rows", c_size_t),
        ("cell_cols", c_size_t),
    ]


class weir_tile_output(Structure):
    _fields_ = [("data", c_void_p), ("pitch_bytes", c_size_t)]


class weir_tile(Structure):
    _fields_ = [
        ("dtype", weir_dtype),
        ("rows", POINTER(c_void_p)),
        ("n_rows", c_size_t),
        ("n_cols", c_size_t),
        ("out", weir_tile_output * WEIR_MAX_OUTPUTS),
        ("next_rows", POINTER(c_void_p)),
        ("n_next_rows", c_size_t),
        ("digest", POINTER(weir_digest)),
        ("digest_word", c_uint64),
        ("digest_words_per_row", c_uint64),
        ("propagate", c_bool),
    ]


weir_convert_fn = CFUNCTYPE(weir_status, POINTER(weir_tile))


class weir_conversion(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("name", c_char_p),
        ("summary", c_char_p),
        ("compile_target", c_char_p),
        ("compile_metadata", c_char_p),
        ("sources", weir_dtype_set),
        ("min_rank", c_uint32),
        ("max_rank", c_uint32),
        ("rank_error", c_char_p),
        ("border_rows", c_size_t),
        ("border_cols", c_size_t),
        ("n_outputs", c_size_t),
        ("outputs", weir_conversion_output * WEIR_MAX_OUTPUTS),
        ("reference", weir_convert_fn),
        ("kernel", weir_convert_fn),
        ("kernel_digests", c_bool),
        ("by_magnitude", c_bool),
    ]


weir_default_rule_fn = CFUNCTYPE(c_int, c_void_p, c_void_p)


class weir_convert_args(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("conversion", POINTER(weir_conversion)),
        ("sources", POINTER(weir_tensor)),
        ("n_sources", c_size_t),
        ("n_experts", c_size_t),
        ("axis", c_uint32),
        ("outputs", c_void_p * WEIR_MAX_OUTPUTS),
        ("digests", POINTER(weir_digest)),
        ("propagate", c_bool),
        ("round_masters", c_bool),
        ("reference", c_bool),
        ("pool", c_void_p),
        ("first_words", c_uint64 * WEIR_MAX_OUTPUTS),
        ("source_pitches", POINTER(c_uint64)),
    ]


class weir_cpu_rung(Structure):
    _fields_ = [("name", c_char_p), ("in_use", c_bool), ("why_not", c_char_p)]


# ---- family.h --------------------------------------------------------------------------------


class weir_family_info(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("summary", c_char_p),
        ("layouts", POINTER(c_char_p)),
        ("model_types", POINTER(c_char_p)),
        ("presets", POINTER(c_char_p)),
    ]


class weir_parameter(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("dtype", weir_dtype),
        ("shape", weir_shape),
        ("compile_target", c_char_p),
        ("compile_metadata", c_char_p),
        ("entry", c_size_t),
        ("output", c_size_t),
        ("is_expert", c_bool),
    ]


class weir_map_entry(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("conversion", POINTER(weir_conversion)),
        ("sources", POINTER(weir_tensor)),
        ("n_sources", c_size_t),
        ("n_experts", c_size_t),
        ("axis", c_uint32),
        ("keep", c_bool),
        ("layer", c_int),
        ("shape", weir_shape),
        ("first_parameter", c_size_t),
        ("cut", weir_cut),
        ("n_parts", c_size_t),
        ("units", c_uint32 * WEIR_MAX_PARTS),
        ("part_rows", c_uint64 * WEIR_MAX_PARTS),
        ("tied", c_bool),
        ("bundle", c_size_t),
    ]


class weir_derived(Structure):
    _fields_ = [
        ("kind", weir_derived_kind),
        ("parameter", c_size_t),
        ("from", c_size_t),
        ("from_scale", c_size_t),
        ("n_heads", c_uint64),
        ("nope_dim", c_uint64),
        ("v_dim", c_uint64),
        ("lora_rank", c_uint64),
    ]


class weir_mapping_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("family", c_char_p),
        ("layout", c_char_p),
        ("conversion", c_char_p),
        ("config", c_void_p),
        ("ignore", POINTER(c_char_p)),
        ("n_ignore", c_size_t),
        ("unreadable", c_bool),
    ]


class weir_entry_convert_args(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("outputs", c_void_p * WEIR_MAX_OUTPUTS),
        ("digests", POINTER(weir_digest)),
        ("propagate", c_bool),
        ("keep_masters", c_bool),
        ("reference", c_bool),
        ("pool", c_void_p),
    ]


# ---- mesh.h ----------------------------------------------------------------------------------


class weir_trainer_mesh(Structure):
    _fields_ = [
        ("pp", c_uint32),
        ("hsdp", c_uint32),
        ("fsdp", c_uint32),
        ("ep", c_uint32),
        ("tp", c_uint32),
        ("sender", c_uint32),
        ("expert_owners", POINTER(c_uint32)),
        ("n_expert_owners", c_uint32),
        ("dense_whole", c_uint32),
    ]


class weir_replica_mesh(Structure):
    _fields_ = [
        ("tp", c_uint32),
        ("ep", c_uint32),
        ("dp", c_uint32),
        ("pp", c_uint32),
        ("replicas", c_uint32),
        ("vocabulary_pad", c_uint32),
        ("expert_ids", POINTER(c_uint32)),
        ("expert_first", POINTER(c_uint32)),
    ]


# ---- weir.h ----------------------------------------------------------------------------------


class weir_log_field(Structure):
    _fields_ = [("name", c_char_p), ("text", c_char_p), ("is_number", c_bool)]


weir_log_fn = CFUNCTYPE(None, c_void_p, weir_log_level, c_char_p)
weir_log_record_fn = CFUNCTYPE(
    None, c_void_p, weir_log_level, c_char_p, POINTER(weir_log_field), c_size_t
)


class weir_env_info(Structure):
    _fields_ = [
        ("name", c_char_p),
        ("type", c_char_p),
        ("default_value", c_char_p),
        ("help", c_char_p),
        ("value", c_char_p),
    ]


class weir_counters(Structure):
    _fields_ = [
        ("allocations", c_uint64),
        ("registrations", c_uint64),
        ("plans", c_uint64),
        ("connections", c_uint64),
    ]


class weir_report(Structure):
    _fields_ = [
        ("version", c_uint64),
        ("n_tensors", c_uint64),
        ("n_bytes", c_uint64),
        ("waited_seconds", c_double),
        ("seconds", c_double * WEIR_N_STOPS),
        ("total_seconds", c_double),
        ("counters", weir_counters),
        ("read_from", c_char * 256),
    ]


weir_progress_fn = CFUNCTYPE(None, c_void_p, weir_stop, c_uint64, c_uint64, c_uint64)


class weir_security(Structure):
    _fields_ = [
        ("certificate", c_char_p),
        ("key", c_char_p),
        ("ca", c_char_p),
        ("token", c_char_p),
        ("insecure", c_bool),
        ("token_file", c_char_p),
    ]


class weir_directory_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("listen", c_char_p),
        ("stale_after_s", c_uint),
        ("delete_after_s", c_uint),
        ("sweep_every_s", c_uint),
        ("security", weir_security),
        ("store", c_char_p),
        ("name", c_char_p),
        ("http", c_char_p),
        ("max_connections", c_uint),
        ("max_connections_per_host", c_uint),
        ("trainer_model", c_char_p),
        ("trainer_run", c_char_p),
        ("n_inference_workers", c_uint32),
    ]


class weir_trainer_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("directory", c_char_p),
        ("model", c_char_p),
        ("run", c_char_p),
        ("rank", c_uint32),
        ("n_ranks", c_uint32),
        ("family", c_char_p),
        ("layout", c_char_p),
        ("conversion", c_char_p),
        ("config", c_char_p),
        ("transport", c_char_p),
        ("transport_directory", c_char_p),
        ("listen", c_char_p),
        ("n_slots", c_uint),
        ("n_threads", c_uint),
        ("timeout_ms", c_uint),
        ("lease_ms", c_uint),
        ("keep_masters", c_bool),
        ("ignore", POINTER(c_char_p)),
        ("n_ignore", c_size_t),
        ("progress", weir_progress_fn),
        ("progress_context", c_void_p),
        ("delivery", weir_delivery),
        ("window_bytes", c_uint64),
        ("scan_first", c_bool),
        ("stream", c_void_p),
        ("mesh", c_char_p),
        ("expert_owners", c_char_p),
        ("replica_mesh", c_char_p),
        ("replica_experts", c_char_p),
        ("security", weir_security),
        ("traceparent", c_char_p),
        ("wire", weir_wire),
    ]


class weir_tensor_shard(Structure):
    _fields_ = [("local", weir_tensor), ("global_shape", weir_shape), ("box", weir_box)]


weir_pause_fn = CFUNCTYPE(weir_status, c_void_p)
weir_postprocess_fn = CFUNCTYPE(weir_status, c_void_p, c_uint64)
weir_resume_fn = CFUNCTYPE(None, c_void_p)
weir_agree_fn = CFUNCTYPE(weir_status, c_void_p, c_uint64, weir_status)


class weir_engine_hooks(Structure):
    _fields_ = [
        ("pause", weir_pause_fn),
        ("postprocess", weir_postprocess_fn),
        ("resume", weir_resume_fn),
        ("context", c_void_p),
    ]


class weir_replica_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("directory", c_char_p),
        ("model", c_char_p),
        ("run", c_char_p),
        ("name", c_char_p),
        ("family", c_char_p),
        ("layout", c_char_p),
        ("conversion", c_char_p),
        ("config", c_char_p),
        ("transport", c_char_p),
        ("transport_directory", c_char_p),
        ("listen", c_char_p),
        ("install", weir_install_mode),
        ("n_threads", c_uint),
        ("timeout_ms", c_uint),
        ("lease_ms", c_uint),
        ("hooks", weir_engine_hooks),
        ("progress", weir_progress_fn),
        ("progress_context", c_void_p),
        ("device", c_char_p),
        ("window_bytes", c_uint64),
        ("mesh", c_char_p),
        ("worker", c_uint32),
        ("experts", c_char_p),
        ("agree", weir_agree_fn),
        ("security", weir_security),
        ("reads_trainers_alone", c_bool),
        ("serves_nobody", c_bool),
        ("peer_wait_ms", c_uint),
        ("wire", weir_wire),
    ]


class weir_verify_options(Structure):
    _fields_ = [
        ("size", c_size_t),
        ("directory", c_char_p),
        ("model", c_char_p),
        ("run", c_char_p),
        ("replica", c_char_p),
        ("family", c_char_p),
        ("layout", c_char_p),
        ("conversion", c_char_p),
        ("config", c_char_p),
        ("sources", POINTER(weir_tensor)),
        ("n_sources", c_size_t),
        ("keep_masters", c_bool),
        ("ignore", POINTER(c_char_p)),
        ("n_ignore", c_size_t),
        ("transport_directory", c_char_p),
        ("n_threads", c_uint),
        ("timeout_ms", c_uint),
        ("progress", weir_progress_fn),
        ("progress_context", c_void_p),
        ("mesh", c_char_p),
        ("worker", c_uint32),
        ("experts", c_char_p),
        ("security", weir_security),
    ]


class weir_verify_report(Structure):
    _fields_ = [
        ("version", c_uint64),
        ("n_parameters", c_uint64),
        ("n_bytes", c_uint64),
        ("n_different", c_uint64),
        ("first_difference", c_char * 512),
    ]


# ---- cuda.h ----------------------------------------------------------------------------------


class weir_cuda_device(Structure):
    _fields_ = [
        ("name", c_char * 128),
        ("memory_bytes", c_uint64),
        ("compute_major", c_uint),
        ("compute_minor", c_uint),
        ("n_multiprocessors", c_uint),
        ("driver_version", c_uint),
    ]


STRUCTS: Tuple[Type[Structure], ...] = (
    weir_shape,
    weir_box,
    weir_tensor,
    weir_digest,
    weir_conversion_output,
    weir_tile_output,
    weir_tile,
    weir_conversion,
    weir_convert_args,
    weir_cpu_rung,
    weir_family_info,
    weir_parameter,
    weir_map_entry,
    weir_derived,
    weir_mapping_options,
    weir_entry_convert_args,
    weir_trainer_mesh,
    weir_replica_mesh,
    weir_log_field,
    weir_env_info,
    weir_counters,
    weir_report,
    weir_security,
    weir_directory_options,
    weir_trainer_options,
    weir_tensor_shard,
    weir_engine_hooks,
    weir_replica_options,
    weir_verify_options,
    weir_verify_report,
    weir_cuda_device,
)
