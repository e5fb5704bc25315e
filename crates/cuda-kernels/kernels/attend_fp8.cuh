#pragma once
// The keys of one warp in e4m3 (`cached.cuh`), made float16 on their way to the tensor cores, which holds all of them.
//
// As in `attend_mma.cuh` queries are the columns of both products and nothing goes through shared memory; a lane takes four
// neighbouring elements of a key for two steps of a contraction. A key's scale multiplies its scores, and a value's scale is
// an addition to the exponent of its weight: w = 2^(score + exponent - max), where the maximum is over score + exponent, so
// that no weight leaves the range of float16. The sum of the softmax takes the exponents out again. Queries are float16 with
// a power of two for each, so that the largest element lies from 2^14 on.

#include "mma.cuh"
#include "running.cuh"

#define SUB_TILES (TILE_KEYS / 16)
#define K_VECTORS (HEAD_DIM / 64)         // 16 bytes of a key: four steps of the contraction
#define K_HAS_MIDDLE (HEAD_DIM % 64 / 32) // 8 bytes: two
#define K_HAS_NARROW (HEAD_DIM % 32 / 16) // 4 bytes: one
#define K_WORDS (HEAD_DIM / 16)
#define V_WIDE (HEAD_DIM / 128) // 16 elements a lane: 8 row tiles
#define V_HAS_MIDDLE (HEAD_DIM % 128 / 64)
#define V_HAS_SMALL (HEAD_DIM % 64 / 32)
#define V_HAS_NARROW (HEAD_DIM % 32 / 16)
#define V_QUADS ((HEAD_DIM + 31) / 32) // words a lane and value: two row tiles each, the last one maybe half full

// The keys `line` and `line + 8` of 16: each word four elements.
struct KeyTile {
    u32 words[2][K_WORDS];
};

DEVICE void load_keys(const u8* tile, KeyTile* to) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const u8* key = tile + (line + half * 8) * HEAD_DIM;
        u32* words = to->words[half];
#pragma unroll
        for (int g = 0; g < K_VECTORS; g++) {
            uint4 v = load16(key + g * 64 + pair * 16);
            words[4 * g] = v.x, words[4 * g + 1] = v.y, words[4 * g + 2] = v.z, words[4 * g + 3] = v.w;
        }
        if constexpr (K_HAS_MIDDLE) {
            uint2 v = load8(key + K_VECTORS * 64 + pair * 8);
            words[4 * K_VECTORS] = v.x, words[4 * K_VECTORS + 1] = v.y;
        }
        if constexpr (K_HAS_NARROW) words[K_WORDS - 1] = load4(key + HEAD_DIM - 16 + pair * 4);
    }
}

// The first of a lane's four elements of a word.
DEVICE int key_elem(int word) {
    int pair = threadIdx.x % 4;
    if (word < K_VECTORS * 4) return word / 4 * 64 + pair * 16 + word % 4 * 4;
    if (K_HAS_MIDDLE && word < K_VECTORS * 4 + 2) return K_VECTORS * 64 + pair * 8 + (word - K_VECTORS * 4) * 4;
    return HEAD_DIM - 16 + pair * 4;
}

// The keys 2 * pair, 2 * pair + 1 and 8 more of 16.
struct ValueTile {
    u32 quads[4][V_QUADS];
};

DEVICE int value_elem(int word) {
    int line = threadIdx.x % 32 / 4;
    if (word < V_WIDE * 8) return word / 8 * 128 + line * 16 + word % 8 * 2;
    int rest = word - V_WIDE * 8;
    if (V_HAS_MIDDLE && rest < 4) return V_WIDE * 128 + line * 8 + rest * 2;
    rest -= V_HAS_MIDDLE * 4;
    if (V_HAS_SMALL && rest < 2) return V_WIDE * 128 + V_HAS_MIDDLE * 64 + line * 4 + rest * 2;
    return HEAD_DIM - 16 + line * 2;
}

DEVICE void load_values(const u8* tile, ValueTile* to) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const u8* value = tile + (pair * 2 + k % 2 + k / 2 * 8) * HEAD_DIM;
        u32* quads = to->quads[k];
