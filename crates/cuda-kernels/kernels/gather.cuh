#pragma once
// Brings cached keys and values of whole sequences side by side, for an attention that reads them packed.

#include "cached.cuh"

// Of a key that no row sees: zeros, as 0 times what others have left there may be no number.
#define UNSEEN_SLOT -2

struct GatherArgs {
    const Cached* keys;
    const Cached* values;
    const int* slots;  // [num_keys], block * 32 + offset, or UNSEEN_SLOT; any other slot outside the cache gives NaN
    T* k_out;          // [num_keys, groups, HEAD_DIM], as the values
    T* v_out;
    i64 num_keys;
    int num_groups;
    int num_slots;
};

// A thread takes what becomes 16 bytes of a key and of its value.
extern "C" __global__ void gather_cache(GatherArgs args) {
    const int ELEMS = 16 / sizeof(T), UNITS_PER_HEAD = HEAD_DIM / ELEMS;
    int units_per_key = args.num_groups * UNITS_PER_HEAD;
    i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 key = unit / units_per_key;
    if (key >= args.num_keys) return;
    int of_key = (int)(unit - key * units_per_key);
    int group = of_key / UNITS_PER_HEAD;
    int slot = args.slots[key];
    float k[ELEMS], v[ELEMS];
#pragma unroll
    for (int i = 0; i < ELEMS; i++) k[i] = v[i] = slot == UNSEEN_SLOT ? 0.0f : QUIET_NAN;
    if (slot >= 0 && slot < args.num_slots) {
        i64 at = head_block(args.num_groups, slot / BLOCK_SIZE_TOKENS, group);
        int elem = (of_key - group * UNITS_PER_HEAD) * ELEMS;
        read_head(args.keys + at, slot % BLOCK_SIZE_TOKENS, elem, k);
        read_head(args.values + at, slot % BLOCK_SIZE_TOKENS, elem, v);
    }
    store(args.k_out + unit * ELEMS, k);
    store(args.v_out + unit * ELEMS, v);
}
