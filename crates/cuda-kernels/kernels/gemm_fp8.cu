// The GEMM of rows in FP8 (e4m3) with a weight in FP8, for any number of rows. Programs are put together in
// `crates/cuda-kernels/src/model/programs.rs`.
//
// A block takes a tile of 64 * ROW_GROUPS rows and TILE_COLUMNS rows of the weight, and goes on with another tile until
// all are done. Each group of four warps multiplies 64 of the rows with its share of the columns; two threads more ask
// for what they read, one for weights and one for rows.
//
// The tensor cores keep about 14 bits of a sum of FP8 products, so a chain of four wgmma, 128 inputs, is all that they
// add up: its result is added to the sum in float32. Those sums are in the order of the inputs whatever the tile, so a
// row has the same bits in any batch.

#include "common.cuh"
#include "tiles.cuh"

// ROW_GROUPS, COLUMN_GROUPS: one of them is 1. TILE_COLUMNS: a multiple of 8 for each group.
// NUM_PARTS: chains that are in flight at once. TILES: tiles of 128 inputs in a stage of the ring; divides NUM_PARTS.

#define GROUPS (ROW_GROUPS * COLUMN_GROUPS)
#define GROUP_THREADS 128
#define GROUP_COLUMNS (TILE_COLUMNS / COLUMN_GROUPS)
#define NUM_SUMS (GROUP_COLUMNS / 2)     // of a thread
#define TILE_ROWS (64 * ROW_GROUPS)
#define NUM_AHEAD (NUM_PARTS - 1)
#define TILE_ELEMS 128                   // of a row: 128 bytes, as wide as the swizzle
#define MAX_STAGES 32
#define WEIGHT_BYTES (TILE_COLUMNS * TILE_ELEMS)
#define BAND 16                          // tiles of rows that go through the weights together, for the L2 cache

struct GemmArgs {
    const float* x_scales;       // [rows]
    const float* weight_scales;  // [num_out]
    const T* bias;               // [num_out], or null
    const T* residual;           // [rows, num_out], or null; may be `out`
    void* out;                   // T or float [rows, num_out]
    int rows;
    int num_out;                 // a multiple of 8
    int num_in;                  // a multiple of 16
    u32 x_bytes;                 // that a tile has for rows: those that there are, in eights, at most TILE_ROWS
    int num_stages;              // of the ring
    int num_early;               // of them, those whose weights are asked for before the kernel before this one has ended
    int is_f32;                  // `out`
    u32 fetched_bytes;           // of the rows of a tile
};

struct Tile {
    int row;
    int column;
};

DEVICE int num_row_tiles(const GemmArgs& args) { return (args.rows + TILE_ROWS - 1) / TILE_ROWS; }

DEVICE int num_column_tiles(const GemmArgs& args) { return (args.num_out + TILE_COLUMNS - 1) / TILE_COLUMNS; }

DEVICE int num_tiles(const GemmArgs& args) { return num_row_tiles(args) * num_column_tiles(args); }

DEVICE Tile tile_of(const GemmArgs& args, int idx) {
    int per_band = BAND * num_column_tiles(args), band = idx / per_band, of_band = idx % per_band;
    int rows = min(BAND, num_row_tiles(args) - band * BAND);
    return {(band * BAND + of_band % rows) * TILE_ROWS, of_band / rows * TILE_COLUMNS};
}

// The ring of stages. Each has TILES tiles, each of them rows and then weights, and two barriers: filled, empty. Where a
// tile has room for fewer rows than a chain multiplies, what follows them is read for the others: lines are independent,
// so it may be anything.
struct Ring {
    u32 barriers;
    u32 stages;
    u32 x_bytes;
    int num_stages;
    int stage = 0;
    u32 round = 0;

    DEVICE u32 full() const { return barriers + stage * 16; }
    DEVICE u32 empty() const { return barriers + stage * 16 + 8; }
    DEVICE u32 x(int tile) const { return stages + (stage * TILES + tile) * (x_bytes + WEIGHT_BYTES); }
    DEVICE u32 weight(int tile) const { return x(tile) + x_bytes; }

