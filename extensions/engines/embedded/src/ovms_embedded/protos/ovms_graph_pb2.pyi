from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf.internal import python_message as _python_message
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MediaPipeOptions(_message.Message):
    __slots__ = ()
    Extensions: _python_message._ExtensionDict
    def __init__(self) -> None: ...

class SyncSetInputStreamHandlerOptions(_message.Message):
    __slots__ = ("sync_set",)
    class SyncSet(_message.Message):
        __slots__ = ("tag_index",)
        TAG_INDEX_FIELD_NUMBER: _ClassVar[int]
        tag_index: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, tag_index: _Optional[_Iterable[str]] = ...) -> None: ...
    EXT_FIELD_NUMBER: _ClassVar[int]
    ext: _descriptor.FieldDescriptor
    SYNC_SET_FIELD_NUMBER: _ClassVar[int]
    sync_set: _containers.RepeatedCompositeFieldContainer[SyncSetInputStreamHandlerOptions.SyncSet]
    def __init__(self, sync_set: _Optional[_Iterable[_Union[SyncSetInputStreamHandlerOptions.SyncSet, _Mapping]]] = ...) -> None: ...

class InputStreamInfo(_message.Message):
    __slots__ = ("tag_index", "back_edge")
    TAG_INDEX_FIELD_NUMBER: _ClassVar[int]
    BACK_EDGE_FIELD_NUMBER: _ClassVar[int]
    tag_index: str
    back_edge: bool
    def __init__(self, tag_index: _Optional[str] = ..., back_edge: _Optional[bool] = ...) -> None: ...

class InputStreamHandlerConfig(_message.Message):
    __slots__ = ("input_stream_handler", "options")
    INPUT_STREAM_HANDLER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    input_stream_handler: str
    options: MediaPipeOptions
    def __init__(self, input_stream_handler: _Optional[str] = ..., options: _Optional[_Union[MediaPipeOptions, _Mapping]] = ...) -> None: ...

class CalculatorGraphConfig(_message.Message):
    __slots__ = ("node", "num_threads", "input_stream", "max_queue_size", "output_stream", "input_side_packet", "output_side_packet", "package", "type")
    class Node(_message.Message):
        __slots__ = ("name", "calculator", "input_stream", "output_stream", "input_side_packet", "output_side_packet", "node_options", "input_stream_handler", "input_stream_info", "executor", "max_in_flight")
        NAME_FIELD_NUMBER: _ClassVar[int]
        CALCULATOR_FIELD_NUMBER: _ClassVar[int]
        INPUT_STREAM_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_STREAM_FIELD_NUMBER: _ClassVar[int]
        INPUT_SIDE_PACKET_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_SIDE_PACKET_FIELD_NUMBER: _ClassVar[int]
        NODE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
        INPUT_STREAM_HANDLER_FIELD_NUMBER: _ClassVar[int]
        INPUT_STREAM_INFO_FIELD_NUMBER: _ClassVar[int]
        EXECUTOR_FIELD_NUMBER: _ClassVar[int]
        MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
        name: str
        calculator: str
        input_stream: _containers.RepeatedScalarFieldContainer[str]
        output_stream: _containers.RepeatedScalarFieldContainer[str]
        input_side_packet: _containers.RepeatedScalarFieldContainer[str]
        output_side_packet: _containers.RepeatedScalarFieldContainer[str]
        node_options: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
        input_stream_handler: InputStreamHandlerConfig
        input_stream_info: _containers.RepeatedCompositeFieldContainer[InputStreamInfo]
        executor: str
        max_in_flight: int
        def __init__(self, name: _Optional[str] = ..., calculator: _Optional[str] = ..., input_stream: _Optional[_Iterable[str]] = ..., output_stream: _Optional[_Iterable[str]] = ..., input_side_packet: _Optional[_Iterable[str]] = ..., output_side_packet: _Optional[_Iterable[str]] = ..., node_options: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ..., input_stream_handler: _Optional[_Union[InputStreamHandlerConfig, _Mapping]] = ..., input_stream_info: _Optional[_Iterable[_Union[InputStreamInfo, _Mapping]]] = ..., executor: _Optional[str] = ..., max_in_flight: _Optional[int] = ...) -> None: ...
    NODE_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    INPUT_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_SIZE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_STREAM_FIELD_NUMBER: _ClassVar[int]
    INPUT_SIDE_PACKET_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_SIDE_PACKET_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    node: _containers.RepeatedCompositeFieldContainer[CalculatorGraphConfig.Node]
    num_threads: int
    input_stream: _containers.RepeatedScalarFieldContainer[str]
    max_queue_size: int
    output_stream: _containers.RepeatedScalarFieldContainer[str]
    input_side_packet: _containers.RepeatedScalarFieldContainer[str]
    output_side_packet: _containers.RepeatedScalarFieldContainer[str]
    package: str
    type: str
    def __init__(self, node: _Optional[_Iterable[_Union[CalculatorGraphConfig.Node, _Mapping]]] = ..., num_threads: _Optional[int] = ..., input_stream: _Optional[_Iterable[str]] = ..., max_queue_size: _Optional[int] = ..., output_stream: _Optional[_Iterable[str]] = ..., input_side_packet: _Optional[_Iterable[str]] = ..., output_side_packet: _Optional[_Iterable[str]] = ..., package: _Optional[str] = ..., type: _Optional[str] = ...) -> None: ...

