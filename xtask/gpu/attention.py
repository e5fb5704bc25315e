"""Decode attention beside plain reads of the same keys and values, on one GPU of compute capability 9.0.

Compiles crates/cuda-kernels/kernels with NVRTC and launches the kernels by the driver, so a change of a kernel is timed without a build:

    python3 xtask/gpu/attention.py [ROWS GROUPS CONTEXT [QUERIES]]

Each kernel is replayed in a CUDA graph over the caches of 8 layers; the median of five. Needs torch with CUDA; head_dim is 128, one query a group
unless more are asked for.
"""

import struct
import sys

import torch

from driver import kernel, launch, micros, nvrtc, source

HEAD_DIM, BLOCK_TOKENS, SPLIT_KEYS, NUM_WARPS, LAYERS = 128, 32, 512, 4, 8
# As in Tiling of crates/cuda-kernels/src/model/programs.rs.
BLOCKS_PER_SM, QUERY_TILE = 2, 8

# What attention reads and nothing else: every warp has a ring of tiles of 16 keys and 16 values.
READS = r"""
extern "C" __global__ void __launch_bounds__(128) reads(
    const char* keys, const char* values, int num_items, int num_groups, int blocks_per_row, int tiles_of_warp, int num_stages, float* out) {
    extern __shared__ __align__(128) char shared[];
    __shared__ unsigned long long barriers[4][8];
    const int TILE = 4096;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    char* ring = shared + warp * num_stages * 2 * TILE;
    unsigned to = (unsigned)__cvta_generic_to_shared(ring), barrier = (unsigned)__cvta_generic_to_shared(barriers[warp]);
    if (lane == 0) {
        for (int i = 0; i < num_stages; i++) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier + 8 * i));
        asm volatile("fence.mbarrier_init.release.cluster;");
    }
    __syncwarp();
    int num_tiles = (num_items - (int)blockIdx.x + (int)gridDim.x - 1) / (int)gridDim.x * tiles_of_warp;
    auto fetch = [&](int n) {
        int stage = n % num_stages, item = blockIdx.x + n / tiles_of_warp * gridDim.x, tile = n % tiles_of_warp * 4 + warp;
        long long block = (long long)(item / num_groups) * blocks_per_row + tile / 2;
        long long offset = (block * num_groups + item % num_groups) * 2 * TILE + tile % 2 * TILE;
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier + 8 * stage), "r"(2 * TILE));
        for (int i = 0; i < 2; i++) {
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to + (stage * 2 + i) * TILE),
                         "l"((i ? values : keys) + offset), "r"(TILE), "r"(barrier + 8 * stage)
                         : "memory");
        }
    };
    if (lane == 0) for (int n = 0; n < num_stages && n < num_tiles; n++) fetch(n);
    float sum = 0.0f;
    for (int n = 0; n < num_tiles; n++) {
        int stage = n % num_stages;
        unsigned is_there = 0;
        while (!is_there) {
            asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                         : "=r"(is_there) : "r"(barrier + 8 * stage), "r"(n / num_stages & 1) : "memory");
        }
        for (int i = 0; i < 16; i++) sum += ((const float4*)(ring + stage * 2 * TILE))[i * 32 + lane].x;
        __syncwarp();
        if (lane == 0 && n + num_stages < num_tiles) fetch(n + num_stages);
    }
    if (sum == 1234.5f) *out = sum;
}
"""


