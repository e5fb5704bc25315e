// The GEMM of up to 64 rows with a weight, at the speed of memory. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.
//
// Rows are the 64 lines of wgmma and outputs its columns, so that one block a multiprocessor takes its share of the
// outputs in one piece. Each output is one chain of wgmma over the inputs in order, which gives cuBLAS's bits whatever
// the number of rows (it is checked for each model at its start): a row's text must not change when it is left alone.
//
// Two threads do nothing but ask for later stages, one for weights and one for inputs. The first one begins before the
// kernel before this one has ended, since weights do not depend on it. It keeps only as much in flight as memory needs
// to be busy: requests for all that a ring holds would queue before every read of the kernels that still run.

#include "common.cuh"
#include "nonlinearity.cuh"

// WEIGHT_ROWS: rows of the weight that a block takes. ACTIVATION: -1, or the nonlinearity that sums go through;
// IS_GATED: with a second half of the weight that multiplies it. NUM_PIECES: 1, or 2, 4 or 8 pieces of the inputs, each of
// which is a chain of its own; one tree adds them up.

#define HALVES (IS_GATED ? 2 : 1)
#define NUM_SUMS (WEIGHT_ROWS / 2) // of a thread
#define GROUP_THREADS 128 // those that multiply

struct GemmArgs {
    const T* bias;     // [weight's rows], or null
    const T* residual; // [rows, num_out], or null; may be `out`
    void* out;         // T or float [rows, num_out]
    int rows;
    int num_out;       // half of the weight's rows when gated
    int num_in;        // a multiple of 8 in each piece
    int num_stages;
    int max_pending;   // stages of weights that may be in flight at once
    u32 x_bytes;       // of a tile: 128 for each row, in eights
    int is_f32;        // `out`
};

// Of the threads that multiply; those that fetch have no part in it.
DEVICE void sync_group() { asm volatile("bar.sync 1, %0;" ::"n"(GROUP_THREADS) : "memory"); }

#include "ring.cuh"
#include "store.cuh"

// 16 inputs of all rows and outputs. MULTIPLY and MULTIPLY_SUMS name WEIGHT_ROWS / 2 registers, so the launcher
// writes them.
DEVICE void multiply(float (&sums)[NUM_SUMS], u64 x, u64 weight) {
    asm volatile(MULTIPLY : MULTIPLY_SUMS : "l"(x), "l"(weight));
}

// A stage's inputs with its weights, and the stage before is free.
DEVICE void multiply_stage(const Ring& ring, const GemmArgs& args, Place& place, int step, int& stage_before, float (&sums)[NUM_SUMS]) {
    u32 first = low_descriptor(ring.stages), tile_units = ring.tile_bytes / 16, x_units = args.x_bytes / 16;
    wait_for(ring.inputs_full(place.stage), place.round);
    wait_for(ring.weights_full(place.stage), place.round);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        // Lines past the last row are read too. They may hold garbage: lines are independent. The tile is found from the
        // stage each time: carried along, its descriptors are moved to uniform registers one by one (2B, 1 row: 5 %).
        u32 tile = first + (place.stage * TILES + i) * tile_units;
        u64 x = descriptor(tile), weight = descriptor(tile + x_units);
#pragma unroll
        for (int k = 0; k < TILE_ELEMS / 16; k++) multiply(sums, x + 2 * k, weight + 2 * k);
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (step > 0 && threadIdx.x == 0) arrive_at(ring.empty(stage_before));
    stage_before = place.stage;
    place.advance(ring);
}

#if NUM_PIECES == 1
DEVICE void multiply_all(const Ring& ring, const GemmArgs& args, float (&sums)[NUM_SUMS]) {
    int stage_before = 0;
    Place place;
#pragma unroll
    for (int i = 0; i < NUM_SUMS; i++) sums[i] = 0.0f;
    for (int step = 0; step < ring.num_steps; step++) multiply_stage(ring, args, place, step, stage_before, sums);
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
#else
// What a whole subtree of pieces adds up to waits in `left` for the subtree beside it: 1 piece, 2, 4.
DEVICE void multiply_all(const Ring& ring, const GemmArgs& args, float (&sums)[NUM_SUMS]) {
    const int LEVELS = NUM_PIECES == 8 ? 3 : NUM_PIECES == 4 ? 2 : 1;
    float left[LEVELS][NUM_SUMS];
    int stage_before = 0, steps = ring.num_steps / NUM_PIECES;
    Place place;
#pragma unroll 1
    for (int piece = 0; piece < NUM_PIECES; piece++) {
#pragma unroll
        for (int i = 0; i < NUM_SUMS; i++) sums[i] = 0.0f;
#pragma unroll 1
        for (int step = 0; step < steps; step++) multiply_stage(ring, args, place, piece * steps + step, stage_before, sums);
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        // Nothing that reads the sums may move before the wait.
#pragma unroll
        for (int i = 0; i < NUM_SUMS; i++) asm volatile("" : "+f"(sums[i]) :: "memory");
        bool goes_up = true;
#pragma unroll
        for (int level = 0; level < LEVELS; level++) {
            bool is_right = piece >> level & 1;
            if (goes_up && is_right) {
#pragma unroll
                for (int i = 0; i < NUM_SUMS; i++) sums[i] = left[level][i] + sums[i];
            } else if (goes_up) {
#pragma unroll
                for (int i = 0; i < NUM_SUMS; i++) left[level][i] = sums[i];
                goes_up = false;
            }
        }
    }
}
#endif

// Shared memory: the stages, at a multiple of 1,024 bytes, as the swizzle demands.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS + 64)
gemm(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, GemmArgs args) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[3 * MAX_STAGES];
    Ring ring;
    ring.barriers = (u32)__cvta_generic_to_shared(barriers);
    u32 start = (u32)__cvta_generic_to_shared(shared);
    ring.stages = (start + 1023) / 1024 * 1024;
    ring.tile_bytes = args.x_bytes + WEIGHT_BYTES;
    ring.num_stages = args.num_stages;
    ring.num_steps = NUM_PIECES * ((args.num_in / NUM_PIECES + TILE_ELEMS * TILES - 1) / (TILE_ELEMS * TILES));
    if (threadIdx.x == 0) {
        for (int i = 0; i < 3 * ring.num_stages; i++) init_barrier(ring.barriers + 8 * i, 1);
        // Tiles come by another path to memory, which must see the barriers.
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    let_next_start();
    if (threadIdx.x >= GROUP_THREADS) {
        if (threadIdx.x == GROUP_THREADS) fetch_weights(ring, args, &weight);
        if (threadIdx.x == GROUP_THREADS + 32) fetch_inputs(ring, args, &x);
        return;
    }
    wait_for_previous();
    float sums[NUM_SUMS];
    multiply_all(ring, args, sums);
    store_all(args, (float*)((char*)shared + (ring.stages - start)), sums);
}
