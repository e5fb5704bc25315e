#pragma once
// The keys of one warp in bfloat16 or float16, on the tensor cores, straight from global memory to registers.
//
// Queries are the columns of both products: scores [16 keys, 8 queries] = K Q^T and out [16 elements, 8 queries] =
// V^T P^T. The contraction of a product may run in any order as long as both operands agree, so each lane loads 16
// neighbouring bytes and calls them what the fragment layout wants; nothing goes through shared memory. Layouts: PTX
// ISA, mma.m16n8k16. A lane is `pair` = lane % 4 and `line` = lane / 4.

#include "mma.cuh"
#include "running.cuh"

#define K_VECTORS (HEAD_DIM / 32)       // 16 bytes of a key: two steps of the contraction
#define K_HAS_REST (HEAD_DIM % 32 / 16) // 8 bytes: one step
#define V_WIDE (HEAD_DIM / 64)          // 8 elements a lane: 4 row tiles of 16
#define V_HAS_MIDDLE (HEAD_DIM % 64 / 32)
#define V_HAS_NARROW (HEAD_DIM % 32 / 16)

// The keys `line` and `line + 8` of a tile.
struct KeyTile {
    uint4 wide[2][K_VECTORS > 0 ? K_VECTORS : 1];
    uint2 rest[2];
};

DEVICE void load_keys(const T* tile, KeyTile* to) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const T* key = tile + (line + half * 8) * HEAD_DIM;
#pragma unroll
        for (int g = 0; g < K_VECTORS; g++) to->wide[half][g] = load16(key + g * 32 + pair * 8);
        if constexpr (K_HAS_REST) to->rest[half] = load8(key + K_VECTORS * 32 + pair * 4);
    }
}

// The keys 2 * pair, 2 * pair + 1 and 8 more: word w of a key holds two elements, `value_elem` says which.
struct ValueTile {
    u32 words[4][V_WORDS]; // each a row tile
};

DEVICE int value_elem(int word) {
    int line = threadIdx.x % 32 / 4;
    if (word < V_WIDE * 4) return word / 4 * 64 + line * 8 + word % 4 * 2;
    if (V_HAS_MIDDLE && word < V_WIDE * 4 + 2) return V_WIDE * 64 + line * 4 + (word - V_WIDE * 4) * 2;
    return HEAD_DIM - 16 + line * 2;
}

DEVICE void load_values(const T* tile, ValueTile* to) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const T* value = tile + (pair * 2 + k % 2 + k / 2 * 8) * HEAD_DIM;
#pragma unroll
        for (int g = 0; g < V_WIDE; g++) {
            uint4 v = load16(value + g * 64 + line * 8);
            to->words[k][4 * g] = v.x, to->words[k][4 * g + 1] = v.y, to->words[k][4 * g + 2] = v.z, to->words[k][4 * g + 3] = v.w;
        }
        if constexpr (V_HAS_MIDDLE) {
            uint2 v = load8(value + V_WIDE * 64 + line * 4);
            to->words[k][4 * V_WIDE] = v.x, to->words[k][4 * V_WIDE + 1] = v.y;
        }
        if constexpr (V_HAS_NARROW) to->words[k][V_WORDS - 1] = load4(value + HEAD_DIM - 16 + line * 2);
    }
}

// What is left of another sequence in the block may be anything, and 0 * NaN is NaN.
DEVICE void clear_values_past(ValueTile* tile, int num_keys) {
    int pair = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (pair * 2 + k % 2 + k / 2 * 8 < num_keys) continue;
#pragma unroll
        for (int w = 0; w < V_WORDS; w++) tile->words[k][w] = 0;
    }
}

DEVICE void scores_of(const KeyTile& keys, const T* queries, float (&scores)[QUERY_COLUMNS][4]) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        const T* query = queries + (n * 8 + line) * HEAD_DIM;
        scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
        for (int g = 0; g < K_VECTORS; g++) {
            uint4 q = *(const uint4*)(query + g * 32 + pair * 8);
            uint4 a = keys.wide[0][g], b = keys.wide[1][g];
            mma(scores[n], a.x, b.x, a.y, b.y, q.x, q.y);
            mma(scores[n], a.z, b.z, a.w, b.w, q.z, q.w);
        }
        if constexpr (K_HAS_REST) {
            uint2 q = *(const uint2*)(query + K_VECTORS * 32 + pair * 4);
            mma(scores[n], keys.rest[0].x, keys.rest[1].x, keys.rest[0].y, keys.rest[1].y, q.x, q.y);
        }
    }
}