def main():
    rows, groups, context, queries = [*map(int, sys.argv[1:]), 1][:4] if len(sys.argv) > 3 else (256, 16, 512, 1)
    torch.cuda.init()
    compiler, stream = nvrtc(), torch.cuda.Stream()
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    table_width = -(-context // BLOCK_TOKENS) + 1
    num_blocks = rows * table_width
    ints = dict(device="cuda", dtype=torch.int32)
    half = dict(device="cuda", dtype=torch.bfloat16)
    caches = [[torch.randn(num_blocks * groups * BLOCK_TOKENS, HEAD_DIM, **half) for _ in range(2)] for _ in range(LAYERS)]
    read_bytes = rows * groups * context * HEAD_DIM * 2 * 2

    def tell(name, time):
        time /= LAYERS
        print(f"{name}: {time:.1f} us a layer, {read_bytes / time / 1e3:.0f} GB/s", flush=True)

    reads, out = kernel(compiler, READS, "reads", {}, shared=200 * 1024), torch.zeros(1, device="cuda")
    if context % (NUM_WARPS * 16) == 0:
        sizes = [rows * groups, groups, table_width, context // (NUM_WARPS * 16)]
        for blocks_per_sm, stages in ((3, 2), (2, 2), (1, 4)):

            def read():
                for layer in caches:
                    args = [struct.pack("Q", cache.data_ptr()) for cache in layer] + [struct.pack("i", size) for size in sizes + [stages]]
                    launch(reads, num_sms * blocks_per_sm, 128, stages * NUM_WARPS * 8192, args + [struct.pack("Q", out.data_ptr())])

            tell(f"reads alone, {blocks_per_sm} blocks a multiprocessor, {stages} tiles under way a warp", micros(stream, read))

    defines = dict(ELEM=1, HEAD_DIM=HEAD_DIM, QUERIES_PER_GROUP=queries, QUERY_COLUMNS=1, SPLIT_KEYS=SPLIT_KEYS, NUM_WARPS=NUM_WARPS, BLOCKS_PER_SM=BLOCKS_PER_SM)
    attention = kernel(compiler, source("attention.cu"), "decode_attention_qkv", defines, shared=200 * 1024)
    splits = -(-context // SPLIT_KEYS)
    slot = lambda row: (row * table_width + (context - 1) // BLOCK_TOKENS) * BLOCK_TOKENS + (context - 1) % BLOCK_TOKENS
    # As plan_decode lists them where there is work enough: all splits of a row are one item.
    items = [numbers for row in range(rows) for numbers in ([row, 1, 1, 0], [0, splits, context, slot(row)])]
    half_dim = HEAD_DIM // 2
    tensors = [
        torch.randn(rows, groups, queries + 2, HEAD_DIM, **half),
        torch.empty(rows, groups * queries, HEAD_DIM, **half),
        torch.arange(num_blocks, **ints),
        torch.tensor([slot(row) for row in range(rows)], **ints),
        torch.full((rows,), context, **ints),
        torch.tensor(items, **ints),
        torch.tensor([rows], **ints),
        torch.zeros(rows * groups, **ints),
        torch.zeros(2, **ints),
        torch.empty(rows * groups * queries * splits * HEAD_DIM, device="cuda"),
        torch.empty(rows * groups * queries * splits * 2, device="cuda"),
        torch.ones(context, half_dim, device="cuda"),
        torch.zeros(context, half_dim, device="cuda"),
    ]
    addresses = [tensor.data_ptr() for tensor in tensors]
    shared = QUERY_TILE * HEAD_DIM * 2 + NUM_WARPS * QUERY_TILE * (HEAD_DIM * 4 + 8) + QUERY_TILE * HEAD_DIM * 6

    def attend():
        for layer in caches:
            keys, values = (cache.data_ptr() for cache in layer)
            # AttentionArgs of item.cuh.
            args = struct.pack("13Q", addresses[0], keys, values, *addresses[1:11])
            args += struct.pack("2Q2i", *addresses[11:], HEAD_DIM, context)
            args += struct.pack("5if", groups, table_width, num_blocks, splits, rows, HEAD_DIM**-0.5 * 1.4427)
            launch(attention, num_sms * BLOCKS_PER_SM, 32 * NUM_WARPS, shared, [args])

    tell("decode_attention_qkv", micros(stream, attend))


if __name__ == "__main__":
    main()
