// The GEMM of more rows than one `wgmma` has, for decode steps of up to about a thousand. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.
//
// Rows are the 64 lines of wgmma and outputs its columns, as in `gemm.cu`, and each output is the same chain of wgmma over
// the inputs in order, so the bits are the same. What is different: a block has ROW_GROUPS groups of warps with 64 rows
// each, and blocks form clusters that read memory together. A cluster is ACROSS blocks wide, which have the same rows and
// neighbouring outputs, and ALONG high, which have the same outputs and neighbouring rows. Each block asks for its share
// of what it has in common with others and has it delivered to all of them: with hundreds of rows the second-level cache
// could not serve every block by itself.

#include "common.cuh"
#include "nonlinearity.cuh"

// WEIGHT_ROWS: rows of the weight that a block takes. STAGES: of its ring. ACTIVATION and IS_GATED as in `gemm.cu`.

#define HALVES (IS_GATED ? 2 : 1)
#define GROUP_THREADS (128 * ROW_GROUPS) // those that multiply
#define BLOCK_ROWS (64 * ROW_GROUPS)
#define X_BYTES (BLOCK_ROWS * 128)       // of a stage
#define STAGE_BYTES (X_BYTES + WEIGHT_ROWS * 128)
#define CLUSTER (ACROSS * ALONG)

#include "tile.cuh"
#include "store.cuh"

struct ClusterGemmArgs {
    GemmOut to;
    int num_in;        // a multiple of 8
    int row_clusters;  // clusters that cover all rows; those of one range of outputs are neighbours
};

// Asks for a tile as `fetch_tile` does, for the same place in each block of the cluster that `mask` has a bit for.
DEVICE void fetch_shared_tile(u32 to, const TensorMap* matrix, int i, int row, u32 barrier, u16 mask) {
    if constexpr (CLUSTER == 1) {
        fetch_tile(to, matrix, i, row, barrier);
    } else {
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;"
                     ::"r"(to), "l"(matrix), "r"(i), "r"(row), "r"(barrier), "h"(mask) : "memory");
    }
}

// Arrives at the barrier of another block of the cluster, or of this one. Not with `.release.cluster`, which waits for all
// that the thread has under way, half a microsecond: what is released was only read, and by `wgmma`, which has ended.
DEVICE void arrive_there(u32 barrier, u32 rank) {
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there];}"
                 ::"r"(barrier), "r"(rank) : "memory");
}

DEVICE void arrive_cluster() {
    if constexpr (CLUSTER > 1) asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
}