class LLMCalculatorOptions(_message.Message):
    __slots__ = ("models_path", "max_num_batched_tokens", "cache_size", "max_num_seqs", "dynamic_split_fuse", "device", "plugin_config", "best_of_limit", "max_tokens_limit", "enable_prefix_caching", "draft_models_path", "draft_device", "draft_max_num_batched_tokens", "draft_cache_size", "draft_block_size", "draft_max_num_seqs", "draft_dynamic_split_fuse", "draft_eagle3_mode", "pipeline_type", "cache_eviction_config", "tool_parser", "reasoning_parser", "enable_tool_guided_generation", "sparse_attention_config", "cache_interval_multiplier", "chat_template_mode")
    class PipelineType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LM: _ClassVar[LLMCalculatorOptions.PipelineType]
        VLM: _ClassVar[LLMCalculatorOptions.PipelineType]
        LM_CB: _ClassVar[LLMCalculatorOptions.PipelineType]
        VLM_CB: _ClassVar[LLMCalculatorOptions.PipelineType]
        OMNI: _ClassVar[LLMCalculatorOptions.PipelineType]
        AUTO: _ClassVar[LLMCalculatorOptions.PipelineType]
    LM: LLMCalculatorOptions.PipelineType
    VLM: LLMCalculatorOptions.PipelineType
    LM_CB: LLMCalculatorOptions.PipelineType
    VLM_CB: LLMCalculatorOptions.PipelineType
    OMNI: LLMCalculatorOptions.PipelineType
    AUTO: LLMCalculatorOptions.PipelineType
    class ChatTemplateMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        MINJA: _ClassVar[LLMCalculatorOptions.ChatTemplateMode]
        JINJA: _ClassVar[LLMCalculatorOptions.ChatTemplateMode]
    MINJA: LLMCalculatorOptions.ChatTemplateMode
    JINJA: LLMCalculatorOptions.ChatTemplateMode
    class CacheEvictionConfig(_message.Message):
        __slots__ = ("aggregation_mode", "start_size", "recent_size", "max_cache_size", "apply_rotation", "snapkv_window_size", "kv_crush_config")
        class AggregationMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            SUM: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.AggregationMode]
            NORM_SUM: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.AggregationMode]
        SUM: LLMCalculatorOptions.CacheEvictionConfig.AggregationMode
        NORM_SUM: LLMCalculatorOptions.CacheEvictionConfig.AggregationMode
        class KVCrushConfig(_message.Message):
            __slots__ = ("budget", "anchor_point_mode", "rng_seed")
            class AnchorPointMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
                __slots__ = ()
                RANDOM: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode]
                ZEROS: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode]
                ONES: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode]
                MEAN: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode]
                ALTERNATING: _ClassVar[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode]
            RANDOM: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            ZEROS: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            ONES: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            MEAN: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            ALTERNATING: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            BUDGET_FIELD_NUMBER: _ClassVar[int]
            ANCHOR_POINT_MODE_FIELD_NUMBER: _ClassVar[int]
            RNG_SEED_FIELD_NUMBER: _ClassVar[int]
            budget: int
            anchor_point_mode: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode
            rng_seed: int
            def __init__(self, budget: _Optional[int] = ..., anchor_point_mode: _Optional[_Union[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig.AnchorPointMode, str]] = ..., rng_seed: _Optional[int] = ...) -> None: ...
        AGGREGATION_MODE_FIELD_NUMBER: _ClassVar[int]
        START_SIZE_FIELD_NUMBER: _ClassVar[int]
        RECENT_SIZE_FIELD_NUMBER: _ClassVar[int]
        MAX_CACHE_SIZE_FIELD_NUMBER: _ClassVar[int]
        APPLY_ROTATION_FIELD_NUMBER: _ClassVar[int]
        SNAPKV_WINDOW_SIZE_FIELD_NUMBER: _ClassVar[int]
        KV_CRUSH_CONFIG_FIELD_NUMBER: _ClassVar[int]
        aggregation_mode: LLMCalculatorOptions.CacheEvictionConfig.AggregationMode
        start_size: int
        recent_size: int
        max_cache_size: int
        apply_rotation: bool
        snapkv_window_size: int
        kv_crush_config: LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig
        def __init__(self, aggregation_mode: _Optional[_Union[LLMCalculatorOptions.CacheEvictionConfig.AggregationMode, str]] = ..., start_size: _Optional[int] = ..., recent_size: _Optional[int] = ..., max_cache_size: _Optional[int] = ..., apply_rotation: _Optional[bool] = ..., snapkv_window_size: _Optional[int] = ..., kv_crush_config: _Optional[_Union[LLMCalculatorOptions.CacheEvictionConfig.KVCrushConfig, _Mapping]] = ...) -> None: ...
    class SparseAttentionConfig(_message.Message):
        __slots__ = ("mode", "num_last_dense_tokens_in_prefill", "num_retained_start_tokens_in_cache", "num_retained_recent_tokens_in_cache", "xattention_threshold", "xattention_block_size", "xattention_stride")
        class SparseAttentionMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            TRISHAPE: _ClassVar[LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode]
            XATTENTION: _ClassVar[LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode]
        TRISHAPE: LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode
        XATTENTION: LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode
        MODE_FIELD_NUMBER: _ClassVar[int]
        NUM_LAST_DENSE_TOKENS_IN_PREFILL_FIELD_NUMBER: _ClassVar[int]
        NUM_RETAINED_START_TOKENS_IN_CACHE_FIELD_NUMBER: _ClassVar[int]
        NUM_RETAINED_RECENT_TOKENS_IN_CACHE_FIELD_NUMBER: _ClassVar[int]
        XATTENTION_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
        XATTENTION_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
        XATTENTION_STRIDE_FIELD_NUMBER: _ClassVar[int]
        mode: LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode
        num_last_dense_tokens_in_prefill: int
        num_retained_start_tokens_in_cache: int
        num_retained_recent_tokens_in_cache: int
        xattention_threshold: float
        xattention_block_size: int
        xattention_stride: int
        def __init__(self, mode: _Optional[_Union[LLMCalculatorOptions.SparseAttentionConfig.SparseAttentionMode, str]] = ..., num_last_dense_tokens_in_prefill: _Optional[int] = ..., num_retained_start_tokens_in_cache: _Optional[int] = ..., num_retained_recent_tokens_in_cache: _Optional[int] = ..., xattention_threshold: _Optional[float] = ..., xattention_block_size: _Optional[int] = ..., xattention_stride: _Optional[int] = ...) -> None: ...
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    DYNAMIC_SPLIT_FUSE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    BEST_OF_LIMIT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ENABLE_PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_DEVICE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_CACHE_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_DYNAMIC_SPLIT_FUSE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_EAGLE3_MODE_FIELD_NUMBER: _ClassVar[int]
    PIPELINE_TYPE_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVICTION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    TOOL_PARSER_FIELD_NUMBER: _ClassVar[int]
    REASONING_PARSER_FIELD_NUMBER: _ClassVar[int]
    ENABLE_TOOL_GUIDED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    SPARSE_ATTENTION_CONFIG_FIELD_NUMBER: _ClassVar[int]
    CACHE_INTERVAL_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_MODE_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    max_num_batched_tokens: int
    cache_size: int
    max_num_seqs: int
    dynamic_split_fuse: bool
    device: str
    plugin_config: str
    best_of_limit: int
    max_tokens_limit: int
    enable_prefix_caching: bool
    draft_models_path: str
    draft_device: str
    draft_max_num_batched_tokens: int
    draft_cache_size: int
    draft_block_size: int
    draft_max_num_seqs: int
    draft_dynamic_split_fuse: bool
    draft_eagle3_mode: bool
    pipeline_type: LLMCalculatorOptions.PipelineType
    cache_eviction_config: LLMCalculatorOptions.CacheEvictionConfig
    tool_parser: str
    reasoning_parser: str
    enable_tool_guided_generation: bool
    sparse_attention_config: LLMCalculatorOptions.SparseAttentionConfig
    cache_interval_multiplier: int
    chat_template_mode: LLMCalculatorOptions.ChatTemplateMode
    def __init__(self, models_path: _Optional[str] = ..., max_num_batched_tokens: _Optional[int] = ..., cache_size: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., dynamic_split_fuse: _Optional[bool] = ..., device: _Optional[str] = ..., plugin_config: _Optional[str] = ..., best_of_limit: _Optional[int] = ..., max_tokens_limit: _Optional[int] = ..., enable_prefix_caching: _Optional[bool] = ..., draft_models_path: _Optional[str] = ..., draft_device: _Optional[str] = ..., draft_max_num_batched_tokens: _Optional[int] = ..., draft_cache_size: _Optional[int] = ..., draft_block_size: _Optional[int] = ..., draft_max_num_seqs: _Optional[int] = ..., draft_dynamic_split_fuse: _Optional[bool] = ..., draft_eagle3_mode: _Optional[bool] = ..., pipeline_type: _Optional[_Union[LLMCalculatorOptions.PipelineType, str]] = ..., cache_eviction_config: _Optional[_Union[LLMCalculatorOptions.CacheEvictionConfig, _Mapping]] = ..., tool_parser: _Optional[str] = ..., reasoning_parser: _Optional[str] = ..., enable_tool_guided_generation: _Optional[bool] = ..., sparse_attention_config: _Optional[_Union[LLMCalculatorOptions.SparseAttentionConfig, _Mapping]] = ..., cache_interval_multiplier: _Optional[int] = ..., chat_template_mode: _Optional[_Union[LLMCalculatorOptions.ChatTemplateMode, str]] = ...) -> None: ...

