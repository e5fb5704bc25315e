#pragma once
// Housekeeping between steps: copies of cache blocks, and the tokens a response has seen.

struct CopyArgs {
    const int* pairs;  // [p, 2] of source and destination; one with a block outside the cache does nothing
    uint4* cache;      // [num_planes, num_blocks, vectors_per_block]; a plane: the keys or the values of a layer
    int num_blocks;
    int vectors_per_block;
};

// Grid: pairs, planes.
extern "C" __global__ void copy_blocks(CopyArgs args) {
    int source = args.pairs[2 * blockIdx.x], destination = args.pairs[2 * blockIdx.x + 1];
    if (source < 0 || destination < 0 || source >= args.num_blocks || destination >= args.num_blocks) return;
    i64 plane = (i64)blockIdx.y * args.num_blocks;
    const uint4* from = args.cache + (plane + source) * args.vectors_per_block;
    uint4* to = args.cache + (plane + destination) * args.vectors_per_block;
    for (int i = threadIdx.x; i < args.vectors_per_block; i += blockDim.x) to[i] = from[i];
}

struct MarkArgs {
    const int* tokens;      // [num_tokens]: prompts, one after another
    const int* cu_seqlens;  // [m + 1]
    const int* slots;       // [m], below 0: nobody's
    u32* seen;              // [num_slots, words_per_slot]
    int num_tokens;
    int num_slots;
    int words_per_slot;
    int vocab_size;
};

// Clears the bit set of a slot and sets the bits of its prompt. One block a prompt.
extern "C" __global__ void mark_seen(MarkArgs args) {
    int slot = args.slots[blockIdx.x];
    if (slot < 0 || slot >= args.num_slots) return;
    u32* seen = args.seen + (i64)slot * args.words_per_slot;
    for (int i = threadIdx.x; i < args.words_per_slot; i += blockDim.x) seen[i] = 0;
    __syncthreads();
    int end = min(args.cu_seqlens[blockIdx.x + 1], args.num_tokens);
    for (int i = max(args.cu_seqlens[blockIdx.x], 0) + threadIdx.x; i < end; i += blockDim.x) {
        int token = args.tokens[i];
        if (token >= 0 && token < args.vocab_size) atomicOr(seen + token / 32, 1u << (token % 32));
    }
}
