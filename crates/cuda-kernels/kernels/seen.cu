// The tokens that a sequence holds, as bits, for the repetition penalty.

#include "common.cuh"

struct MarkArgs {
    const int* tokens;      // [num_tokens]: prompts, one after another
    const int* cu_seqlens;  // [m + 1]
    const int* slots;       // [m], below 0: the prompt is left out
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
