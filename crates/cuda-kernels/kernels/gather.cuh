#pragma once
// Brings cached keys and values of whole sequences side by side, for an attention that reads them packed.

struct GatherArgs {
    const T* keys;  // T [num_blocks, groups, 32, HEAD_DIM], as the values
    const T* values;
    const int* slots;  // [num_keys], block * 32 + offset; a slot outside the cache gives NaN
    T* k_out;          // [num_keys, groups, HEAD_DIM], as the values
    T* v_out;
    i64 num_keys;
    int num_groups;
    int num_slots;
};

// A thread takes 16 bytes of a key and of its value.
extern "C" __global__ void gather_cache(GatherArgs args) {
    const int ELEMS = 16 / sizeof(T), UNITS_PER_HEAD = HEAD_DIM / ELEMS;
    int units_per_key = args.num_groups * UNITS_PER_HEAD;
    i64 unit = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 key = unit / units_per_key;
    if (key >= args.num_keys) return;
    int of_key = (int)(unit - key * units_per_key);
    int group = of_key / UNITS_PER_HEAD;
    int slot = args.slots[key];
    const u32 NAN_BITS = 0xffffffff;
    uint4 k = make_uint4(NAN_BITS, NAN_BITS, NAN_BITS, NAN_BITS), v = k;
    if (slot >= 0 && slot < args.num_slots) {
        i64 head = (i64)(slot / BLOCK_SIZE_TOKENS) * args.num_groups + group;
        i64 at = (head * BLOCK_SIZE_TOKENS + slot % BLOCK_SIZE_TOKENS) * HEAD_DIM + (of_key - group * UNITS_PER_HEAD) * ELEMS;
        k = *(const uint4*)(args.keys + at);
        v = *(const uint4*)(args.values + at);
    }
    *(uint4*)(args.k_out + unit * ELEMS) = k;
    *(uint4*)(args.v_out + unit * ELEMS) = v;
}
