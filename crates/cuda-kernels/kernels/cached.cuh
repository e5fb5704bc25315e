#pragma once
// Keys and values as the paged cache holds them, [num_blocks, groups] blocks of a head: 32 tokens of HEAD_DIM elements in T.
//
// With KV_FP8 the elements are e4m3, and 32 bytes behind them have the exponent of each token's scale: the least k with which
// 448 * 2^k reaches the largest element, plus 127. So each number is one of bfloat16 as well, and dequantising is exact. A
// head with an infinity or a NaN is NaN. The CPU rounds to the same numbers (`crates/cpu-kernels/src/e4m3.rs`).

#include "e4m3.cuh"

#if KV_FP8
typedef u8 Cached;
#define HEAD_BLOCK (BLOCK_SIZE_TOKENS * (HEAD_DIM + 1)) // elements, or bytes
#else
typedef T Cached;
#define HEAD_BLOCK (BLOCK_SIZE_TOKENS * HEAD_DIM)
#endif

// Where the tokens of a block have their elements of a group.
DEVICE i64 head_block(int num_groups, int block, int group) { return ((i64)block * num_groups + group) * HEAD_BLOCK; }

#if KV_FP8

#define LEAST_EXPONENT (127 - 60)

// Where the exponent of a token is: a lane of the attention reads those of four tokens at once that are 8 apart.
DEVICE int exponent_at(int token) { return BLOCK_SIZE_TOKENS * HEAD_DIM + token % 8 * 4 + token / 8; }

// Of a finite maximum, given by its bits. 448 is 1.75 * 2^8; above 1.75 a mantissa carries into the exponent.
DEVICE u32 exponent_of(u32 max_bits) { return (u32)max((int)((max_bits + 0x1fffff) >> 23) - 8, LEAST_EXPONENT); }

DEVICE float power_of_two(u32 exponent) { return __uint_as_float(exponent << 23); }

DEVICE float inverse_power_of_two(u32 exponent) { return __uint_as_float((254 - exponent) << 23); }

// `W` neighbouring elements of a token, an even number of them.
template <int W>
DEVICE void read_head(const Cached* of_block, int token, int elem, float (&to)[W]) {
    const u8* from = of_block + token * HEAD_DIM + elem;
    float scale = power_of_two(of_block[exponent_at(token)]);
#pragma unroll
    for (int i = 0; i < W; i += 2) {
        u32 halves = half_pair(*(const u16*)(from + i));
        to[i] = low_half(halves) * scale, to[i + 1] = high_half(halves) * scale;
    }
}

DEVICE float read_elem(const Cached* of_block, int token, int elem) {
    return low_half(half_pair(of_block[token * HEAD_DIM + elem])) * power_of_two(of_block[exponent_at(token)]);
}

// What a warp has of one head: each lane the units `lane`, `lane + 32`, .. (see `unit_bounds`), rounded to T.
template <int W>
struct HeadUnits {
    static const int COUNT = HEAD_DIM / (2 * W);
    static const int PER_LANE = (COUNT + 31) / 32;
    float a[PER_LANE][W], b[PER_LANE][W];
};

// The bits of the largest size of all lanes' elements; those of a NaN are above all others.
template <int W>
DEVICE u32 max_bits_of(const HeadUnits<W>& head) {
    u32 max = 0;
#pragma unroll
    for (int u = 0; u < HeadUnits<W>::PER_LANE; u++) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            max = ::max(max, __float_as_uint(fabsf(head.a[u][i])));
            max = ::max(max, __float_as_uint(fabsf(head.b[u][i])));
        }
    }
    return __reduce_max_sync(0xffffffff, max);
}

template <int W>
DEVICE void write_bytes(u8* to, const float (&values)[W], float factor) {
    if constexpr (W == 1) {
        *to = (u8)e4m3_pair(values[0] * factor, 0.0f);
    } else {
#pragma unroll
        for (int i = 0; i < W; i += 2) *(u16*)(to + i) = (u16)e4m3_pair(values[i] * factor, values[i + 1] * factor);
    }
}

// A warp writes a token's head to the cache, and leaves in `head` what the cache holds. `of_block` is null for a token that
// is not cached.
template <int W>
DEVICE void write_head(Cached* of_block, int token, const Rotary& rotary, HeadUnits<W>* head) {
    int lane = threadIdx.x % 32;
    u32 max_bits = max_bits_of(*head);
    bool is_finite = max_bits < 0x7f800000;
    u32 exponent = is_finite ? exponent_of(max_bits) : 127;
    float factor = is_finite ? inverse_power_of_two(exponent) : QUIET_NAN, scale = power_of_two(exponent);
    if (of_block && lane == 0) of_block[exponent_at(token)] = (u8)exponent;
#pragma unroll
    for (int u = 0; u < HeadUnits<W>::PER_LANE; u++) {
        int unit = u * 32 + lane, first, second;
        if (unit >= HeadUnits<W>::COUNT) continue;
        unit_bounds<W>(rotary, unit, &first, &second);
        if (of_block) {
            write_bytes(of_block + token * HEAD_DIM + first, head->a[u], factor);
            write_bytes(of_block + token * HEAD_DIM + second, head->b[u], factor);
        }
#pragma unroll
        for (int i = 0; i < W; i++) {
            u32 halves = half_pair(e4m3_pair(head->a[u][i] * factor, head->b[u][i] * factor));
            head->a[u][i] = low_half(halves) * scale, head->b[u][i] = high_half(halves) * scale;
        }
    }
}

// A warp reads a head of the fused QKV, or of the queries, and rotates it where it is to be.
template <int W>
DEVICE void read_units(const Rotary& rotary, const T* from, bool rotates, int position, HeadUnits<W>* head) {
#pragma unroll
    for (int u = 0; u < HeadUnits<W>::PER_LANE; u++) {
        int unit = u * 32 + threadIdx.x % 32, first, second;
        bool is_there = unit < HeadUnits<W>::COUNT;
#pragma unroll
        for (int i = 0; i < W; i++) head->a[u][i] = head->b[u][i] = 0.0f;
        if (!is_there) continue;
        unit_bounds<W>(rotary, unit, &first, &second);
        load(from + first, head->a[u]);
        load(from + second, head->b[u]);
        if (rotates) rotate_unit(rotary, position, first, head->a[u], head->b[u]);
#pragma unroll
        for (int i = 0; i < W; i++) head->a[u][i] = rounded(head->a[u][i]), head->b[u][i] = rounded(head->b[u][i]);
    }
}

// A warp writes a head as T.
template <int W>
DEVICE void store_units(const Rotary& rotary, T* to, const HeadUnits<W>& head) {
#pragma unroll
    for (int u = 0; u < HeadUnits<W>::PER_LANE; u++) {
        int unit = u * 32 + threadIdx.x % 32, first, second;
        if (unit >= HeadUnits<W>::COUNT) continue;
        unit_bounds<W>(rotary, unit, &first, &second);
        store(to + first, head.a[u]);
        store(to + second, head.b[u]);
    }
}

#else

template <int W>
DEVICE void read_head(const Cached* of_block, int token, int elem, float (&to)[W]) {
    load(of_block + token * HEAD_DIM + elem, to);
}

DEVICE float read_elem(const Cached* of_block, int token, int elem) { return to_float(of_block[token * HEAD_DIM + elem]); }

#endif
