// The product of up to 8 rows with a weight, at the speed of memory. Programs are put together in
// `crates/torch-ext/src/cuda/kernels/programs.rs`.
//
// Each output is one chain of mma.m16n8k16 over the inputs in order, which gives cuBLAS's bits (it is checked for each
// model at its start): a row's text must not change when it is left alone. A chain cannot be cut, so what is left to gain
// is that memory never rests. Half of the warps do nothing but fetch weights, a ring of stages ahead of the others,
// and begin before the kernel before this one has ended: weights do not depend on it.

#include "common.cuh"
#include "product.cuh"

#define STAGE_ELEMS 256                      // of each of 16 rows of the weight
#define STAGE_PITCH (STAGE_ELEMS * 2 + 16)   // bytes; the odd 16 keep ldmatrix free of bank conflicts
#define STAGE_BYTES (16 * STAGE_PITCH)
#define HALF_STEPS 8                         // products of 16 inputs whose operands are fetched together

// Outputs of a tile; gated, the first half of its rows are outputs and the other half what multiplies them.
#define TILE_OUTPUTS (IS_GATED ? 8 : 16)

struct ProductArgs {
    ProductOut to;
    const T* x;        // [rows, num_in], rows at most 8
    const T* weight;   // [weight's rows, num_in]
    int num_in;        // a multiple of 16
    int num_pairs;     // pairs of warps in a block: one multiplies, one fetches
    int num_stages;
    int reserved;
};

DEVICE void fetch_16_bytes(u32 to, const T* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

DEVICE void load_matrices(u32 (&to)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(from) : "memory");
}