#pragma unroll
        for (int g = 0; g < V_WIDE; g++) {
            uint4 v = load16(value + g * 128 + line * 16);
            quads[4 * g] = v.x, quads[4 * g + 1] = v.y, quads[4 * g + 2] = v.z, quads[4 * g + 3] = v.w;
        }
        if constexpr (V_HAS_MIDDLE) {
            uint2 v = load8(value + V_WIDE * 128 + line * 8);
            quads[4 * V_WIDE] = v.x, quads[4 * V_WIDE + 1] = v.y;
        }
        if constexpr (V_HAS_SMALL) {
            quads[4 * V_WIDE + 2 * V_HAS_MIDDLE] = load4(value + V_WIDE * 128 + V_HAS_MIDDLE * 64 + line * 4);
        }
        if constexpr (V_HAS_NARROW) quads[V_QUADS - 1] = load2(value + HEAD_DIM - 16 + line * 2);
    }
}

// What is left of another sequence in the block may be anything, and 0 * NaN is NaN.
DEVICE void clear_values_past(ValueTile* tile, int num_keys) {
    int pair = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        if (pair * 2 + k % 2 + k / 2 * 8 < num_keys) continue;
#pragma unroll
        for (int w = 0; w < V_QUADS; w++) tile->quads[k][w] = 0;
    }
}

// Of the keys and values that are `line` and 8, 16, 24 behind, a byte each.
struct Exponents {
    u32 keys, values;
};

// 32 keys and values of a block.
struct FirstTile {
    KeyTile keys[SUB_TILES];
    ValueTile values[SUB_TILES];
    Exponents exponents;
};

DEVICE void fetch_keys(const AttentionArgs& args, const Item& item, int block, FirstTile* to) {
    const u8* keys = args.keys + head_block(args.num_groups, block, item.group);
#pragma unroll
    for (int s = 0; s < SUB_TILES; s++) load_keys(keys + s * 16 * HEAD_DIM, &to->keys[s]);
    to->exponents.keys = load4(keys + exponent_at(threadIdx.x % 32 / 4));
}

DEVICE void fetch_values(const AttentionArgs& args, const Item& item, int block, FirstTile* to) {
    const u8* values = args.values + head_block(args.num_groups, block, item.group);
#pragma unroll
    for (int s = 0; s < SUB_TILES; s++) load_values(values + s * 16 * HEAD_DIM, &to->values[s]);
    to->exponents.values = load4(values + exponent_at(threadIdx.x % 32 / 4));
}

DEVICE void fetch_first_tile(const AttentionArgs& args, const Item& item, int block, FirstTile* to) {
    int base = first_tile(item);
    if (base >= end_key(item) || has_own_token(item, base)) return;
    fetch_keys(args, item, block, to);
    fetch_values(args, item, block, to);
}

typedef float Scores[QUERY_COLUMNS][SUB_TILES][4];

DEVICE void scores_of(const KeyTile (&keys)[SUB_TILES], const u16* queries, Scores& scores) {
    int line = threadIdx.x % 32 / 4;
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        const u16* query = queries + (n * 8 + line) * HEAD_DIM;
#pragma unroll
        for (int s = 0; s < SUB_TILES; s++) scores[n][s][0] = scores[n][s][1] = scores[n][s][2] = scores[n][s][3] = 0.0f;
#pragma unroll
        for (int w = 0; w < K_WORDS; w++) {
            uint2 q = *(const uint2*)(query + key_elem(w));
#pragma unroll
            for (int s = 0; s < SUB_TILES; s++) {
                u32 a = keys[s].words[0][w], b = keys[s].words[1][w];
                mma_halves(scores[n][s], half_pair(a), half_pair(b), half_pair(a >> 16), half_pair(b >> 16), q.x, q.y);
            }
        }
    }
}

