#pragma once
// The numbers that decide a token, with the bits of the CPU's sampler: weights and the uniform number of a draw. All of
// it is written with explicit roundings, since fused multiply-adds would give other bits.

DEVICE u32 key_of(float value) {
    u32 bits = __float_as_uint(__fadd_rn(value, 0.0f)); // both zeros are one value
    return bits ^ ((int)bits < 0 ? 0xffffffff : 0x80000000);
}

DEVICE float value_of(u32 key) { return __uint_as_float(key & 0x80000000 ? key ^ 0x80000000 : ~key); }

#define WEIGHT_BITS 34

// exp(x) for x <= 0, the bits of the CPU's, times 2^WEIGHT_BITS, which changes the exponent alone.
DEVICE float scaled_exp(float x) {
    x = fmaxf(x, -80.0f);
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), 12582912.0f);
    float exponent = __fsub_rn(shifted, 12582912.0f);
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(exponent, 0.6933594f)), __fmul_rn(exponent, -2.1219444e-4f));
    float poly = 1.9875691e-4f;
    const float coefficients[5] = {1.3981999e-3f, 8.333452e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f};
#pragma unroll
    for (int i = 0; i < 5; i++) poly = __fadd_rn(__fmul_rn(poly, r), coefficients[i]);
    float mantissa = __fadd_rn(__fadd_rn(__fmul_rn(poly, __fmul_rn(r, r)), r), 1.0f);
    return __fmul_rn(mantissa, __uint_as_float((__float_as_uint(shifted) << 23) + ((127u + WEIGHT_BITS) << 23)));
}

// In units of 2^-WEIGHT_BITS.
DEVICE u64 weight_of(float value, float max) { return __float2ull_rn(scaled_exp(__fsub_rn(value, max))); }

// The largest integer that a sum may reach without exceeding `fraction` of `total`.
DEVICE u64 target_of(double fraction, u64 total) {
    u64 target = __double2ull_rd(__dmul_rn(fraction, __ull2double_rn(total)));
    return target < total ? target : total - 1;
}

// Philox4x32-10 with the counter and key of the sampling crate: 53 bits in [0, 1).
DEVICE double uniform(u64 seed, u64 sample_idx, u32 response_idx, u32 token_idx) {
    u32 counter[4] = {response_idx, token_idx, (u32)(seed >> 32), (u32)(sample_idx >> 32)};
    u32 key[2] = {(u32)seed, (u32)sample_idx};
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 product0 = (u64)0xD2511F53u * counter[0], product1 = (u64)0xCD9E8D57u * counter[2];
        counter[0] = (u32)(product1 >> 32) ^ counter[1] ^ key[0];
        counter[1] = (u32)product1;
        counter[2] = (u32)(product0 >> 32) ^ counter[3] ^ key[1];
        counter[3] = (u32)product0;
        key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    u64 bits = ((u64)counter[0] << 32 | counter[1]) >> 11;
    return __dmul_rn(__ull2double_rn(bits), 1.0 / 9007199254740992.0);
}
