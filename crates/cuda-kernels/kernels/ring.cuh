#pragma once
// The ring of stages in shared memory that a GEMM's inputs and weights go through, and the two threads that fill it.

#include "tiles.cuh"

#define TILE_ELEMS 64                    // of a row: 128 bytes, as wide as the swizzle
#define WEIGHT_BYTES (WEIGHT_ROWS * 128) // of a tile; gated, the second half of its rows multiplies the first
#define MAX_STAGES 16

// The ring of stages. Each has TILES tiles, each of them inputs and then weights, and three barriers: weights are there,
// inputs are there, empty.
struct Ring {
    u32 barriers;
    u32 stages;
    u32 tile_bytes;
    int num_stages;
    int num_steps; // stages that are filled in all, as many for each piece

    DEVICE u32 weights_full(int stage) const { return barriers + stage * 24; }
    DEVICE u32 inputs_full(int stage) const { return barriers + stage * 24 + 8; }
    DEVICE u32 empty(int stage) const { return barriers + stage * 24 + 16; }
    DEVICE u32 tile(int stage, int i) const { return stages + (stage * TILES + i) * tile_bytes; }
};

// A stage and how often the ring went round before it.
struct Place {
    int stage = 0;
    u32 round = 0;

    DEVICE void advance(const Ring& ring) {
        if (++stage == ring.num_stages) stage = 0, round ^= 1;
    }
};

// The tile `i` of a stage's that is filled in a step.
DEVICE void fetch_step(const Ring& ring, u32 to, const TensorMap* matrix, int step, int i, int row, u32 full) {
#if NUM_PIECES > 1
    int steps = ring.num_steps / NUM_PIECES, piece = step / steps;
    fetch_tile(to, matrix, ((step - piece * steps) * TILES + i) * TILE_ELEMS, piece, row, full);
#else
    fetch_tile(to, matrix, (step * TILES + i) * TILE_ELEMS, row, full);
#endif
}

DEVICE void fetch_weights(const Ring& ring, const GemmArgs& args, const TensorMap* weight) {
    Place place, pending;
    for (int step = 0; step < ring.num_steps; step++, place.advance(ring)) {
        if (step >= ring.num_stages) wait_for(ring.empty(place.stage), place.round ^ 1);
        if (step >= args.max_pending) {
            wait_for(ring.weights_full(pending.stage), pending.round);
            pending.advance(ring);
        }
        u32 full = ring.weights_full(place.stage);
        expect_bytes(full, WEIGHT_BYTES * TILES);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            for (int half = 0; half < HALVES; half++) {
                u32 to = ring.tile(place.stage, i) + args.x_bytes + half * (WEIGHT_BYTES / HALVES);
                int row = half * args.num_out + blockIdx.x * (WEIGHT_ROWS / HALVES);
                fetch_step(ring, to, weight, step, i, row, full);
            }
        }
    }
}

DEVICE void fetch_inputs(const Ring& ring, const GemmArgs& args, const TensorMap* x) {
    wait_for_previous();
    Place place;
    for (int step = 0; step < ring.num_steps; step++, place.advance(ring)) {
        if (step >= ring.num_stages) wait_for(ring.empty(place.stage), place.round ^ 1);
        u32 full = ring.inputs_full(place.stage);
        expect_bytes(full, args.x_bytes * TILES);
#pragma unroll
        for (int i = 0; i < TILES; i++) fetch_step(ring, ring.tile(place.stage, i), x, step, i, 0, full);
    }
}
