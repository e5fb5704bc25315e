#pragma once
// Splits the fused QKV, rotates queries and keys, and writes keys and values into the paged cache.

// qkv: T [rows, groups, queries_per_group + 2, HEAD_DIM]. Cache: T [num_blocks, groups, 32, HEAD_DIM] each; the slot of
// a token is block * 32 + offset, below 0 it is not cached. Rows with a position below 0 are skipped.
struct RopeArgs {
    const T* qkv;
    const int* positions;
    const int* slots;
    T* keys;
    T* values;
    T* q_out;  // [rows, groups * queries_per_group, HEAD_DIM]
    T* k_out;  // [rows, groups, HEAD_DIM], or null, as v_out
    T* v_out;
    Rotary rotary;
    int num_groups;
    int num_slots;
};

template <int W>
DEVICE void rope_row(const RopeArgs& args) {
    const int queries_per_group = QUERIES_PER_GROUP;
    const int units_per_head = HEAD_DIM / (2 * W);
    const int heads_per_group = queries_per_group + 2;
    int row = blockIdx.x;
    int position = args.positions[row];
    int unit = blockIdx.y * blockDim.x + threadIdx.x;
    int head = unit / units_per_head;
    if (position < 0 || head >= args.num_groups * heads_per_group) return;
    int group = head / heads_per_group;
    int member = head - group * heads_per_group;

    int first, second;
    unit_bounds<W>(args.rotary, unit - head * units_per_head, &first, &second);
    const T* from = args.qkv + ((i64)row * args.num_groups * heads_per_group + head) * HEAD_DIM;
    float a[W], b[W];
    load(from + first, a);
    load(from + second, b);
    if (member <= queries_per_group) rotate_unit(args.rotary, position, first, a, b);
    if (member < queries_per_group) {
        T* to = args.q_out + ((i64)row * args.num_groups * queries_per_group + group * queries_per_group + member) * HEAD_DIM;
        store(to + first, a);
        store(to + second, b);
        return;
    }
    bool is_key = member == queries_per_group;
    int slot = args.slots[row];
    if (slot >= 0 && slot < args.num_slots) {
        int block = slot / BLOCK_SIZE_TOKENS;
        T* to = (is_key ? args.keys : args.values) +
                (((i64)block * args.num_groups + group) * BLOCK_SIZE_TOKENS + slot % BLOCK_SIZE_TOKENS) * HEAD_DIM;
        store(to + first, a);
        store(to + second, b);
    }
    T* packed = is_key ? args.k_out : args.v_out;
    if (packed) {
        T* to = packed + ((i64)row * args.num_groups + group) * HEAD_DIM;
        store(to + first, a);
        store(to + second, b);
    }
}

// Grid: rows, then units of a row; the launcher takes units of 16 elements when rotary_dim is a multiple of 16, else 2.
extern "C" __global__ void rope_and_cache(RopeArgs args) {
    if (args.rotary.rotary_dim % 16 == 0) {
        rope_row<8>(args);
    } else {
        rope_row<1>(args);
    }
}
