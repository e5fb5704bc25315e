#pragma once
// The rows of each expert together, and the tiles that cover them.

#define GROUP_THREADS 1024

struct GroupArgs {
    const int* experts; // [num_places]: the expert of each row and slot
    int* places;        // [num_places]: which row and slot lies here
    int* where;         // [num_places]: where a row and slot lies
    int4* tiles;        // expert, first of its places, how many, and nothing
    int* num_tiles;
    int num_places;
    int num_experts;    // up to GROUP_THREADS
    int tile_rows;
};

// The sum of what the threads before this one have.
DEVICE int sum_before(int value, int* scratch) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = value;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int below = __shfl_up_sync(0xffffffff, sum, lanes);
        if (lane >= lanes) sum += below;
    }
    __syncthreads();
    if (lane == 31) scratch[warp] = sum;
    __syncthreads();
    int before = 0;
    for (int i = 0; i < warp; i++) before += scratch[i];
    return before + sum - value;
}

// One block. Rows of an expert lie in any order: nothing depends on it.
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group(GroupArgs args) {
    __shared__ int counts[GROUP_THREADS];
    __shared__ int scratch[32];
    int thread = threadIdx.x;
    let_next_start();
    counts[thread] = 0;
    __syncthreads();
    wait_for_previous();
    for (int i = thread; i < args.num_places; i += GROUP_THREADS) atomicAdd(&counts[args.experts[i]], 1);
    __syncthreads();
    int count = counts[thread];
    int start = sum_before(count, scratch);
    int num_tiles = (count + args.tile_rows - 1) / args.tile_rows;
    int first_tile = sum_before(num_tiles, scratch);
    for (int i = 0; i < num_tiles; i++) {
        int done = i * args.tile_rows;
        args.tiles[first_tile + i] = make_int4(thread, start + done, min(args.tile_rows, count - done), 0);
    }
    if (thread == GROUP_THREADS - 1) *args.num_tiles = first_tile + num_tiles;
    counts[thread] = start;
    __syncthreads();
    for (int i = thread; i < args.num_places; i += GROUP_THREADS) {
        int at = atomicAdd(&counts[args.experts[i]], 1);
        args.places[at] = i;
        args.where[i] = at;
    }
}