class EmbeddingsCalculatorOVOptions(_message.Message):
    __slots__ = ("models_path", "normalize_embeddings", "target_device", "plugin_config", "pooling", "truncate")
    class Pooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CLS: _ClassVar[EmbeddingsCalculatorOVOptions.Pooling]
        LAST: _ClassVar[EmbeddingsCalculatorOVOptions.Pooling]
        MEAN: _ClassVar[EmbeddingsCalculatorOVOptions.Pooling]
    CLS: EmbeddingsCalculatorOVOptions.Pooling
    LAST: EmbeddingsCalculatorOVOptions.Pooling
    MEAN: EmbeddingsCalculatorOVOptions.Pooling
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    normalize_embeddings: bool
    target_device: str
    plugin_config: str
    pooling: EmbeddingsCalculatorOVOptions.Pooling
    truncate: bool
    def __init__(self, models_path: _Optional[str] = ..., normalize_embeddings: _Optional[bool] = ..., target_device: _Optional[str] = ..., plugin_config: _Optional[str] = ..., pooling: _Optional[_Union[EmbeddingsCalculatorOVOptions.Pooling, str]] = ..., truncate: _Optional[bool] = ...) -> None: ...

class RerankCalculatorOVOptions(_message.Message):
    __slots__ = ("models_path", "max_allowed_chunks", "max_position_embeddings", "target_device", "plugin_config")
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_ALLOWED_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITION_EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    max_allowed_chunks: int
    max_position_embeddings: int
    target_device: str
    plugin_config: str
    def __init__(self, models_path: _Optional[str] = ..., max_allowed_chunks: _Optional[int] = ..., max_position_embeddings: _Optional[int] = ..., target_device: _Optional[str] = ..., plugin_config: _Optional[str] = ...) -> None: ...

