//! The CPU kernels against libtorch's own operations, on odd shapes and every instruction set of this machine.

mod kernels;