// Turns scores into weights in place, and shrinks what was summed up before to the new maximum. `num_keys`: of the tile,
// the first `hidden` of which are not seen.
template <bool IS_LAST>
DEVICE void update(const AttentionArgs& args, Running* running, float (&scores)[QUERY_COLUMNS][4], int hidden, int num_keys) {
    int line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        float shrink[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float first = !IS_LAST || line < num_keys ? capped(scores[n][j] * args.scale_log2, args.cap_log2) : NEG_INF;
            float second = !IS_LAST || line + 8 < num_keys ? capped(scores[n][j + 2] * args.scale_log2, args.cap_log2) : NEG_INF;
            if (IS_LOCAL && line < hidden) first = NEG_INF;
            if (IS_LOCAL && line + 8 < hidden) second = NEG_INF;
            float max = fmaxf(first, second);
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, lanes));
            max = fmaxf(max, running->max[n][j]);
            shrink[j] = exp2_approx(running->max[n][j] - max);
            running->max[n][j] = max;
            scores[n][j] = exp2_approx(first - max);
            scores[n][j + 2] = exp2_approx(second - max);
            running->sum[n][j] = running->sum[n][j] * shrink[j] + (scores[n][j] + scores[n][j + 2]);
        }
        running->shrink_out(n, shrink);
    }
}

DEVICE void add_values(Running* running, const ValueTile& values, const float (&weights)[QUERY_COLUMNS][4]) {
    u32 p[QUERY_COLUMNS][2];
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        p[n][0] = transposed(pack2(weights[n][0], weights[n][1]));
        p[n][1] = transposed(pack2(weights[n][2], weights[n][3]));
    }
#pragma unroll
    for (int w = 0; w < V_WORDS; w++) {
        u32 a0 = __byte_perm(values.words[0][w], values.words[1][w], 0x5410);
        u32 a1 = __byte_perm(values.words[0][w], values.words[1][w], 0x7632);
        u32 a2 = __byte_perm(values.words[2][w], values.words[3][w], 0x5410);
        u32 a3 = __byte_perm(values.words[2][w], values.words[3][w], 0x7632);
#pragma unroll
        for (int n = 0; n < QUERY_COLUMNS; n++) mma(running->out[n][w], a0, a1, a2, a3, p[n][0], p[n][1]);
    }
}

// The first keys and values of an item, fetched while the item before it is finished.
struct FirstTile {
    KeyTile keys;
    ValueTile values;
};

DEVICE void fetch_tile(const AttentionArgs& args, const Item& item, int block, int base, FirstTile* to) {
    i64 offset = tile_offset(args, item, block, base);
    load_keys(args.keys + offset, &to->keys);
    load_values(args.values + offset, &to->values);
}

DEVICE void fetch_first_tile(const AttentionArgs& args, const Item& item, int block, FirstTile* to) {
    int base = first_tile(item);
    if (base < end_key(item) && !has_own_token(item, base)) fetch_tile(args, item, block, base, to);
}

// Attends with every query of the tile to the tiles `warp`, `warp + NUM_WARPS`, .. of the split, and leaves the
// unnormalised sum of values, the maximum and the sum of exponentials of each in `merge`.
DEVICE void attend_warp(const AttentionArgs& args, const Item& item, const T* queries, FirstTile* tile, const Merge& merge) {
    int base = first_tile(item), end = end_key(item);
    Running running;
    if (base < end && has_own_token(item, base)) fetch_tile(args, item, block_at(args, item, base), base, tile);
    float scores[QUERY_COLUMNS][4];
    // Nothing in this loop is conditional, so that no load is waited for before it is needed.
    for (int next = base + NUM_WARPS * TILE_KEYS; next < end; next += NUM_WARPS * TILE_KEYS) {
        i64 offset = tile_offset(args, item, block_at(args, item, next), next);
        scores_of(tile->keys, queries, scores);
        load_keys(args.keys + offset, &tile->keys);
        update<false>(args, &running, scores, num_hidden(item, base), TILE_KEYS);
        add_values(&running, tile->values, scores);
        load_values(args.values + offset, &tile->values);
        base = next;
    }
    if (base < end) {
        int num_keys = end - base;
        scores_of(tile->keys, queries, scores);
        update<true>(args, &running, scores, num_hidden(item, base), num_keys);
        if (num_keys < TILE_KEYS) clear_values_past(&tile->values, num_keys);
        add_values(&running, tile->values, scores);
    }
    write_merge(&running, item, merge);
}
