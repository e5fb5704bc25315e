#pragma once
// Splits the fused QKV, rotates queries and keys, and writes keys and values into the paged cache.

#include "cached.cuh"

// qkv: T [rows, groups, queries_per_group + 2, HEAD_DIM]. Cache: see `cached.cuh`; the slot of a token is
// block * 32 + offset, below 0 it is not cached. Rows with a position below 0 are skipped.
struct RopeArgs {
    const T* qkv;
    const int* positions;
    const int* slots;
    Cached* keys;
    Cached* values;
    T* q_out;  // [rows, groups * queries_per_group, HEAD_DIM]
    T* k_out;  // [rows, groups, HEAD_DIM], or null, as v_out
    T* v_out;
    Rotary rotary;
    int num_groups;
    int num_slots;
};

// Which head of which group, among queries, key and value.
struct Member {
    int group, member;

    DEVICE Member(int head) {
        group = head / (QUERIES_PER_GROUP + 2);
        member = head - group * (QUERIES_PER_GROUP + 2);
    }
};

DEVICE const T* head_of_qkv(const RopeArgs& args, int row, int head) {
    return args.qkv + ((i64)row * args.num_groups * (QUERIES_PER_GROUP + 2) + head) * HEAD_DIM;
}

DEVICE T* query_out(const RopeArgs& args, int row, Member at) {
    return args.q_out + ((i64)row * args.num_groups * QUERIES_PER_GROUP + at.group * QUERIES_PER_GROUP + at.member) * HEAD_DIM;
}

// Keys or values beside the cache, if any.
DEVICE T* packed_out(const RopeArgs& args, int row, Member at) {
    T* packed = at.member == QUERIES_PER_GROUP ? args.k_out : args.v_out;
    return packed ? packed + ((i64)row * args.num_groups + at.group) * HEAD_DIM : packed;
}

// The cache block of a row's key or value, or null.
DEVICE Cached* cached_out(const RopeArgs& args, int slot, Member at) {
    if (slot < 0 || slot >= args.num_slots) return 0;
    return (at.member == QUERIES_PER_GROUP ? args.keys : args.values) + head_block(args.num_groups, slot / BLOCK_SIZE_TOKENS, at.group);
}

#if KV_FP8

// A warp takes a head.
template <int W>
DEVICE void rope_row(const RopeArgs& args) {
    int row = blockIdx.x, head = (blockIdx.y * blockDim.x + threadIdx.x) / 32, position = args.positions[row];
    if (position < 0 || head >= args.num_groups * (QUERIES_PER_GROUP + 2)) return;
    Member at(head);
    HeadUnits<W> units;
    read_units(args.rotary, head_of_qkv(args, row, head), at.member <= QUERIES_PER_GROUP, position, &units);
    T* to = query_out(args, row, at);
    if (at.member >= QUERIES_PER_GROUP) {
        int slot = args.slots[row];
        write_head(cached_out(args, slot, at), slot % BLOCK_SIZE_TOKENS, args.rotary, &units);
        to = packed_out(args, row, at);
    }
    if (to) store_units(args.rotary, to, units);
}

// Grid: rows, then heads of a row.
extern "C" __global__ void rope_and_cache(RopeArgs args) {
    if (args.rotary.rotary_dim % 4 == 0) {
        rope_row<2>(args);
    } else {
        rope_row<1>(args);
    }
}

#else

template <int W>
DEVICE void rope_row(const RopeArgs& args) {
    const int units_per_head = HEAD_DIM / (2 * W);
    int row = blockIdx.x;
    int position = args.positions[row];
    int unit = blockIdx.y * blockDim.x + threadIdx.x;
    int head = unit / units_per_head;
    if (position < 0 || head >= args.num_groups * (QUERIES_PER_GROUP + 2)) return;
    Member at(head);

    int first, second;
    unit_bounds<W>(args.rotary, unit - head * units_per_head, &first, &second);
    const T* from = head_of_qkv(args, row, head);
    float a[W], b[W];
    load(from + first, a);
    load(from + second, b);
    if (at.member <= QUERIES_PER_GROUP) rotate_unit(args.rotary, position, first, a, b);
    T* to = query_out(args, row, at);
    if (at.member >= QUERIES_PER_GROUP) {
        int slot = args.slots[row];
        Cached* of_block = cached_out(args, slot, at);
        if (of_block) {
            store(of_block + slot % BLOCK_SIZE_TOKENS * HEAD_DIM + first, a);
            store(of_block + slot % BLOCK_SIZE_TOKENS * HEAD_DIM + second, b);
        }
        to = packed_out(args, row, at);
    }
    if (!to) return;
    store(to + first, a);
    store(to + second, b);
}

// Grid: rows, then units of a row; the launcher takes units of 16 elements when rotary_dim is a multiple of 16, else 2.
extern "C" __global__ void rope_and_cache(RopeArgs args) {
    if (args.rotary.rotary_dim % 16 == 0) {
        rope_row<8>(args);
    } else {
        rope_row<1>(args);
    }
}

#endif
