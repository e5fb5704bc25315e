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
