#pragma once
// What the products of a few rows share: barriers in shared memory, and what becomes of a sum.
//
// ACTIVATION: -1, or the nonlinearity that the sums go through; IS_GATED: with a second half that multiplies it.

#include "nonlinearity.cuh"

struct ProductOut {
    const T* bias;     // [weight's rows], or null
    const T* residual; // [rows, num_out], or null; may be `out`
    void* out;         // T or float [rows, num_out]
    int rows;
    int num_out;       // half of the weight's rows when gated
    int is_f32;        // `out`
    int reserved;
};

DEVICE void init_barrier(u32 barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

DEVICE void arrive_at(u32 barrier) {
    asm volatile("{.reg .b64 state; mbarrier.arrive.shared.b64 state, [%0];}" ::"r"(barrier) : "memory");
}

DEVICE void wait_for(u32 barrier, u32 phase) {
    u32 done = 0;
    while (!done) {
#if __CUDA_ARCH__ >= 900
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
#else
        asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}" : "=r"(done) : "r"(barrier), "r"(phase) : "memory");
#endif
    }
}

// One output as it is stored. `second`: the sum that multiplies it, when gated. Everything is rounded where separate
// kernels would round it.
DEVICE float finished(const ProductOut& to, float sum, float second, int output, i64 at) {
    if (to.bias) sum += to_float(to.bias[output]);
#if IS_GATED
    if (to.bias) second += to_float(to.bias[to.num_out + output]);
    return activated(rounded(sum), ACTIVATION) * rounded(second);
#elif ACTIVATION >= 0
    return activated(rounded(sum), ACTIVATION);
#else
    return to.residual ? rounded(sum) + to_float(to.residual[at]) : sum;
#endif
}

DEVICE void store_one(const ProductOut& to, int row, int output, float sum, float second) {
    if (row >= to.rows || output >= to.num_out) return;
    i64 at = (i64)row * to.num_out + output;
    float value = finished(to, sum, second, output, at);
    if (to.is_f32) {
        ((float*)to.out)[at] = value;
    } else {
        from_float(value, (T*)to.out + at);
    }
}

// Two neighbouring outputs of a row, `output` an even number.
DEVICE void store_pair(const ProductOut& to, int row, int output, float2 sum, float2 second) {
    if (to.num_out % 2 != 0) {
        store_one(to, row, output, sum.x, second.x);
        store_one(to, row, output + 1, sum.y, second.y);
        return;
    }
    if (row >= to.rows || output >= to.num_out) return;
    i64 at = (i64)row * to.num_out + output;
    float first = finished(to, sum.x, second.x, output, at), last = finished(to, sum.y, second.y, output + 1, at + 1);
    if (to.is_f32) {
        *(float2*)((float*)to.out + at) = make_float2(first, last);
    } else {
        *(u32*)((T*)to.out + at) = pack2(first, last);
    }
}
