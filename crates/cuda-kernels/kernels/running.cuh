#pragma once
// What the kernels on the tensor cores have in common: loads around the first-level cache, the running softmax of a warp,
// and how it is left for the other warps.
//
// A row tile of the output is 16 elements of the values; which ones, decides how a lane reads them (`value_elem`).

#define V_WORDS (HEAD_DIM / 16) // row tiles

// The first of the two elements, neighbours, that a lane has of a row tile.
DEVICE int value_elem(int word);

// A load of keys covers half of each line it touches, so the second-level cache is asked to fetch the whole line.
DEVICE uint4 load16(const void* from) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
    return v;
}

DEVICE uint2 load8(const void* from) {
    uint2 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from) : "memory");
    return v;
}

DEVICE u32 load4(const void* from) {
    u32 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

DEVICE u32 load2(const void* from) {
    u16 v;
    asm volatile("ld.global.L1::no_allocate.L2::128B.u16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
    return v;
}

DEVICE u32 transposed(u32 fragment) {
    u32 result;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(fragment));
    return result;
}

DEVICE float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Running softmax of the queries 2 * pair and 2 * pair + 1 of each column block: `sum` is over the lane's own keys.
struct Running {
    float max[QUERY_COLUMNS][2];
    float sum[QUERY_COLUMNS][2];
    float out[QUERY_COLUMNS][V_WORDS][4];

    DEVICE Running() {
#pragma unroll
        for (int n = 0; n < QUERY_COLUMNS; n++) {
            max[n][0] = max[n][1] = NEG_INF;
            sum[n][0] = sum[n][1] = 0.0f;
#pragma unroll
            for (int w = 0; w < V_WORDS; w++) out[n][w][0] = out[n][w][1] = out[n][w][2] = out[n][w][3] = 0.0f;
        }
    }

    // Brings what was summed up before to a new maximum.
    DEVICE void shrink_out(int n, const float (&shrink)[2]) {
        if (!__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
        for (int w = 0; w < V_WORDS; w++) {
#pragma unroll
            for (int j = 0; j < 4; j++) out[n][w][j] *= shrink[j % 2];
        }
    }
};

DEVICE void write_merge(Running* running, const Item& item, const Merge& merge) {
    int pair = threadIdx.x % 4, line = threadIdx.x % 32 / 4, warp = threadIdx.x / 32;
#pragma unroll
    for (int n = 0; n < QUERY_COLUMNS; n++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float sum = running->sum[n][j];
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2) sum += __shfl_xor_sync(0xffffffff, sum, lanes);
            int column = n * 8 + pair * 2 + j;
            if (column < first_column(item) || column >= end_column(item)) continue;
            if (line == 0) merge.stats[warp * QUERY_TILE + column] = make_float2(running->max[n][j], sum);
            float* out = merge.outs + (warp * QUERY_TILE + column) * HEAD_DIM;
#pragma unroll
            for (int w = 0; w < V_WORDS; w++) {
                *(float2*)(out + value_elem(w)) = make_float2(running->out[n][w][j], running->out[n][w][j + 2]);
            }
        }
    }
}
