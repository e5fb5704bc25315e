#pragma once
// Element types, wide loads and block reductions shared by all kernels.
//
// NVRTC compiles this at run time without the toolkit's headers, so the conversions are inline PTX. ELEM chooses
// the type T of activations, weights and the cache: 0 float32, 1 bfloat16, 2 float16.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__
#define BLOCK_SIZE_TOKENS 32
#define NEG_INF __int_as_float(0xff800000)
#define QUIET_NAN __int_as_float(0x7fc00000)

#if ELEM == 0
typedef float T;
#else
typedef u16 T;
#endif

DEVICE float to_float(float value) { return value; }

DEVICE float to_float(u16 bits) {
#if ELEM == 2
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return __uint_as_float((u32)bits << 16);
#endif
}

DEVICE void from_float(float value, float* out) { *out = value; }

DEVICE void from_float(float value, u16* out) {
    u16 bits;
#if ELEM == 2
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
    *out = bits;
}

// Two values rounded to T, the first one in the low half.
DEVICE u32 pack2(float low, float high) {
    u32 packed;
#if ELEM == 2
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
#endif
    return packed;
}

DEVICE float rounded(float value) {
    T narrow;
    from_float(value, &narrow);
    return to_float(narrow);
}

// A kernel launched with `overlaps` starts when all blocks of the one before it have called the first of these or ended,
// and may touch nothing that any kernel before it writes until it has called the second. Older GPUs know neither.
DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for the 128 bytes around an address to be brought to the L2 cache. Nothing is read by it.
DEVICE void prefetch(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// `W` neighbouring elements: 1; 2 on a boundary of both; or 8 on one of 16 bytes.
template <int W>
DEVICE void load(const float* from, float (&to)[W]) {
    if constexpr (W == 8) {
        float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
        to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
    } else if constexpr (W == 2) {
        float2 pair = *(const float2*)from;
        to[0] = pair.x, to[1] = pair.y;
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) to[i] = from[i];
    }
}

template <int W>
DEVICE void load(const u16* from, float (&to)[W]) {
    if constexpr (W == 8) {
        uint4 raw = *(const uint4*)from;
        u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[2 * i] = to_float((u16)words[i]);
            to[2 * i + 1] = to_float((u16)(words[i] >> 16));
        }
    } else if constexpr (W == 2) {
        u32 pair = *(const u32*)from;
        to[0] = to_float((u16)pair), to[1] = to_float((u16)(pair >> 16));
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) to[i] = to_float(from[i]);
    }
}

template <int W>
DEVICE void store(float* to, const float (&from)[W]) {
    if constexpr (W == 8) {
        ((float4*)to)[0] = make_float4(from[0], from[1], from[2], from[3]);
        ((float4*)to)[1] = make_float4(from[4], from[5], from[6], from[7]);
    } else if constexpr (W == 2) {
        *(float2*)to = make_float2(from[0], from[1]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) to[i] = from[i];
    }
}

template <int W>
DEVICE void store(u16* to, const float (&from)[W]) {
    if constexpr (W == 8) {
        *(uint4*)to = make_uint4(pack2(from[0], from[1]), pack2(from[2], from[3]), pack2(from[4], from[5]), pack2(from[6], from[7]));
    } else if constexpr (W == 2) {
        *(u32*)to = pack2(from[0], from[1]);
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) from_float(from[i], to + i);
    }
}

DEVICE float warp_sum(float value) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffff, value, lanes);
    return value;
}

// The sum over a block of whole warps, in an order that depends on the block's size alone. `scratch`: 32 floats that
// nothing else uses until the block's next barrier but one.
DEVICE float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    int num_warps = blockDim.x / 32;
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    int lane = threadIdx.x % 32;
    return warp_sum(lane < num_warps ? scratch[lane] : 0.0f);
}