DEVICE void wait_cluster() {
    if constexpr (CLUSTER > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

// Where a block is in its cluster, and its part of the result.
struct Seat {
    int across;
    int along;
    OutTile tile;
};

DEVICE Seat find_seat(const ClusterGemmArgs& args) {
    Seat seat;
    int rank = blockIdx.x % CLUSTER, cluster = blockIdx.x / CLUSTER;
    seat.across = rank % ACROSS, seat.along = rank / ACROSS;
    seat.tile.first_row = (cluster % args.row_clusters * ALONG + seat.along) * BLOCK_ROWS;
    seat.tile.num_rows = max(0, min(BLOCK_ROWS, args.to.rows - seat.tile.first_row));
    seat.tile.first_output = (cluster / args.row_clusters * ACROSS + seat.across) * OUTPUTS;
    return seat;
}

// Two barriers a stage: it is full, it is empty in all blocks that this one fetches for.
struct Stages {
    u32 barriers;
    u32 memory;

    DEVICE u32 full(int stage) const { return barriers + stage * 16; }
    DEVICE u32 empty(int stage) const { return barriers + stage * 16 + 8; }
    DEVICE u32 inputs(int stage) const { return memory + stage * STAGE_BYTES; }
    DEVICE u32 weights(int stage) const { return inputs(stage) + X_BYTES; }
};

// This block's share of the inputs of its rows.
DEVICE void fetch_inputs(const Stages& stages, const Seat& seat, const TensorMap* x, int step, int stage) {
    const int SHARE = BLOCK_ROWS / ACROSS;
    u16 mask = ((1 << ACROSS) - 1) << (seat.along * ACROSS);
    u32 to = stages.inputs(stage) + seat.across * SHARE * 128;
    fetch_shared_tile(to, x, step * TILE_ELEMS, seat.tile.first_row + seat.across * SHARE, stages.full(stage), mask);
}

// This block's share of the weights of its outputs.
DEVICE void fetch_weights(const Stages& stages, const Seat& seat, const TensorMap* weight, int num_out, int step, int stage) {
    const int SHARE = WEIGHT_ROWS / HALVES / ALONG;
    u16 mask = 0;
#pragma unroll
    for (int i = 0; i < ALONG; i++) mask |= 1 << (i * ACROSS + seat.across);
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        int of_half = seat.along * SHARE;
        u32 to = stages.weights(stage) + (half * (WEIGHT_ROWS / HALVES) + of_half) * 128;
        int row = half * num_out + seat.tile.first_output + of_half;
        fetch_shared_tile(to, weight, step * TILE_ELEMS, row, stages.full(stage), mask);
    }
}

// One thread asks for all stages.
DEVICE void fetch_all(const Stages& stages, const Seat& seat, const TensorMap* x, const TensorMap* weight, int num_out, int num_steps) {
    // Weights do not depend on the kernel before this one.
    int num_first = min(num_steps, STAGES);
    for (int step = 0; step < num_first; step++) {
        expect_bytes(stages.full(step), STAGE_BYTES);
        fetch_weights(stages, seat, weight, num_out, step, step);
    }
    wait_for_previous();
    for (int step = 0; step < num_first; step++) fetch_inputs(stages, seat, x, step, step);
    int stage = 0;
    u32 round = 0;
    for (int step = num_first; step < num_steps; step++) {
        wait_for(stages.empty(stage), round);
        expect_bytes(stages.full(stage), STAGE_BYTES);
        fetch_weights(stages, seat, weight, num_out, step, stage);
        fetch_inputs(stages, seat, x, step, stage);
        if (++stage == STAGES) stage = 0, round ^= 1;
    }
}

// Tells all blocks that fetch for this one that its group of warps is done with a stage.
DEVICE void release(const Stages& stages, const Seat& seat, int stage) {
    int thread = threadIdx.x % 128;
    if constexpr (CLUSTER == 1) {
        if (thread == 0) arrive_at(stages.empty(stage));
    } else {
        if (thread < ACROSS) arrive_there(stages.empty(stage), seat.along * ACROSS + thread);
        int other = thread - 32;
        if (other >= 0 && other < ALONG && other != seat.along) arrive_there(stages.empty(stage), other * ACROSS + seat.across);
    }
}

DEVICE void multiply_all(const Stages& stages, const Seat& seat, int num_steps, float (&sums)[WEIGHT_ROWS / 2]) {
    u32 of_group = threadIdx.x / 128 * 64 * 128;
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS / 2; i++) sums[i] = 0.0f;
    int stage = 0, stage_before = 0;
    u32 round = 0;
    for (int step = 0; step < num_steps; step++) {
        wait_for(stages.full(stage), round);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        // Rows past the last one are 0.
        u64 x = descriptor(low_descriptor(stages.inputs(stage) + of_group)), weight = descriptor(low_descriptor(stages.weights(stage)));
#pragma unroll
        for (int k = 0; k < TILE_ELEMS / 16; k++) multiply(sums, x + 2 * k, weight + 2 * k);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > 0) release(stages, seat, stage_before);
        stage_before = stage;
        if (++stage == STAGES) stage = 0, round ^= 1;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// Grid: whole clusters. Shared memory: the stages, at a multiple of 1,024 bytes, as the swizzle demands.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS + 32, 1)
cluster_gemm(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, ClusterGemmArgs args) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[2 * STAGES];
    u32 start = (u32)__cvta_generic_to_shared(shared);
    Stages stages = {(u32)__cvta_generic_to_shared(barriers), (start + 1023) / 1024 * 1024};
    Seat seat = find_seat(args);
    int num_steps = (args.num_in + TILE_ELEMS - 1) / TILE_ELEMS;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(stages.full(stage), 1);
            init_barrier(stages.empty(stage), ROW_GROUPS * (ACROSS + ALONG - 1));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        // Tiles come by another path to memory, which must see the barriers.
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    arrive_cluster();
    wait_cluster();
    let_next_start();
    if (threadIdx.x >= GROUP_THREADS) {
        if (threadIdx.x == GROUP_THREADS) fetch_all(stages, seat, &x, &weight, args.to.num_out, num_steps);
        __syncwarp();
        arrive_cluster();
    } else {
        wait_for_previous();
        float sums[WEIGHT_ROWS / 2];
        multiply_all(stages, seat, num_steps, sums);
        arrive_cluster();
        store_all(args.to, seat.tile, (float*)((char*)shared + (stages.memory - start)), sums);
    }
    // Others may arrive at this block's barriers as long as they multiply.
    wait_cluster();
}
