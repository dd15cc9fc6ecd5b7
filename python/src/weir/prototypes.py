# SPDX-License-Identifier: Apache-2.0
"""The functions of ``include/weir/*.h`` that Python calls: name, result and arguments of each.

``weir.library`` applies the table when it loads the library. A test reads the headers' declarations
and compares them. A string that the caller has to free comes as ``c_void_p``: ``c_char_p`` would be
bytes, and its address gone.
"""

from __future__ import annotations

from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_size_t,
    c_uint,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import Any, List, Tuple

from weir.abi import (
    weir_conversion,
    weir_convert_args,
    weir_cpu_rung,
    weir_cuda_device,
    weir_default_rule_fn,
    weir_derived,
    weir_digest,
    weir_directory_options,
    weir_dtype,
    weir_entry_convert_args,
    weir_env_info,
    weir_family_info,
    weir_log_fn,
    weir_log_level,
    weir_log_record_fn,
    weir_map_entry,
    weir_mapping_options,
    weir_naming,
    weir_parameter,
    weir_replica_mesh,
    weir_replica_options,
    weir_replica_state,
    weir_report,
    weir_shape,
    weir_status,
    weir_stop,
    weir_tensor,
    weir_tensor_shard,
    weir_trainer_mesh,
    weir_trainer_options,
    weir_verify_options,
    weir_verify_report,
)

_text = c_char_p
_texts = POINTER(c_char_p)
_handle = c_void_p
_out_handle = POINTER(c_void_p)
_out_n = POINTER(c_size_t)
_tensors = POINTER(weir_tensor)
_shape = POINTER(weir_shape)

