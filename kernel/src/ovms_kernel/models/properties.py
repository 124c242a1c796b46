"""What a graph that comes with a model may say. A model is data: it names no library and no file outside its folder.

``ovms_embedded`` has the same list of properties, and checks each graph that it reads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ovms_kernel.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES = """
ACTIVATIONS_SCALE_FACTOR ALLOW_AUTO_BATCHING ATTENTION_BACKEND AUTO_BATCH_DEVICE_CONFIG AUTO_BATCH_TIMEOUT
CACHE_MODE CDPRUNER_ENABLE_FRAME_CHUNKING CDPRUNER_SPLIT_THRESHOLD CDPRUNER_USE_CL_KERNEL COMPILATION_NUM_THREADS
CPU_DENORMALS_OPTIMIZATION CPU_RUNTIME_CACHE_CAPACITY CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE DEVICE_BIND_BUFFER
DEVICE_ID DEVICE_PROPERTIES DYNAMIC_QUANTIZATION_GROUP_SIZE ENABLE_CPU_PINNING ENABLE_CPU_RESERVATION
ENABLE_HYPER_THREADING ENABLE_MMAP ENABLE_RUNTIME_FALLBACK ENABLE_STARTUP_FALLBACK ENABLE_TENSOR_PARALLEL
ENABLE_WEIGHTLESS EXCLUSIVE_ASYNC_REQUESTS EXECUTION_MODE_HINT GENERATE_HINT GPU_DISABLE_WINOGRAD_CONVOLUTION
GPU_DYNAMIC_QUANTIZATION_THRESHOLD GPU_ENABLE_KERNELS_REUSE GPU_ENABLE_LARGE_ALLOCATIONS GPU_ENABLE_LOOP_UNROLLING
GPU_ENABLE_LORA_OPERATION GPU_ENABLE_MEMORY_POOL GPU_ENABLE_SDPA_OPTIMIZATION GPU_HOST_TASK_PRIORITY
GPU_MAX_KERNELS_PER_BATCH GPU_QUEUE_PRIORITY GPU_QUEUE_THROTTLE GPU_QUEUE_TYPE GPU_USE_CM GPU_USE_ONEDNN
INFERENCE_NUM_THREADS INFERENCE_PRECISION_HINT KEY_CACHE_GROUP_SIZE KEY_CACHE_PRECISION KV_CACHE_PRECISION LOG_LEVEL
MAX_PROMPT_LEN MIN_RESPONSE_LEN MODEL_DISTRIBUTION_POLICY MODEL_PRIORITY MULTI_DEVICE_PRIORITIES NPUW_ATTN
NPUW_ATTN_DYN NPUW_DEVICES NPUW_DQ NPUW_DQ_FULL NPUW_F16IC NPUW_FALLBACK_EXEC NPUW_FOLD NPUW_FOLD_ONLY
NPUW_FUNCALL_ASYNC NPUW_FUNCALL_FOR_ALL NPUW_HOST_GATHER NPUW_LLM NPUW_LLM_BATCH_DIM NPUW_LLM_CACHE_ROPE
NPUW_LLM_ENABLE_PREFIX_CACHING NPUW_LLM_GENERATE_ATTENTION_HINT NPUW_LLM_GENERATE_HINT NPUW_LLM_MAX_LORA_RANK
NPUW_LLM_MAX_PROMPT_LEN NPUW_LLM_MIN_RESPONSE_LEN NPUW_LLM_OPTIMIZE_V_TENSORS NPUW_LLM_PREFILL_ATTENTION_HINT
NPUW_LLM_PREFILL_CHUNK_SIZE NPUW_LLM_PREFILL_HINT NPUW_LLM_PREFIX_CACHING_BLOCK_SIZE
NPUW_LLM_PREFIX_CACHING_MAX_NUM_BLOCKS NPUW_LLM_SEQ_LEN_DIM NPUW_LLM_SHARED_HEAD NPUW_ONLINE_PIPELINE
NPUW_PARALLEL_COMPILE NPUW_PMM NPUW_SLICE_OUT NPUW_SPATIAL NPUW_UNFOLD_IREQS NPUW_WEIGHTS_BANK
NPUW_WEIGHTS_BANK_ALLOC NPU_BYPASS_UMD_CACHING NPU_COMPILATION_MODE NPU_COMPILER_DYNAMIC_QUANTIZATION
NPU_COMPILER_TYPE NPU_DEFER_WEIGHTS_LOAD NPU_MAX_TILES NPU_PLATFORM NPU_QDQ_OPTIMIZATION
NPU_RUN_INFERENCES_SEQUENTIALLY NPU_TILES NPU_TURBO NPU_USE_NPUW NUM_STREAMS PERFORMANCE_HINT
PERFORMANCE_HINT_NUM_REQUESTS PERF_COUNT PREFILL_HINT SCHEDULE_POLICY SCHEDULING_CORE_TYPE STATIC_PIPELINE
TBB_PARTITIONER VALUE_CACHE_GROUP_SIZE VALUE_CACHE_PRECISION WORKLOAD_TYPE prompt_lookup
"""
PROPERTIES = frozenset(_NAMES.split())
"""Properties of OpenVINO that set speed, precision and memory. Those that name a library to load (``extensions``), or a
file or folder to read or write (``CACHE_DIR``, ``CONFIG_FILE``, ``EXPORT_BLOB``, ``NPUW_DUMP_IO``, …), are left out."""
BY_DEVICE = "DEVICE_PROPERTIES"
"""The property that holds, by device, properties of that device."""
PLUGIN_CONFIG = "plugin_config"


def read_properties(value: object, what: str) -> dict[str, Any]:
    """Return the properties of a ``plugin_config``, which is JSON text or a table.

    :param what: whose it is, for the sentence.
    :raises BadRequest: it is neither, or names a property that a graph may not set.
    """
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise BadRequest(f"plugin_config of {what} must be a table or a JSON object.")
    _check(value, what)
    for device, inner in value.get(BY_DEVICE, {}).items():
        if not isinstance(inner, dict) or BY_DEVICE in inner:
            raise BadRequest(f"{BY_DEVICE} of {device} in plugin_config of {what} must be a table of its properties.")
        _check(inner, what)
    return value


def _check(properties: Mapping[str, Any], what: str) -> None:
    for name, value in properties.items():
        if name not in PROPERTIES:
            raise BadRequest(f"plugin_config of {what} sets {name!r}, which a graph may not set; remove it.")
        if isinstance(value, dict) != (name == BY_DEVICE) or isinstance(value, list) or value is None:
            kind = "a table by device" if name == BY_DEVICE else "text, a number, true or false"
            raise BadRequest(f"{name} in plugin_config of {what} must be {kind}.")
