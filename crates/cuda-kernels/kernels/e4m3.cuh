#pragma once
// Conversions from and to e4m3, as GPUs have them from compute capability 8.9 on.

#define LARGEST_E4M3 448.0f

// Two values as e4m3, the first one in the low byte; at most 448 in size, NaN as NaN.
DEVICE u32 e4m3_pair(float low, float high) {
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

// Two values of e4m3, in the low half of a word, as float16, which holds them all.
DEVICE u32 half_pair(u32 e4m3) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((u16)e4m3));
    return halves;
}

DEVICE float low_half(u32 halves) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)halves));
    return value;
}

DEVICE float high_half(u32 halves) { return low_half(halves >> 16); }

// Two values rounded to float16, the first one in the low half.
DEVICE u32 pack_halves(float low, float high) {
    u32 packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
