//! The project's CPU kernels: linear layers, norms, attention over a paged KV cache.
//!
//! libtorch's own CPU kernels choose their algorithm by the shape of the whole batch, so that a row's bits depend on
//! what shares its batch, and reach half of what the vector units do at these sizes (`docs/performance.md`). Here
//! every row is a fixed sequence of operations. Tensors stand at the boundary; their shapes are checked there.

mod attention;
mod buffer;
mod e4m3;
mod elem;
mod error;
mod isa;
mod kernels;
mod kv;
mod linear;
mod math;
mod nonlinearity;
mod norm;
mod packed;
mod peak;
mod pool;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(
        dead_code,
        unused_variables,
        irrefutable_let_patterns,
        reason = "the matrix units and dot products are x86-64's"
    )
)]
mod tile;

pub use attention::{HeadShape, PagedSequence, RotaryTable};
pub use elem::SourceDType;
pub use error::CpuKernelError;
pub use isa::{Isa, NoIsa};
pub use kernels::{AttentionStep, CpuKernels};
pub use kv::{BLOCK_TOKENS, KvShape, MAX_HEAD_DIM, PackedBlock, PackedKv};
pub use math::exp;
pub use norm::NormParams;
pub use packed::{Layout, PackedLinear, StoredLinear};
pub use peak::peak_flops;