    DEVICE void advance() {
        if (++stage == num_stages) stage = 0, round ^= 1;
    }
};

// Chains of each tile, all NUM_PARTS of the last time too: inputs past the last one come as 0, and to add 0 changes no
// sum, as none is -0.
DEVICE int num_steps(const GemmArgs& args) {
    const int ELEMS = NUM_PARTS * TILE_ELEMS;
    return (args.num_in + ELEMS - 1) / ELEMS * NUM_PARTS;
}

// Fills the ring with the weights of all tiles of the block. They do not depend on the kernel before this one: those of
// the first stages are asked for before it has ended. More of them would queue before its own reads.
DEVICE void fetch_weights(Ring ring, const GemmArgs& args, const TensorMap* weight) {
    int num_filled = 0;
    for (int idx = blockIdx.x; idx < num_tiles(args); idx += gridDim.x) {
        int column = tile_of(args, idx).column;
        for (int step = 0; step < num_steps(args); step += TILES, num_filled++, ring.advance()) {
            if (num_filled == args.num_early) wait_for_previous();
            if (num_filled >= args.num_stages) wait_for(ring.empty(), ring.round ^ 1);
            expect_bytes(ring.full(), TILES * WEIGHT_BYTES);
#pragma unroll
            for (int i = 0; i < TILES; i++) fetch_tile(ring.weight(i), weight, (step + i) * TILE_ELEMS, column, ring.full());
        }
    }
}

DEVICE void fetch_rows(Ring ring, const GemmArgs& args, const TensorMap* x) {
    wait_for_previous();
    int num_filled = 0;
    for (int idx = blockIdx.x; idx < num_tiles(args); idx += gridDim.x) {
        int row = tile_of(args, idx).row;
        for (int step = 0; step < num_steps(args); step += TILES, num_filled++, ring.advance()) {
            if (num_filled >= args.num_stages) wait_for(ring.empty(), ring.round ^ 1);
            expect_bytes(ring.full(), TILES * args.fetched_bytes);
#pragma unroll
            for (int i = 0; i < TILES; i++) fetch_tile(ring.x(i), x, (step + i) * TILE_ELEMS, row, ring.full());
        }
    }
}

// 32 inputs of 64 rows and all columns of the tile: MULTIPLY adds to the sums, MULTIPLY_FIRST begins them. They and
// MULTIPLY_SUMS name NUM_SUMS registers, so the launcher writes them.
DEVICE void multiply(float (&sums)[NUM_SUMS], u64 x, u64 weight) { asm volatile(MULTIPLY : MULTIPLY_SUMS : "l"(x), "l"(weight)); }

DEVICE void multiply_first(float (&sums)[NUM_SUMS], u64 x, u64 weight) { asm volatile(MULTIPLY_FIRST : MULTIPLY_SUMS : "l"(x), "l"(weight)); }

// Keeps the compiler from moving anything that reads or writes these past this point.
DEVICE void pin(float (&sums)[NUM_SUMS]) {
#pragma unroll
    for (int i = 0; i < NUM_SUMS; i++) asm volatile("" : "+f"(sums[i]) :: "memory");
}

// Starts the chain over a tile of the next stage of the ring.
DEVICE void start_part(Ring& ring, int tile, int group, float (&part)[NUM_SUMS]) {
    if (tile == 0) wait_for(ring.full(), ring.round);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    int rows = group % ROW_GROUPS * 64, columns = group / ROW_GROUPS * GROUP_COLUMNS;
    u64 x = descriptor(low_descriptor(ring.x(tile) + rows * TILE_ELEMS));
    u64 weight = descriptor(low_descriptor(ring.weight(tile) + columns * TILE_ELEMS));
    multiply_first(part, x, weight);
#pragma unroll
    for (int k = 1; k < TILE_ELEMS / 32; k++) multiply(part, x + 2 * k, weight + 2 * k);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (tile == TILES - 1) ring.advance();
}

