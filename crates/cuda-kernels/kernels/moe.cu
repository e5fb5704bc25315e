// A mixture of experts, from the router's input to the residual stream, in six kernels that need nothing from the host:
// `route` and `choose` find experts, `group` brings the rows of each together, `experts_in` and `experts_out` multiply all of them with
// their experts' weights, and `join` adds up what a row's experts made of it. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.
//
// A row's result is one sequence of operations whatever shares its batch: each output of an expert is one chain of
// mma.m16n8k16 over the inputs in order, in tiles of any height, and slots are added in their order in float32.

#include "common.cuh"
#include "nonlinearity.cuh"
#include "moe_route.cuh"
#include "moe_group.cuh"
#if ELEM == 0
#include "moe_multiply_f32.cuh"
#else
#include "moe_multiply.cuh"
#endif
#include "moe_join.cuh"
