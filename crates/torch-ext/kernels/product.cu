// The product of up to 64 rows with a weight, at the speed of memory. Programs are put together in
// `crates/torch-ext/src/cuda/kernels/programs.rs`.
//
// Rows are the 64 lines of wgmma and outputs its columns, so that one block a multiprocessor takes its share of the
// outputs in one piece. Each output is one chain of wgmma over the inputs in order, which gives cuBLAS's bits whatever
// the number of rows (it is checked for each model at its start): a row's text must not change when it is left alone.
//
// One warp does nothing but ask for the inputs and weights of later stages, and begins with the weights before the
// kernel before this one has ended: they do not depend on it.

#include "common.cuh"
#include "nonlinearity.cuh"

// WEIGHT_ROWS: rows of the weight that a block takes. ACTIVATION: -1, or the nonlinearity that sums go through;
// IS_GATED: with a second half of the weight that multiplies it.

#define TILE_ELEMS 64                    // of a row: 128 bytes, as wide as the swizzle
#define WEIGHT_BYTES (WEIGHT_ROWS * 128) // of a tile; gated, the second half of its rows multiplies the first
#define HALVES (IS_GATED ? 2 : 1)
#define MAX_STAGES 16
#define GROUP_THREADS 128                // those that multiply

// What the driver makes of a matrix (`CUtensorMap`).
struct __align__(64) TensorMap {
    u64 words[16];
};

struct ProductArgs {
    const T* bias;     // [weight's rows], or null
    const T* residual; // [rows, num_out], or null; may be `out`
    void* out;         // T or float [rows, num_out]
    int rows;
    int num_out;       // half of the weight's rows when gated
    int num_in;        // a multiple of 8
    int num_stages;
    u32 x_bytes;       // of a tile: 128 for each row, in eights
    int is_f32;        // `out`
};

DEVICE void init_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

DEVICE void arrive_at(u32 barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

// The loop stands in C++ on purpose: written within the assembly it made steps of one row 5 % slower.
DEVICE void wait_for(u32 barrier, u32 phase) {
    u32 done = 0;
    while (!done) {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
    }
}

DEVICE void expect_bytes(u32 barrier, u32 count) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Asks for one tile, from element `i` of the row `row` on. What lies outside the matrix comes as 0.
DEVICE void fetch_tile(u32 to, const TensorMap* matrix, int i, int row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(to), "l"(matrix), "r"(i), "r"(row), "r"(barrier) : "memory");
}

