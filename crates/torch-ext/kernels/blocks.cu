// Housekeeping between steps: copies of cache blocks, and the tokens a response has seen.

// cache: [num_planes, num_blocks, block bytes], a plane being the keys or values of one layer. pairs: [p, 2] of source
// and destination; a pair with a block outside the cache does nothing. Grid: pairs, planes.
extern "C" __global__ void copy_blocks(const int* pairs, uint4* cache, int num_blocks, int vectors_per_block) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    int source = pairs[2 * blockIdx.x], destination = pairs[2 * blockIdx.x + 1];
    if (source < 0 || destination < 0 || source >= num_blocks || destination >= num_blocks) return;
    i64 plane = (i64)blockIdx.y * num_blocks;
    const uint4* from = cache + (plane + source) * vectors_per_block;
    uint4* to = cache + (plane + destination) * vectors_per_block;
    for (int i = threadIdx.x; i < vectors_per_block; i += blockDim.x) to[i] = from[i];
}

// Clears the bitmap of a slot and sets the bits of its prompt. tokens: packed prompts; cu_seqlens: [m + 1]; slots: [m],
// below 0 skipped; seen: [num_slots, words_per_slot]. One block a prompt.
extern "C" __global__ void mark_seen(
    const int* tokens, const int* cu_seqlens, const int* slots, u32* seen, int num_slots, int words_per_slot, int vocab_size) {
    wait_for_previous_kernel();
    let_next_kernel_start();
    int slot = slots[blockIdx.x];
    if (slot < 0 || slot >= num_slots) return;
    u32* bitmap = seen + (i64)slot * words_per_slot;
    for (int i = threadIdx.x; i < words_per_slot; i += blockDim.x) bitmap[i] = 0;
    __syncthreads();
    for (int i = cu_seqlens[blockIdx.x] + threadIdx.x; i < cu_seqlens[blockIdx.x + 1]; i += blockDim.x) {
        int token = tokens[i];
        if (token >= 0 && token < vocab_size) atomicOr(bitmap + token / 32, 1u << (token % 32));
    }
}