// Turns scores into weights in place, and shrinks what was summed up before to the new maximum. Score j of a sub-tile is of
// the key `line`, from 2 on of `line + 8`. `num_keys`: of the tile, the first `hidden` of which are not seen.
// `query_scales`: see `Merge`.
template <bool IS_LAST>
DEVICE void update(const AttentionArgs& args, Running* running, Scores& scores, Exponents of, const float (&query_scales)[QUERY_COLUMNS][2], int hidden, int num_keys) {
    int line = threadIdx.x % 32 / 4;
    float key_scales[SUB_TILES * 2], exponents[SUB_TILES * 2], inverse[SUB_TILES * 2];
#pragma unroll
    for (int k = 0; k < SUB_TILES * 2; k++) {
        u32 exponent = of.values >> (8 * k) & 255;
        key_scales[k] = power_of_two(of.keys >> (8 * k) & 255);
        // A number of 2^23 with the exponent in its last bits, and 2^23 taken off: cheaper than a conversion.
        exponents[k] = __uint_as_float(0x4b000000 | exponent) - (8388608.0f + 127.0f);
        inverse[k] = inverse_power_of_two(exponent);
    }
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        float shrink[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float max = running->max[n][j];
#pragma unroll
            for (int k = 0; k < SUB_TILES * 2; k++) {
                float& score = scores[n][k / 2][j + k % 2 * 2];
                bool is_there = (!IS_LAST || line + 8 * k < num_keys) && (!IS_LOCAL || line + 8 * k >= hidden);
                score = is_there ? capped(score * (query_scales[n][j] * key_scales[k]), args.cap_log2) + exponents[k] : NEG_INF;
                max = fmaxf(max, score);
            }
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, lanes));
            shrink[j] = exp2_approx(running->max[n][j] - max);
            running->max[n][j] = max;
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < SUB_TILES * 2; k++) {
                float& score = scores[n][k / 2][j + k % 2 * 2];
                score = exp2_approx(score - max);
                // What stands behind the last key may be any exponent, and 0 times infinity is NaN.
                if (!IS_LAST || line + 8 * k < num_keys) sum = __fmaf_rn(score, inverse[k], sum);
            }
            running->sum[n][j] = __fmaf_rn(running->sum[n][j], shrink[j], sum);
        }
        running->shrink_out(n, shrink);
    }
}

DEVICE void add_values(Running* running, const ValueTile& values, const Scores& weights, int s) {
    u32 p[QUERY_COLUMNS][2];
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
        p[n][0] = transposed(pack_halves(weights[n][s][0], weights[n][s][1]));
        p[n][1] = transposed(pack_halves(weights[n][s][2], weights[n][s][3]));
    }
#pragma unroll
    for (int w = 0; w < V_WORDS; w++) {
        // Of the neighbours in keys each an element, in the low half those of the first one.
        const u32 SELECTOR = w % 2 == 0 ? 0x5140 : 0x7362;
        u32 low = __byte_perm(values.quads[0][w / 2], values.quads[1][w / 2], SELECTOR);
        u32 high = __byte_perm(values.quads[2][w / 2], values.quads[3][w / 2], SELECTOR);
        u32 a0 = half_pair(low), a1 = half_pair(low >> 16), a2 = half_pair(high), a3 = half_pair(high >> 16);
#pragma unroll
        for (int n = 0; n < QUERY_COLUMNS; n++) mma_halves(running->out[n][w], a0, a1, a2, a3, p[n][0], p[n][1]);
    }
}

// Attends with every query of the tile to the tiles `warp`, `warp + NUM_WARPS`, .. of the split, and leaves the
// unnormalised sum of values, the maximum and the sum of exponentials of each in `merge`.
DEVICE void attend_warp(const AttentionArgs& args, const Item& item, const u16* queries, FirstTile* tile, const Merge& merge) {
    int base = first_tile(item), end = end_key(item), pair = threadIdx.x % 4;
    Running running;
    float query_scales[QUERY_COLUMNS][2];
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) query_scales[n][j] = merge.query_scales[n * 8 + pair * 2 + j];
    }
    if (base < end && has_own_token(item, base)) {
        int block = block_at(args, item, base);
        fetch_keys(args, item, block, tile);
        fetch_values(args, item, block, tile);
    }
    Scores scores;
    // Nothing in this loop is conditional, so that no load is waited for before it is needed.
    for (int next = base + NUM_WARPS * TILE_KEYS; next < end; next += NUM_WARPS * TILE_KEYS) {
        int block = block_at(args, item, next);
        Exponents exponents = tile->exponents;
        scores_of(tile->keys, queries, scores);
        fetch_keys(args, item, block, tile);
        update<false>(args, &running, scores, exponents, query_scales, num_hidden(item, base), TILE_KEYS);
#pragma unroll
        for (int s = 0; s < SUB_TILES; s++) add_values(&running, tile->values[s], scores, s);
        fetch_values(args, item, block, tile);
        base = next;
    }
    if (base < end) {
        int num_keys = end - base;
        scores_of(tile->keys, queries, scores);
        update<true>(args, &running, scores, tile->exponents, query_scales, num_hidden(item, base), num_keys);
#pragma unroll
        for (int s = 0; s < SUB_TILES; s++) {
            if (num_keys < TILE_KEYS) clear_values_past(&tile->values[s], num_keys - 16 * s);
            add_values(&running, tile->values[s], scores, s);
        }
    }
    write_merge(&running, item, merge);
}
