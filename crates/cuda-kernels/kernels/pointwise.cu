// Everything of a step but products, attention and sampling. Programs are put together in
// `crates/cuda-kernels/src/programs.rs`.

#include "common.cuh"
#include "embed.cuh"
#include "norm.cuh"
#include "activate.cuh"
#include "rotary.cuh"
#include "rope.cuh"
#include "blocks.cuh"
