#pragma once
// What ranks of a model leave in memory that they share: data, and behind it words that say it is there.

#include "common.cuh"

// A rank that does not come within this time is given up: 30 s.
#define PATIENCE_NS 30000000000ull

// Of a rank, in its GPU's memory: messages so far, blocks of the current launch that have ended, and 1 + the rank that
// did not come.
struct Progress {
    u32 epoch;
    u32 num_ended;
    u32 lost;
};

DEVICE u64 now_ns() {
    u64 time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}

// The number of this launch.
DEVICE u32 begin(u64 progress) { return ((volatile Progress*)progress)->epoch + 1; }

// Whether a rank was given up. What this one computes since is nothing, so it must not say that it is there: the others
// give it up in turn.
DEVICE bool has_lost(u64 progress) { return ((volatile Progress*)progress)->lost != 0; }

// Everything that this thread, or its block before its last barrier, has written comes before the word.
DEVICE void mark(u64 word, u32 value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

// From now on nothing that this rank computes is anything. The first rank that is given up is to blame: others may only
// have waited for it.
DEVICE void give_up(u64 progress, u64 lost, u32 rank) {
    if (atomicCAS(&((Progress*)progress)->lost, 0, 1 + rank) == 0) *(volatile u32*)lost = 1 + rank;
}

// Waits until a word of a rank has come to a value; gives that rank up when it does not.
DEVICE void wait_for_mark(u64 word, u32 value, u64 progress, u64 lost, u32 rank) {
    u64 started = now_ns();
    u32 seen;
    while (true) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(word) : "memory");
        if ((int)(seen - value) >= 0) return;
        if (now_ns() - started > PATIENCE_NS) break;
    }
    give_up(progress, lost, rank);
}

// One thread of each block of a launch does this once; the last one makes the launch count.
DEVICE void count_block(u64 progress, u32 epoch) {
    Progress* of_rank = (Progress*)progress;
    if (atomicAdd(&of_rank->num_ended, 1) == gridDim.x - 1) {
        of_rank->num_ended = 0;
        __threadfence();
        ((volatile Progress*)progress)->epoch = epoch;
    }
}

// The last block of a launch that has ended makes it count.
DEVICE void end(u64 progress, u32 epoch) {
    __syncthreads();
    if (threadIdx.x == 0) count_block(progress, epoch);
}
