#pragma once
// What a block of the kernels that multiply has: a tile of rows of one expert and WEIGHT_LINES lines of its weight.

// TILE_ROWS: 16, 32 or 64. ACTIVATION, IS_GATED: of the experts.

#define MULTIPLY_WARPS 4
#define WEIGHT_LINES 128

struct MultiplyArgs {
    const T* x;          // [rows, num_in], or [num_places, num_in]
    const u64* weights;  // [num_experts]: T [lines, num_in] each
    void* out;           // T [num_places, num_out], or float [num_pieces, num_places, num_out]
    const int* places;   // which row and slot lies at a place
    const int4* tiles;
    const int* num_tiles;
    int num_in;          // a multiple of 8
    int num_out;         // a multiple of 8; half of the weight's lines when gated
    int topk;
    int num_pieces;      // of the inputs, each a multiple of 8 and a sum of its own; 1 of those that go through the activation
    i64 piece_stride;    // elements of `out`
};