PROTOTYPES: List[Tuple[str, Any, Tuple[Any, ...]]] = [
    # status.h
    ("weir_status_text", _text, (weir_status,)),
    ("weir_status_name", _text, (weir_status,)),
    ("weir_last_error", _text, ()),
    # tensor.h
    ("weir_dtype_name", _text, (weir_dtype,)),
    ("weir_dtype_bits", c_uint, (weir_dtype,)),
    ("weir_dtype_from_name", weir_dtype, (_text,)),
    ("weir_tensor_bytes", weir_status, (weir_dtype, _shape, POINTER(c_uint64))),
    ("weir_digest_add", None, (POINTER(weir_digest), c_void_p, c_size_t, c_size_t)),
    # convert.h
    ("weir_pool_open", weir_status, (c_uint, _out_handle)),
    ("weir_pool_close", None, (_handle,)),
    ("weir_pool_threads", c_uint, (_handle,)),
    ("weir_conversion_register", weir_status, (POINTER(weir_conversion),)),
    ("weir_conversion_get", weir_status, (_text, POINTER(POINTER(weir_conversion)))),
    ("weir_conversion_names", c_size_t, (_texts, c_size_t)),
    ("weir_compile_target_matches", c_bool, (_text, _text, _texts, c_size_t, _text)),
    ("weir_default_rule_register", weir_status, (weir_default_rule_fn, c_void_p, _text, c_bool)),
    ("weir_conversion_select", weir_status, (_handle, POINTER(POINTER(weir_conversion)))),
    (
        "weir_conversion_output_name",
        weir_status,
        (POINTER(weir_conversion), c_size_t, _text, c_bool, c_char_p, c_size_t),
    ),
    (
        "weir_conversion_output_shape",
        weir_status,
        (POINTER(weir_conversion), c_size_t, _shape, _shape),
    ),
    ("weir_convert_fused_shape", weir_status, (POINTER(weir_convert_args), _shape)),
    ("weir_convert", weir_status, (POINTER(weir_convert_args),)),
    ("weir_cpu_rungs", c_size_t, (POINTER(weir_cpu_rung), c_size_t)),
    # checkpoint.h
    ("weir_checkpoint_open", weir_status, (_text, _out_handle)),
    ("weir_checkpoint_open_many", weir_status, (_texts, c_size_t, _out_handle)),
    ("weir_checkpoint_close", None, (_handle,)),
    ("weir_checkpoint_tensors", _tensors, (_handle, _out_n)),
    ("weir_checkpoint_find", _tensors, (_handle, _text)),
    ("weir_checkpoint_file_of", _text, (_handle, c_size_t)),
    ("weir_checkpoint_directory", _text, (_handle,)),
    ("weir_checkpoint_metadata", _text, (_handle, _text)),
    ("weir_checkpoint_metadata_key", _text, (_handle, c_size_t)),
    ("weir_config_open", weir_status, (_text, _out_handle)),
    ("weir_config_parse", weir_status, (_text, _text, _out_handle)),
    ("weir_config_close", None, (_handle,)),
    ("weir_config_text", c_void_p, (_handle,)),  # a string to free, so not c_char_p
    ("weir_string_free", None, (c_void_p,)),
    # family.h
    ("weir_families", c_size_t, (POINTER(weir_family_info), c_size_t)),
    ("weir_family_of_config", weir_status, (_handle, _texts)),
    (
        "weir_family_sources",
        weir_status,
        (_text, _handle, weir_naming, POINTER(_tensors), _out_n),
    ),
    ("weir_family_sources_free", None, (_tensors,)),
    ("weir_family_preset", weir_status, (_text, _text, POINTER(c_void_p))),
    (
        "weir_mapping_open",
        weir_status,
        (POINTER(weir_mapping_options), _tensors, c_size_t, _out_handle),
    ),
    ("weir_mapping_close", None, (_handle,)),
    ("weir_mapping_entries", POINTER(weir_map_entry), (_handle, _out_n)),
    ("weir_mapping_parameters", POINTER(weir_parameter), (_handle, _out_n)),
    ("weir_mapping_derived", POINTER(weir_derived), (_handle, _out_n)),
    ("weir_mapping_conversion", POINTER(weir_conversion), (_handle,)),
    (
        "weir_map_entry_convert",
        weir_status,
        (POINTER(weir_map_entry), POINTER(weir_entry_convert_args)),
    ),
    (
        "weir_derived_compute",
        weir_status,
        (POINTER(weir_derived), weir_dtype, c_void_p, POINTER(c_float), _shape, c_void_p),
    ),
    # mesh.h
    ("weir_trainer_mesh_parse", weir_status, (_text, POINTER(weir_trainer_mesh))),
    ("weir_replica_mesh_parse", weir_status, (_text, POINTER(weir_replica_mesh))),
    ("weir_trainer_mesh_ranks", c_uint32, (POINTER(weir_trainer_mesh),)),
    ("weir_replica_mesh_workers", c_uint32, (POINTER(weir_replica_mesh),)),
    # weir.h
    ("weir_version", _text, ()),
    ("weir_log_set", None, (weir_log_fn, c_void_p, weir_log_level)),
    ("weir_log_set_structured", None, (weir_log_record_fn, c_void_p, weir_log_level)),
    ("weir_env_table", c_size_t, (POINTER(weir_env_info), c_size_t)),
    ("weir_stop_name", _text, (weir_stop,)),
    ("weir_directory_open", weir_status, (POINTER(weir_directory_options), _out_handle)),
    ("weir_directory_close", None, (_handle,)),
    ("weir_directory_address", _text, (_handle,)),
    ("weir_directory_http_address", _text, (_handle,)),
    ("weir_trainer_open", weir_status, (POINTER(weir_trainer_options), _out_handle)),
    ("weir_trainer_close", None, (_handle,)),
    ("weir_trainer_directory", _text, (_handle,)),
    ("weir_trainer_register", weir_status, (_handle, _tensors, c_size_t)),
    (
        "weir_trainer_register_shards",
        weir_status,
        (_handle, POINTER(weir_tensor_shard), c_size_t),
    ),
    ("weir_trainer_publish", weir_status, (_handle, c_uint64, POINTER(weir_report))),
    ("weir_trainer_wait", weir_status, (_handle, c_uint64, c_uint, c_uint)),
    ("weir_trainer_withdraw", weir_status, (_handle, c_uint64, _text, c_uint)),
    ("weir_trainer_cancel", None, (_handle,)),
    ("weir_trainer_uncancel", None, (_handle,)),
    ("weir_replica_open", weir_status, (POINTER(weir_replica_options), _out_handle)),
    ("weir_replica_close", None, (_handle,)),
    (
        "weir_replica_register",
        weir_status,
        (_handle, _tensors, POINTER(weir_parameter), c_size_t),
    ),
    ("weir_replica_allocate", weir_status, (_handle,)),
    ("weir_replica_bind", weir_status, (_handle, _tensors, c_size_t, POINTER(c_bool))),
    ("weir_replica_parameters", _tensors, (_handle, _out_n)),
    ("weir_replica_install", weir_status, (_handle, c_uint64, POINTER(weir_report))),
    ("weir_replica_cancel", None, (_handle,)),
    ("weir_replica_revert", weir_status, (_handle, POINTER(weir_report))),
    ("weir_replica_uncancel", None, (_handle,)),
    ("weir_replica_get_state", weir_replica_state, (_handle,)),
    ("weir_replica_version", c_uint64, (_handle,)),
    ("weir_verify", weir_status, (POINTER(weir_verify_options), POINTER(weir_verify_report))),
    # cuda.h
    ("weir_cuda_devices", weir_status, (POINTER(c_uint),)),
    ("weir_cuda_describe", weir_status, (c_uint, POINTER(weir_cuda_device))),
    ("weir_cuda_allocate", weir_status, (c_uint, c_size_t, POINTER(c_void_p))),
    ("weir_cuda_free", None, (c_uint, c_void_p)),
    ("weir_cuda_copy", weir_status, (c_uint, c_void_p, c_void_p, c_size_t, c_void_p)),
    ("weir_cuda_device_of", weir_status, (c_void_p, POINTER(c_uint))),
    ("weir_cuda_stream_wait", weir_status, (c_uint, c_void_p)),
    ("weir_cuda_batch_open", weir_status, (c_uint, _out_handle)),
    ("weir_cuda_batch_close", None, (_handle,)),
    (
        "weir_cuda_batch_start",
        weir_status,
        (_handle, POINTER(weir_convert_args), c_size_t, c_void_p),
    ),
    ("weir_cuda_batch_test", weir_status, (_handle,)),
    ("weir_cuda_batch_wait", weir_status, (_handle,)),
]