// Waits for all chains but the last NUM_BEHIND, and adds the one before them, over a tile of the stage of the ring, to the
// sums.
template <int NUM_BEHIND>
DEVICE void add_part(Ring& ring, int tile, float (&part)[NUM_SUMS], float (&sums)[NUM_SUMS]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NUM_BEHIND) : "memory");
    pin(part);
    if (tile == TILES - 1) {
        if (threadIdx.x % GROUP_THREADS == 0) arrive_at(ring.empty());
        ring.advance();
    }
#pragma unroll
    for (int i = 0; i < NUM_SUMS; i++) sums[i] += part[i];
}

// While a chain is added the next ones are multiplied, as many as there are registers for. The registers of a chain stand
// in the program, so the loop goes through all of them.
DEVICE void multiply_all(Ring& ring, int steps, int group, float (&sums)[NUM_SUMS]) {
    float parts[NUM_PARTS][NUM_SUMS];
    Ring added = ring;
#pragma unroll
    for (int i = 0; i < NUM_AHEAD; i++) start_part(ring, i % TILES, group, parts[i]);
#pragma unroll 1
    for (int step = NUM_PARTS; step < steps; step += NUM_PARTS) {
#pragma unroll
        for (int i = 0; i < NUM_PARTS; i++) {
            int next = (i + NUM_AHEAD) % NUM_PARTS;
            start_part(ring, next % TILES, group, parts[next]);
            add_part<NUM_AHEAD>(added, i % TILES, parts[i], sums);
        }
    }
    // Always so, which ptxas does not know: with one way out of the loop it makes its end a part of it, and then no chain
    // runs beside another.
    if (steps > 0) {
        start_part(ring, NUM_AHEAD % TILES, group, parts[NUM_AHEAD]);
        add_part<NUM_AHEAD>(added, 0, parts[0], sums);
#pragma unroll
        for (int i = 1; i < NUM_PARTS; i++) add_part<0>(added, i % TILES, parts[i], sums);
    } else {
#pragma unroll
        for (int i = 0; i < NUM_AHEAD; i++) add_part<0>(added, i % TILES, parts[i], sums);
    }
}

#include "store_fp8.cuh"

// Registers of the threads that multiply and of those that fetch, where they do not have 256 each.
#if GROUPS > 1
#define TAKE_REGISTERS asm volatile("setmaxnreg.inc.sync.aligned.u32 240;")
#define GIVE_REGISTERS asm volatile("setmaxnreg.dec.sync.aligned.u32 24;")
#else
#define TAKE_REGISTERS
#define GIVE_REGISTERS
#endif

// Shared memory: the stages, at a multiple of 1,024 bytes, as the swizzle demands.
extern "C" __global__ void __launch_bounds__((GROUPS + 1) * GROUP_THREADS, 1)
gemm_fp8(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight, GemmArgs args) {
    extern __shared__ uint4 shared[];
    __shared__ u64 barriers[2 * MAX_STAGES];
    Ring ring;
    ring.barriers = (u32)__cvta_generic_to_shared(barriers);
    ring.stages = ((u32)__cvta_generic_to_shared(shared) + 1023) / 1024 * 1024;
    ring.x_bytes = args.x_bytes;
    ring.num_stages = args.num_stages;
    if (threadIdx.x == 0) {
        for (int i = 0; i < args.num_stages; i++) {
            init_barrier(ring.barriers + 16 * i, 2);
            init_barrier(ring.barriers + 16 * i + 8, GROUPS);
        }
        // Tiles come by another path to memory, which must see the barriers.
        asm volatile("fence.proxy.async;" ::: "memory");
    }
    __syncthreads();
    let_next_start();
    int group = threadIdx.x / GROUP_THREADS;
    if (group == GROUPS) {
        GIVE_REGISTERS;
        if (threadIdx.x == GROUPS * GROUP_THREADS) fetch_weights(ring, args, &weight);
        if (threadIdx.x == GROUPS * GROUP_THREADS + 32) fetch_rows(ring, args, &x);
    } else {
        TAKE_REGISTERS;
        wait_for_previous();
        for (int idx = blockIdx.x; idx < num_tiles(args); idx += gridDim.x) {
            float sums[NUM_SUMS] = {};
            multiply_all(ring, num_steps(args), group, sums);
            store_all(args, tile_of(args, idx), group, sums);
        }
    }
}