// Rows of 128 swizzled bytes, 1,024 bytes between groups of eight.
DEVICE u64 descriptor(u32 address) { return (u64)((address & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62; }

// 16 inputs of all rows and outputs. MULTIPLY and MULTIPLY_SUMS name WEIGHT_ROWS / 2 registers, so the launcher
// writes them.
DEVICE void multiply(float (&sums)[WEIGHT_ROWS / 2], u64 x, u64 weight) {
    asm volatile(MULTIPLY : MULTIPLY_SUMS : "l"(x), "l"(weight));
}

// The ring of stages. Each has TILES tiles, each of them inputs and then weights, and two barriers: full and empty.
struct Ring {
    u32 barriers;
    u32 stages;
    u32 tile_bytes;
    int num_stages;
    int num_steps; // stages that are filled in all

    DEVICE u32 full(int stage) const { return barriers + stage * 16; }
    DEVICE u32 empty(int stage) const { return barriers + stage * 16 + 8; }
    DEVICE u32 tile(int stage, int i) const { return stages + (stage * TILES + i) * tile_bytes; }
};

DEVICE void fetch_weights(const Ring& ring, const ProductArgs& args, const TensorMap* weight, int step, int stage) {
    expect_bytes(ring.full(stage), ring.tile_bytes * TILES);
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        for (int half = 0; half < HALVES; half++) {
            u32 to = ring.tile(stage, i) + args.x_bytes + half * (WEIGHT_BYTES / HALVES);
            int row = half * args.num_out + blockIdx.x * (WEIGHT_ROWS / HALVES);
            fetch_tile(to, weight, (step * TILES + i) * TILE_ELEMS, row, ring.full(stage));
        }
    }
}

DEVICE void fetch(const Ring& ring, const ProductArgs& args, const TensorMap* x, const TensorMap* weight) {
    int num_ahead = min(ring.num_stages, ring.num_steps), stage = 0;
    u32 round = 0;
    for (int step = 0; step < num_ahead; step++) fetch_weights(ring, args, weight, step, step);
    wait_for_previous();
    for (int step = 0; step < ring.num_steps; step++) {
        if (step >= num_ahead) {
            wait_for(ring.empty(stage), round ^ 1);
            fetch_weights(ring, args, weight, step, stage);
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) fetch_tile(ring.tile(stage, i), x, (step * TILES + i) * TILE_ELEMS, 0, ring.full(stage));
        if (++stage == ring.num_stages) stage = 0, round ^= 1;
    }
}

DEVICE void multiply_all(const Ring& ring, const ProductArgs& args, float (&sums)[WEIGHT_ROWS / 2]) {
    int stage = 0, stage_before = 0;
    u32 round = 0;
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS / 2; i++) sums[i] = 0.0f;
    for (int step = 0; step < ring.num_steps; step++) {
        wait_for(ring.full(stage), round);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            u32 tile = ring.tile(stage, i);
            // Lines past the last row are read too. They may hold anything, as lines do not mix.
            u64 x = descriptor(tile), weight = descriptor(tile + args.x_bytes);
#pragma unroll
            for (int k = 0; k < TILE_ELEMS / 16; k++) multiply(sums, x + 2 * k, weight + 2 * k);
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > 0 && threadIdx.x == 0) arrive_at(ring.empty(stage_before));
        stage_before = stage;
        if (++stage == ring.num_stages) stage = 0, round ^= 1;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// One output as it is stored. `second`: the sum that multiplies it, when gated. Everything is rounded where separate
// kernels would round it.
DEVICE float finished(const ProductArgs& args, float sum, float second, int output, i64 at) {
    if (args.bias) sum += to_float(args.bias[output]);
#if IS_GATED
    if (args.bias) second += to_float(args.bias[args.num_out + output]);
    return activated(rounded(sum), ACTIVATION) * rounded(second);
#elif ACTIVATION >= 0
    return activated(rounded(sum), ACTIVATION);
#else
    return args.residual ? rounded(sum) + to_float(args.residual[at]) : sum;
#endif
}

DEVICE void store_one(const ProductArgs& args, int row, int output, float sum, float second) {
    if (row >= args.rows || output >= args.num_out) return;
    i64 at = (i64)row * args.num_out + output;
    float value = finished(args, sum, second, output, at);
    if (args.is_f32) {
        ((float*)args.out)[at] = value;
    } else {
        from_float(value, (T*)args.out + at);
    }
}

// Two neighbouring outputs of a row, `output` an even number.
DEVICE void store_pair(const ProductArgs& args, int row, int output, float2 sum, float2 second) {
    if (args.num_out % 2 != 0) {
        store_one(args, row, output, sum.x, second.x);
        store_one(args, row, output + 1, sum.y, second.y);
        return;
    }
    if (row >= args.rows || output >= args.num_out) return;
    i64 at = (i64)row * args.num_out + output;
    float first = finished(args, sum.x, second.x, output, at), last = finished(args, sum.y, second.y, output + 1, at + 1);
    if (args.is_f32) {
        *(float2*)((float*)args.out + at) = make_float2(first, last);
    } else {
        *(u32*)((T*)args.out + at) = pack2(first, last);
    }
}

// The 64 lines of wgmma: a lane holds pairs of outputs of lines 16 * warp + lane / 4 and that + 8.
DEVICE void store_all(const ProductArgs& args, const float (&sums)[WEIGHT_ROWS / 2]) {
    const int TO_SECOND = WEIGHT_ROWS / 4;
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS / HALVES / 8; i++) {
        int output = blockIdx.x * (WEIGHT_ROWS / HALVES) + 8 * i + lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int j = 4 * i + 2 * half;
            float2 second = make_float2(0.0f, 0.0f);
            if constexpr (IS_GATED) second = make_float2(sums[j + TO_SECOND], sums[j + 1 + TO_SECOND]);
            store_pair(args, row + 8 * half, output, make_float2(sums[j], sums[j + 1]), second);
        }
    }
}

// Shared memory: the stages, at a multiple of 1,024 bytes, as the swizzle demands.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS + 32)
product(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, ProductArgs args) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[2 * MAX_STAGES];
    Ring ring;
    ring.barriers = (u32)__cvta_generic_to_shared(barriers);
    ring.stages = ((u32)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    ring.tile_bytes = args.x_bytes + WEIGHT_BYTES;
    ring.num_stages = args.num_stages;
    ring.num_steps = (args.num_in + TILE_ELEMS * TILES - 1) / (TILE_ELEMS * TILES);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < ring.num_stages; stage++) init_barrier(ring.full(stage), 1), init_barrier(ring.empty(stage), 1);
        // Tiles come by another path to memory, which must see the barriers.
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    let_next_start();
    if (threadIdx.x >= GROUP_THREADS) {
        if (threadIdx.x == GROUP_THREADS) fetch(ring, args, &x, &weight);
        return;
    }
    wait_for_previous();
    float sums[WEIGHT_ROWS / 2];
    multiply_all(ring, args, sums);
    store_all(args, sums);
}