class ImageGenCalculatorOptions(_message.Message):
    __slots__ = ("models_path", "device", "plugin_config", "max_resolution", "default_resolution", "max_num_images_per_prompt", "default_num_inference_steps", "max_num_inference_steps", "resolution", "num_images_per_prompt", "guidance_scale", "lora_adapters", "composite_lora_adapters")
    class LoraAdapter(_message.Message):
        __slots__ = ("alias", "path", "alpha", "mode")
        class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            DYNAMIC: _ClassVar[ImageGenCalculatorOptions.LoraAdapter.Mode]
            STATIC: _ClassVar[ImageGenCalculatorOptions.LoraAdapter.Mode]
            FUSE: _ClassVar[ImageGenCalculatorOptions.LoraAdapter.Mode]
        DYNAMIC: ImageGenCalculatorOptions.LoraAdapter.Mode
        STATIC: ImageGenCalculatorOptions.LoraAdapter.Mode
        FUSE: ImageGenCalculatorOptions.LoraAdapter.Mode
        ALIAS_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        ALPHA_FIELD_NUMBER: _ClassVar[int]
        MODE_FIELD_NUMBER: _ClassVar[int]
        alias: str
        path: str
        alpha: float
        mode: ImageGenCalculatorOptions.LoraAdapter.Mode
        def __init__(self, alias: _Optional[str] = ..., path: _Optional[str] = ..., alpha: _Optional[float] = ..., mode: _Optional[_Union[ImageGenCalculatorOptions.LoraAdapter.Mode, str]] = ...) -> None: ...
    class CompositeLoraAdapter(_message.Message):
        __slots__ = ("alias", "components")
        class Component(_message.Message):
            __slots__ = ("adapter_alias", "alpha")
            ADAPTER_ALIAS_FIELD_NUMBER: _ClassVar[int]
            ALPHA_FIELD_NUMBER: _ClassVar[int]
            adapter_alias: str
            alpha: float
            def __init__(self, adapter_alias: _Optional[str] = ..., alpha: _Optional[float] = ...) -> None: ...
        ALIAS_FIELD_NUMBER: _ClassVar[int]
        COMPONENTS_FIELD_NUMBER: _ClassVar[int]
        alias: str
        components: _containers.RepeatedCompositeFieldContainer[ImageGenCalculatorOptions.CompositeLoraAdapter.Component]
        def __init__(self, alias: _Optional[str] = ..., components: _Optional[_Iterable[_Union[ImageGenCalculatorOptions.CompositeLoraAdapter.Component, _Mapping]]] = ...) -> None: ...
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    MAX_RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_IMAGES_PER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    NUM_IMAGES_PER_PROMPT_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    LORA_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    COMPOSITE_LORA_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    device: str
    plugin_config: str
    max_resolution: str
    default_resolution: str
    max_num_images_per_prompt: int
    default_num_inference_steps: int
    max_num_inference_steps: int
    resolution: str
    num_images_per_prompt: int
    guidance_scale: float
    lora_adapters: _containers.RepeatedCompositeFieldContainer[ImageGenCalculatorOptions.LoraAdapter]
    composite_lora_adapters: _containers.RepeatedCompositeFieldContainer[ImageGenCalculatorOptions.CompositeLoraAdapter]
    def __init__(self, models_path: _Optional[str] = ..., device: _Optional[str] = ..., plugin_config: _Optional[str] = ..., max_resolution: _Optional[str] = ..., default_resolution: _Optional[str] = ..., max_num_images_per_prompt: _Optional[int] = ..., default_num_inference_steps: _Optional[int] = ..., max_num_inference_steps: _Optional[int] = ..., resolution: _Optional[str] = ..., num_images_per_prompt: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., lora_adapters: _Optional[_Iterable[_Union[ImageGenCalculatorOptions.LoraAdapter, _Mapping]]] = ..., composite_lora_adapters: _Optional[_Iterable[_Union[ImageGenCalculatorOptions.CompositeLoraAdapter, _Mapping]]] = ...) -> None: ...

