// The residual stream on its way to the next pipeline stage, through slots in memory of the stage that receives it (over
// NVLink, or within one GPU).
//
// Launches of both sides have the same number of blocks, whatever the size of a message, and a block writes and reads the
// same places of a slot each time. So blocks are apart: each says when its part is there, and when it has read it.
// A slot is written again when its part of the message `NUM_SLOTS` before was read.

#include "exchange.cuh"

#define NUM_SLOTS 4

// Mirrors `StageArgs` in stage.rs.
struct StageArgs {
    u64 data;      // uint4[num_vectors] of this rank: what is sent, or where it goes
    u64 slots;     // uint4[NUM_SLOTS][slot_vectors] of the rank that receives
    u64 came;      // u32[gridDim.x] there: messages that are there, by block
    u64 taken;     // u32[gridDim.x] there: messages that were read, by block
    u64 progress;  // of this rank
    u64 lost;      // u32 of the host: 1 + the stage that did not come
    i64 num_vectors;
    i64 slot_vectors;
    u32 other;     // the other stage
    u32 reserved;
};

DEVICE uint4* slot_of(const StageArgs& args, u32 epoch) { return (uint4*)args.slots + epoch % NUM_SLOTS * args.slot_vectors; }

extern "C" __global__ void __launch_bounds__(512) send_stage(const __grid_constant__ StageArgs args) {
    wait_for_previous();
    u32 epoch = begin(args.progress);
    if (threadIdx.x == 0 && !has_lost(args.progress)) {
        wait_for_mark(args.taken + 4 * blockIdx.x, epoch - NUM_SLOTS, args.progress, args.lost, args.other);
    }
    __syncthreads();
    const uint4* data = (const uint4*)args.data;
    uint4* slot = slot_of(args, epoch);
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 v = (i64)blockIdx.x * blockDim.x + threadIdx.x; v < args.num_vectors; v += step) slot[v] = __ldcg(data + v);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0 && !has_lost(args.progress)) mark(args.came + 4 * blockIdx.x, epoch);
    end(args.progress, epoch);
}

extern "C" __global__ void __launch_bounds__(512) receive_stage(const __grid_constant__ StageArgs args) {
    wait_for_previous();
    u32 epoch = begin(args.progress);
    if (threadIdx.x == 0 && !has_lost(args.progress)) {
        wait_for_mark(args.came + 4 * blockIdx.x, epoch, args.progress, args.lost, args.other);
    }
    __syncthreads();
    const uint4* slot = slot_of(args, epoch);
    uint4* data = (uint4*)args.data;
    i64 step = (i64)gridDim.x * blockDim.x;
    for (i64 v = (i64)blockIdx.x * blockDim.x + threadIdx.x; v < args.num_vectors; v += step) data[v] = __ldcg(slot + v);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0 && !has_lost(args.progress)) mark(args.taken + 4 * blockIdx.x, epoch);
    end(args.progress, epoch);
}
