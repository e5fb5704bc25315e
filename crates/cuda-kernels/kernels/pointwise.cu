// Everything of a step but GEMMs, attention and sampling. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.

#include "common.cuh"
#include "embed.cuh"
#include "norm.cuh"
#include "heads.cuh"
#include "activate.cuh"
#include "rotary.cuh"
#include "rope.cuh"
#include "gather.cuh"

extern "C" __global__ void __launch_bounds__(1024) rms_norm(NormArgs args) { norm_all<false>(args); }

extern "C" __global__ void __launch_bounds__(1024) layer_norm(NormArgs args) { norm_all<true>(args); }
