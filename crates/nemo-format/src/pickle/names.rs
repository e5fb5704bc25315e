//! The closed list of names that a pickle may mention.

/// Names that checkpoints mention. Storage classes, dtypes and layouts of `torch` are allowed as a group.
const ALLOWED: &[(&str, &str)] = &[
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("_codecs", "encode"),
    ("_io", "BytesIO"),
    ("builtins", "bytes"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("__builtin__", "bytes"),
    ("__builtin__", "set"),
    ("__builtin__", "frozenset"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
];
/// Modules of torch's distributed checkpoints, whose metadata classes are allowed.
const METADATA_MODULES: &[&str] = &[
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed._shard.sharded_tensor.metadata",
];
const METADATA_CLASSES: &[&str] = &[
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "_MEM_FORMAT_ENCODING",
    "MEM_FORMAT_ENCODING",
    "StorageMeta",
    "_StorageInfo",
];
const TORCH_NAMES: &[&str] = &[
    "Size",
    "device",
    "strided",
    "DoubleStorage",
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
    "ComplexFloatStorage",
    "ComplexDoubleStorage",
    "QInt8Storage",
    "QUInt8Storage",
    "QInt32Storage",
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "complex32",
    "complex64",
    "complex128",
    "uint16",
    "uint32",
    "uint64",
];

/// Which names a pickle may mention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// Those of weights.
    Weights,
    /// Those of the state of a training beside its weights, too: arguments, counters, states of optimizers and generators, and
    /// the plans that Megatron-Core keeps of who wrote what.
    Training,
}

/// Modules of such values, each with all below it.
const TRAINING_MODULES: &[&str] = &[
    "apex",
    "argparse",
    "collections",
    "datetime",
    "enum",
    "megatron",
    "modelopt",
    "numpy",
    "pathlib",
    "signal",
    "torch",
    "transformer_engine",
    "types",
];
/// Names of the interpreter's own that such values are made with.
const TRAINING_NAMES: &[(&str, &str)] = &[
    ("builtins", "complex"),
    ("builtins", "dict"),
    ("builtins", "float"),
    ("builtins", "getattr"),
    ("builtins", "int"),
    ("builtins", "list"),
    ("builtins", "object"),
    ("builtins", "range"),
    ("builtins", "slice"),
    ("builtins", "str"),
    ("builtins", "tuple"),
    ("copyreg", "_reconstructor"),
    ("functools", "partial"),
];

/// Whether a pickle may mention this name.
pub(super) fn is_allowed(names: Names, module: &str, name: &str) -> bool {
    is_of_weights(module, name) || (names == Names::Training && is_of_training(module, name))
}

fn is_of_training(module: &str, name: &str) -> bool {
    let top = module.split('.').next().unwrap_or(module);
    TRAINING_MODULES.contains(&top) || TRAINING_NAMES.contains(&(module, name))
}

fn is_of_weights(module: &str, name: &str) -> bool {
    ALLOWED.contains(&(module, name))
        || (module == "torch" && TORCH_NAMES.contains(&name))
        || (METADATA_MODULES.contains(&module) && METADATA_CLASSES.contains(&name))
}
