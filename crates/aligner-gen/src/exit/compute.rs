//! Exit codes of everything that computes: the model, the engine, the sampler, the kernels and libtorch.
//!
//! Every variant is named, without a wildcard: whoever adds an error decides what it means to the caller's script.

use cpu_kernels::CpuKernelError;
#[cfg(any(feature = "cuda", test))]
use cuda_kernels::KernelError;
#[cfg(any(feature = "cuda", test))]
use cuda_runtime::CudaError;
use engine::EngineError;
use model_core::ModelError;
use model_parallel::MeshError;
use sampling::SamplingError;
use tch::TchError;
use torch_ext::ExtError;

use super::{ExitStatus, Failure};

macro_rules! failure_from {
    ($($error:ty => $status:ident),* $(,)?) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self { status: $status(&error), error: error.into() }
            }
        })*
    };
}

failure_from! {
    ModelError => model_status,
    EngineError => engine_status,
    SamplingError => sampling_status,
}

/// Whether an error says that another rank of the model is lost or has failed.
pub(super) fn is_lost_rank(error: &(dyn std::error::Error + 'static)) -> bool {
    let of_model = |error: &ModelError| matches!(error, ModelError::LostRank(_));
    let of_sampler = |error: &SamplingError| matches!(error, SamplingError::OtherRank(_));
    error.is::<MeshError>()
        || error.downcast_ref().is_some_and(of_model)
        || error.downcast_ref().is_some_and(of_sampler)
        || error.downcast_ref().is_some_and(|error: &EngineError| match error {
            EngineError::Model(error) => of_model(error),
            EngineError::Sampling(error) => of_sampler(error),
            _ => false,
        })
}

fn model_status(error: &ModelError) -> ExitStatus {
    match error {
        ModelError::OutOfMemory(_) | ModelError::NoBackend { .. } => ExitStatus::Device,
        ModelError::MixedNumerics { .. }
        | ModelError::BeyondWindow { .. }
        | ModelError::NoAttention { .. }
        | ModelError::Indivisible(_) => ExitStatus::Usage,
        ModelError::SequenceTooLong { .. } | ModelError::TooLong { .. } => ExitStatus::Data,
        ModelError::MissingKey { .. }
        | ModelError::BadValue { .. }
        | ModelError::Unsupported { .. }
        | ModelError::ShapeMismatch { .. }
        | ModelError::MissingTensor { .. }
        | ModelError::NotFloat { .. }
        | ModelError::UnknownTensors { .. }
        | ModelError::BadToken { .. }
        | ModelError::Format(_) => ExitStatus::Checkpoint,
        // A fault of the program itself.
        ModelError::BadBatch { .. }
        | ModelError::BadBlock { .. }
        | ModelError::NoKvTable { .. }
        | ModelError::BadHostBlock { .. }
        // That rank has the code of what happened to it.
        | ModelError::LostRank(_) => ExitStatus::Failed,
        ModelError::CpuKernel(error) => cpu_kernel_status(error),
        #[cfg(feature = "cuda")]
        ModelError::Kernel(error) => kernel_status(error),
        #[cfg(feature = "cuda")]
        ModelError::Cuda(error) => cuda_status(error),
        ModelError::Ext(error) => ext_status(error),
        ModelError::Torch(error) => torch_status(error),
    }
}

fn engine_status(error: &EngineError) -> ExitStatus {
    match error {
        EngineError::RequestTooLarge { .. } => ExitStatus::Device,
        EngineError::EmptyPrompt { .. } => ExitStatus::Data,
        // Faults of the program itself.
        EngineError::BadLimit { .. }
        | EngineError::UnknownSequence { .. }
        | EngineError::UnsupportedStep { .. }
        | EngineError::BadOutput { .. }
        | EngineError::TablesTooSmall { .. } => ExitStatus::Failed,
        EngineError::Model(error) => model_status(error),
        EngineError::Sampling(error) => sampling_status(error),
        #[cfg(feature = "cuda")]
        EngineError::Cuda(error) => cuda_status(error),
        EngineError::Ext(error) => ext_status(error),
        EngineError::Torch(error) => torch_status(error),
    }
}

fn sampling_status(error: &SamplingError) -> ExitStatus {
    match error {
        SamplingError::BadParam { .. }
        | SamplingError::BadBias { .. }
        | SamplingError::TooManyEndTokens { .. } => ExitStatus::Usage,
        SamplingError::BadVocabSize { .. } => ExitStatus::Checkpoint,
        // NaN may come of the weights or of the arithmetic: `nonfinite` says which.
        SamplingError::BadShape { .. }
        | SamplingError::BadLogits { .. }
        // A fault of the program itself.
        | SamplingError::TooManyTexts { .. }
        | SamplingError::OtherRank(_) => ExitStatus::Failed,
        #[cfg(feature = "cuda")]
        SamplingError::Kernel(error) => kernel_status(error),
        #[cfg(feature = "cuda")]
        SamplingError::Cuda(error) => cuda_status(error),
        SamplingError::Ext(error) => ext_status(error),
        SamplingError::Torch(error) => torch_status(error),
    }
}

fn cpu_kernel_status(error: &CpuKernelError) -> ExitStatus {
    match error {
        CpuKernelError::OutOfMemory { .. } | CpuKernelError::NoIsa(_) => ExitStatus::Device,
        CpuKernelError::BadTensor(_) | CpuKernelError::Threads(_) => ExitStatus::Failed,
        CpuKernelError::Ext(error) => ext_status(error),
    }
}

#[cfg(any(feature = "cuda", test))]
fn kernel_status(error: &KernelError) -> ExitStatus {
    match error {
        KernelError::BadKernelConfig { .. } => ExitStatus::Checkpoint,
        KernelError::BadTensor(_) => ExitStatus::Failed,
        KernelError::Cuda(error) => cuda_status(error),
        KernelError::Ext(error) => ext_status(error),
    }
}

#[cfg(any(feature = "cuda", test))]
fn cuda_status(error: &CudaError) -> ExitStatus {
    match error {
        CudaError::HostOutOfMemory { .. }
        | CudaError::DeviceOutOfMemory
        | CudaError::Call { .. }
        | CudaError::NoDevice { .. }
        | CudaError::Library { .. }
        | CudaError::Compile { .. } => ExitStatus::Device,
        CudaError::BadTensor(_) | CudaError::BadLaunch { .. } | CudaError::File { .. } => ExitStatus::Failed,
        CudaError::Ext(error) => ext_status(error),
    }
}

fn ext_status(error: &ExtError) -> ExitStatus {
    match error {
        ExtError::DeviceOutOfMemory { .. } | ExtError::Cuda { .. } => ExitStatus::Device,
        ExtError::BadTensor(_) => ExitStatus::Failed,
        ExtError::Torch(error) => torch_status(error),
        ExtError::Libtorch(text) => text_status(text),
    }
}

fn torch_status(error: &TchError) -> ExitStatus {
    text_status(&error.to_string())
}

/// libtorch has no error codes: what a GPU refuses begins with the name of the library that it was asked through, and
/// used-up memory is worded by each allocator in its own way.
fn text_status(text: &str) -> ExitStatus {
    const OF_A_DEVICE: [&str; 6] =
        ["CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "out of memory", "t allocate memory"];
    if OF_A_DEVICE.iter().any(|part| text.contains(part)) { ExitStatus::Device } else { ExitStatus::Failed }
}

#[cfg(test)]
mod tests {
    use cpu_kernels::{Isa, NoIsa};
    use model_spec::{Float, Numerics};
    use torch_ext::BadTensor;

    use super::*;

    fn check<E: Into<Failure>>(error: E, expect: ExitStatus) {
        let failure = error.into();
        assert_eq!(failure.status, expect, "{failure:?}");
    }

    fn torch(text: &str) -> TchError {
        TchError::Torch(text.to_owned())
    }

    fn io() -> std::io::Error {
        std::io::Error::from_raw_os_error(11)
    }

    fn bad_tensor() -> BadTensor {
        BadTensor { what: "x", expected: String::new(), actual: String::new() }
    }

    /// Every variant, with the code that it means wherever it comes up.
    fn of_the_shim() -> Vec<(ExtError, ExitStatus)> {
        vec![
            (bad_tensor().into(), ExitStatus::Failed),
            (ExtError::DeviceOutOfMemory { asked_bytes: None, free_bytes: None }, ExitStatus::Device),
            (ExtError::Cuda { call: "setCurrentStream", reason: String::new() }, ExitStatus::Device),
            (ExtError::Torch(torch("CUDA error: an illegal memory access")), ExitStatus::Device),
            (ExtError::Torch(torch("shapes differ")), ExitStatus::Failed),
            (ExtError::Libtorch("CUBLAS_STATUS_EXECUTION_FAILED".to_owned()), ExitStatus::Device),
            (ExtError::Libtorch("Connection reset by peer".to_owned()), ExitStatus::Failed),
        ]
    }

    fn of_the_gpu() -> Vec<(CudaError, ExitStatus)> {
        let own = [
            (bad_tensor().into(), ExitStatus::Failed),
            (CudaError::HostOutOfMemory { size_bytes: 1, source: io() }, ExitStatus::Device),
            (CudaError::DeviceOutOfMemory, ExitStatus::Device),
            (CudaError::Call { call: "cuInit", reason: String::new() }, ExitStatus::Device),
            (CudaError::NoDevice { index: 1, count: 1 }, ExitStatus::Device),
            (CudaError::Library { name: "libcuda", reason: String::new(), help: "" }, ExitStatus::Device),
            (
                CudaError::Compile { program: "plan", arch: String::new(), log: String::new() },
                ExitStatus::Device,
            ),
            (CudaError::BadLaunch { kernel: String::new(), reason: String::new() }, ExitStatus::Failed),
            (CudaError::File { action: "write", path: "x".into(), source: io() }, ExitStatus::Failed),
        ];
        let passed_on = of_the_shim().into_iter().map(|(error, expect)| (error.into(), expect));
        own.into_iter().chain(passed_on).collect()
    }

    #[test]
    fn of_the_shim_wherever_it_is_called() {
        for (error, expect) in of_the_shim() {
            check(ModelError::Ext(error), expect);
        }
        for (error, expect) in of_the_shim() {
            check(SamplingError::Ext(error), expect);
        }
        for (error, expect) in of_the_shim() {
            check(EngineError::Ext(error), expect);
        }
        for (error, expect) in of_the_shim() {
            check(EngineError::Model(ModelError::Ext(error)), expect);
        }
        for (error, expect) in of_the_shim() {
            check(EngineError::Sampling(SamplingError::Ext(error)), expect);
        }
    }

    #[test]
    fn of_the_cpu_kernels() {
        for (error, expect) in [
            (bad_tensor().into(), ExitStatus::Failed),
            (CpuKernelError::OutOfMemory { size_bytes: 1, source: io() }, ExitStatus::Device),
            (CpuKernelError::Threads(io()), ExitStatus::Failed),
            (NoIsa { wanted: Isa::Amx, best: Isa::Avx2 }.into(), ExitStatus::Device),
        ] {
            check(ModelError::CpuKernel(error), expect);
        }
        for (error, expect) in of_the_shim() {
            check(ModelError::CpuKernel(error.into()), expect);
        }
    }

    /// By their own function, since the errors of models have them with feature `cuda` only.
    #[test]
    fn of_the_cuda_kernels_and_the_gpu() {
        for (error, expect) in of_the_gpu() {
            assert_eq!(cuda_status(&error), expect, "{error:?}");
            assert_eq!(kernel_status(&error.into()), expect);
        }
        for (error, expect) in of_the_shim() {
            assert_eq!(kernel_status(&error.into()), expect);
        }
        let (expected, actual) = (String::new(), String::new());
        let no_kernels = KernelError::BadKernelConfig { what: "head_dim", expected, actual };
        assert_eq!(kernel_status(&no_kernels), ExitStatus::Checkpoint);
        assert_eq!(kernel_status(&bad_tensor().into()), ExitStatus::Failed);
    }

    #[test]
    fn of_libtorch() {
        for text in
            ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory"]
        {
            check(ModelError::from(torch(text)), ExitStatus::Device);
            check(EngineError::Torch(torch(text)), ExitStatus::Device);
            check(SamplingError::Torch(torch(text)), ExitStatus::Device);
        }
        check(ModelError::from(torch("shapes differ")), ExitStatus::Failed);
        check(EngineError::Torch(torch("shapes differ")), ExitStatus::Failed);
    }

    #[test]
    fn of_the_model() {
        let (key, name) = ("hidden_size", "layers.0".to_owned());
        let (expected, actual) = (String::new(), String::new());
        let cases = [
            (ModelError::OutOfMemory(torch("")), ExitStatus::Device),
            (ModelError::NoBackend { backend: "CUDA", reason: "" }, ExitStatus::Device),
            (ModelError::MixedNumerics { numerics: Numerics::uniform(Float::Fp32) }, ExitStatus::Usage),
            (ModelError::BeyondWindow { encoder_seq_length: 2, tokens: 1, key }, ExitStatus::Usage),
            (
                ModelError::NoAttention { flash: false, fused: false, compute: Float::Fp32, head_dim: 64 },
                ExitStatus::Usage,
            ),
            (
                ModelError::Indivisible(model_spec::Indivisible {
                    name: name.clone(),
                    tp_size: 2,
                    num_units: 1,
                    origin: String::new(),
                }),
                ExitStatus::Usage,
            ),
            (ModelError::SequenceTooLong { num_tokens: 2, limit: 1, key }, ExitStatus::Data),
            (ModelError::TooLong { actual: 2, limit: 1 }, ExitStatus::Data),
            (ModelError::MissingKey { key }, ExitStatus::Checkpoint),
            (
                ModelError::BadValue { key, expected: expected.clone(), actual: actual.clone() },
                ExitStatus::Checkpoint,
            ),
            (
                ModelError::Unsupported { key, value: String::new(), feature: "", needs: "" },
                ExitStatus::Checkpoint,
            ),
            (
                ModelError::ShapeMismatch {
                    name: name.clone(),
                    contradicted: String::new(),
                    expected: vec![1],
                    actual: vec![2],
                },
                ExitStatus::Checkpoint,
            ),
            (
                ModelError::MissingTensor { name: name.clone(), because: String::new() },
                ExitStatus::Checkpoint,
            ),
            (ModelError::NotFloat { name: name.clone(), actual: "i8" }, ExitStatus::Checkpoint),
            (
                ModelError::UnknownTensors { count: 1, names: vec![name], because: String::new() },
                ExitStatus::Checkpoint,
            ),
            (ModelError::BadToken { token: 2, padded_vocab_size: 1 }, ExitStatus::Checkpoint),
            (ModelError::BadBatch { what: "rows", expected, actual }, ExitStatus::Failed),
            (ModelError::BadBlock { block: Default::default(), num_blocks: 1 }, ExitStatus::Failed),
            (ModelError::NoKvTable { layer: 3 }, ExitStatus::Failed),
            (ModelError::BadHostBlock { block: 2, num_host_blocks: 1 }, ExitStatus::Failed),
        ];
        for (error, expect) in cases {
            check(EngineError::Model(error), expect);
        }
        let missing = nemo_format::Checkpoint::open(std::path::Path::new("/does/not/exist")).unwrap_err();
        check(ModelError::Format(missing), ExitStatus::Checkpoint);
    }

    #[test]
    fn of_the_sampler() {
        let cases = [
            (
                SamplingError::BadParam { key: "top_k", expected: "", actual: String::new() },
                ExitStatus::Usage,
            ),
            (SamplingError::BadVocabSize { actual: 0, limit: 1 }, ExitStatus::Checkpoint),
            (SamplingError::BadShape { actual: vec![1], num_rows: 2, vocab_size: 3 }, ExitStatus::Failed),
            (
                SamplingError::BadLogits { sample_idx: 7, response_idx: 0, token_idx: 0, problem: "NaN" },
                ExitStatus::Failed,
            ),
        ];
        for (error, expect) in cases {
            check(EngineError::Sampling(error), expect);
        }
    }

    #[test]
    fn of_the_engine() {
        let too_large = EngineError::RequestTooLarge {
            sample_idx: 0,
            prompt_tokens: 1,
            max_new_tokens: 1,
            needed_blocks: 2,
            num_blocks: 1,
            block_size_tokens: 32,
        };
        check(too_large, ExitStatus::Device);
        check(EngineError::EmptyPrompt { sample_idx: 0 }, ExitStatus::Data);
        check(
            EngineError::BadLimit { limit: "num_blocks", expected: String::new(), actual: 0 },
            ExitStatus::Failed,
        );
        let faults = [
            EngineError::UnknownSequence { group_idx: 0, response_idx: 0 },
            EngineError::UnsupportedStep { executor: "host", what: "chunks" },
            EngineError::BadOutput { row: 0, draws: 1, actual: 2 },
            EngineError::TablesTooSmall { what: "rows", actual: 2, limit: 1 },
        ];
        for fault in faults {
            check(fault, ExitStatus::Failed);
        }
    }
}