DEVICE void multiply(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if ELEM == 2
#define PRODUCT_TYPES "f32.f16.f16.f32"
#else
#define PRODUCT_TYPES "f32.bf16.bf16.f32"
#endif
    asm volatile("mma.sync.aligned.m16n8k16.row.col." PRODUCT_TYPES " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The stages that a pair of warps shares. Its tiles are `first`, `first + stride` and so on.
struct Ring {
    u32 barriers;  // per stage: full, empty
    u32 stages;
    int first;
    int stride;
};

DEVICE void fetch_weights(const ProductArgs& args, const Ring& ring) {
    int lane = threadIdx.x % 32, stage = 0, num_tiles = (args.to.num_out + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    u32 round = 0;
    bool is_first_round = true;
    for (int tile = ring.first; tile < num_tiles; tile += ring.stride) {
        const T* rows = args.weight + (i64)tile * TILE_OUTPUTS * args.num_in;
        i64 to_second = IS_GATED ? ((i64)args.to.num_out - TILE_OUTPUTS) * args.num_in : 0;
        bool is_whole = (tile + 1) * TILE_OUTPUTS <= args.to.num_out;
        for (int start = 0; start < args.num_in; start += STAGE_ELEMS) {
            u32 full = ring.barriers + stage * 16;
            if (!is_first_round) wait_for(full + 8, round ^ 1);
            int i = start + lane * 8;
            if (i < args.num_in) {
                u32 to = ring.stages + stage * STAGE_BYTES + lane * 16;
#pragma unroll
                for (int row = 0; row < 16; row++) {
                    if (!is_whole && tile * TILE_OUTPUTS + row % TILE_OUTPUTS >= args.to.num_out) continue;
                    fetch_16_bytes(to + row * STAGE_PITCH, rows + (i64)row * args.num_in + (row >= TILE_OUTPUTS ? to_second : 0) + i);
                }
            }
            asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
            if (++stage == args.num_stages) {
                stage = 0, round ^= 1;
                is_first_round = false;
            }
        }
    }
    // A block's shared memory must outlive what is on its way to it.
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// The 16 rows of a tile for 8 rows of inputs; a lane holds its rows lane / 4 and that + 8, of inputs 2 * (lane % 4) and
// the next.
DEVICE void store_tile(const ProductArgs& args, int tile, const float (&sums)[4]) {
    int lane = threadIdx.x % 32, row = lane % 4 * 2, output = tile * TILE_OUTPUTS + lane / 4;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        store_one(args.to, row + i, output, sums[i], sums[i + 2]);
        if (!IS_GATED) store_one(args.to, row + i, output + 8, sums[i + 2], 0.0f);
    }
}

DEVICE void multiply_weights(const ProductArgs& args, const Ring& ring, u32 x) {
    int lane = threadIdx.x % 32, stage = 0, num_tiles = (args.to.num_out + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
    u32 round = 0;
    // Lanes of rows that do not exist read the last one: rows are columns of the product and do not mix.
    u32 x_lane = x + min(lane % 8, args.to.rows - 1) * (args.num_in * 2 + 16) + lane / 8 * 16;
    u32 weight_lane = ring.stages + lane % 16 * STAGE_PITCH + lane / 16 * 16;
    for (int tile = ring.first; tile < num_tiles; tile += ring.stride) {
        float sums[4] = {};
        for (int start = 0; start < args.num_in; start += STAGE_ELEMS) {
            u32 from = weight_lane + stage * STAGE_BYTES, x_from = x_lane + start * 2;
            int num_steps = min(STAGE_ELEMS, args.num_in - start) / 16;
            wait_for(ring.barriers + stage * 16, round);
            if (num_steps == 2 * HALF_STEPS) {
                u32 a[2][HALF_STEPS][4], b[2][HALF_STEPS / 2][4];
#pragma unroll
                for (int half = 0; half < 2; half++) {
#pragma unroll
                    for (int i = 0; i < HALF_STEPS / 2; i++) load_matrices(b[half][i], x_from + (half * HALF_STEPS / 2 + i) * 64);
#pragma unroll
                    for (int i = 0; i < HALF_STEPS; i++) load_matrices(a[half][i], from + (half * HALF_STEPS + i) * 32);
                }
#pragma unroll
                for (int i = 0; i < 2 * HALF_STEPS; i++) {
                    const u32(&pair)[4] = b[i / HALF_STEPS][i % HALF_STEPS / 2];
                    multiply(sums, a[i / HALF_STEPS][i % HALF_STEPS], pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
                }
            } else {
                for (int i = 0; i < num_steps; i++) {
                    u32 a[4], b[4];
                    load_matrices(a, from + i * 32);
                    load_matrices(b, x_from + i * 32);
                    multiply(sums, a, b[0], b[1]);
                }
            }
            __syncwarp();
            if (lane == 0) arrive_at(ring.barriers + stage * 16 + 8);
            if (++stage == args.num_stages) stage = 0, round ^= 1;
        }
        store_tile(args, tile, sums);
    }
}

// Shared memory: barriers of all rings, x with 16 bytes behind each row and 64 at its end, the rings.
extern "C" __global__ void __launch_bounds__(768) product_mma(ProductArgs args) {
    extern __shared__ uint4 shared[];
    int pair = threadIdx.x / 32 % args.num_pairs;
    bool fetches = threadIdx.x / 32 >= args.num_pairs;
    u32 base = (u32)__cvta_generic_to_shared(shared);
    u32 x = base + (args.num_pairs * args.num_stages * 16 + 127) / 128 * 128;
    int x_pitch = args.num_in * 2 + 16;
    u32 rings = x + (args.to.rows * x_pitch + 64 + 127) / 128 * 128;
    Ring ring;
    ring.barriers = base + pair * args.num_stages * 16;
    ring.stages = rings + pair * args.num_stages * STAGE_BYTES;
    ring.first = blockIdx.x + pair * gridDim.x;
    ring.stride = gridDim.x * args.num_pairs;
    if (fetches) {
        for (int stage = threadIdx.x % 32; stage < args.num_stages; stage += 32) {
            init_barrier(ring.barriers + stage * 16, 32);
            init_barrier(ring.barriers + stage * 16 + 8, 1);
        }
    }
    __syncthreads();
    if (fetches) {
        fetch_weights(args, ring);
        return;
    }
    let_next_start();
    wait_for_previous();
    for (int row = 0; row < args.to.rows; row++) {
        const T* from = args.x + (i64)row * args.num_in;
#pragma unroll 4
        for (int i = threadIdx.x * 8; i < args.num_in; i += args.num_pairs * 32 * 8) fetch_16_bytes(x + row * x_pitch + i * 2, from + i);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"r"(args.num_pairs * 32) : "memory");
    multiply_weights(args, ring, x);
}
