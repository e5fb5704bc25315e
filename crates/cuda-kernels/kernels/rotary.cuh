#pragma once
// Rotary position embedding of one head, shared by prefill, decode and the attention kernel that does both at once.

// cos and sin: f32 [max_positions, rotary_dim / 2]; null when the model has none, with rotary_dim 0.
struct Rotary {
    const float* cos;
    const float* sin;
    int rotary_dim;
    int max_positions;
};

// A head is cut into units of 2 * W elements, whose two halves lie at `first` and `second`: the two halves that a
// rotation mixes (i and i + rotary_dim / 2), or, past rotary_dim, neighbours that pass through.
template <int W>
DEVICE void unit_bounds(const Rotary& rotary, int unit, int* first, int* second) {
    int half = rotary.rotary_dim / 2;
    int i = unit * W;
    *first = i;
    *second = i + half;
    if (i >= half) {
        *first = rotary.rotary_dim + (i - half) * 2;
        *second = *first + W;
    }
}

// Rotates a unit in place. A position past the table makes it NaN, which the sampler reports.
template <int W>
DEVICE void rotate_unit(const Rotary& rotary, int position, int first, float (&a)[W], float (&b)[W]) {
    int half = rotary.rotary_dim / 2;
    if (first >= half) return;
    if (position >= rotary.max_positions) {
#pragma unroll
        for (int j = 0; j < W; j++) a[j] = b[j] = QUIET_NAN;
        return;
    }
    float cos[W], sin[W];
    load(rotary.cos + (i64)position * half + first, cos);
    load(rotary.sin + (i64)position * half + first, sin);
#pragma unroll
    for (int j = 0; j < W; j++) {
        // Fused by hand, so that every kernel that rotates gives bitwise identical results.
        float rotated = __fmaf_rn(a[j], cos[j], -__fmul_rn(b[j], sin[j]));
        b[j] = __fmaf_rn(b[j], cos[j], __fmul_rn(a[j], sin[j]));
        a[j] = rotated;
    }
}