class S2tCalculatorOptions(_message.Message):
    __slots__ = ("models_path", "target_device", "plugin_config", "enable_word_timestamps")
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    ENABLE_WORD_TIMESTAMPS_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    target_device: str
    plugin_config: str
    enable_word_timestamps: bool
    def __init__(self, models_path: _Optional[str] = ..., target_device: _Optional[str] = ..., plugin_config: _Optional[str] = ..., enable_word_timestamps: _Optional[bool] = ...) -> None: ...

class T2sCalculatorOptions(_message.Message):
    __slots__ = ("models_path", "target_device", "plugin_config", "voices", "speed_min", "speed_max")
    class Voice(_message.Message):
        __slots__ = ("name", "path")
        NAME_FIELD_NUMBER: _ClassVar[int]
        PATH_FIELD_NUMBER: _ClassVar[int]
        name: str
        path: str
        def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...
    MODELS_PATH_FIELD_NUMBER: _ClassVar[int]
    TARGET_DEVICE_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_CONFIG_FIELD_NUMBER: _ClassVar[int]
    VOICES_FIELD_NUMBER: _ClassVar[int]
    SPEED_MIN_FIELD_NUMBER: _ClassVar[int]
    SPEED_MAX_FIELD_NUMBER: _ClassVar[int]
    models_path: str
    target_device: str
    plugin_config: str
    voices: _containers.RepeatedCompositeFieldContainer[T2sCalculatorOptions.Voice]
    speed_min: float
    speed_max: float
    def __init__(self, models_path: _Optional[str] = ..., target_device: _Optional[str] = ..., plugin_config: _Optional[str] = ..., voices: _Optional[_Iterable[_Union[T2sCalculatorOptions.Voice, _Mapping]]] = ..., speed_min: _Optional[float] = ..., speed_max: _Optional[float] = ...) -> None: ...
