#pragma once
// top_k and top_p without sorting: exact searches by histograms that all blocks of a row fill together.

#define NUM_BINS 2048
#define NUM_HISTOGRAMS 3
#define BINS_PER_UNIT 64.0f

// The low and the high words of the block's histogram: shared memory adds 32 bits at once, 64 only in a loop.
struct FilterScratch : Scratch {
    u32 low[NUM_BINS];
    u32 high[NUM_BINS];
};

DEVICE u64* histogram_of(const SampleArgs& args, const Chunk& chunk, int round) {
    return args.histograms + ((i64)chunk.entry * NUM_HISTOGRAMS + round % NUM_HISTOGRAMS) * NUM_BINS;
}

// Clears this block's share of the histogram of a later round; nobody reads it in this one.
DEVICE void clear_histogram(const SampleArgs& args, const Chunk& chunk, int round) {
    u64* histogram = histogram_of(args, chunk, round);
    for (int i = chunk.idx * SAMPLE_THREADS + threadIdx.x; i < NUM_BINS; i += args.num_chunks * SAMPLE_THREADS) histogram[i] = 0;
}

// The bin at which the running amount exceeds `target`, and the amount before it. All threads.
DEVICE int crossing_bin(const u64* histogram, u64 target, u64* before, Scratch* scratch) {
    const int BINS = NUM_BINS / SAMPLE_THREADS;
    int warp = threadIdx.x / 32;
    u64 bins[BINS], own = 0;
#pragma unroll
    for (int i = 0; i < BINS; i++) own += bins[i] = __ldcg(histogram + threadIdx.x * BINS + i);
    u64 end = warp_scan(own);
    if (threadIdx.x % 32 == 31) scratch->warps[warp] = end;
    __syncthreads();
    u64 cumulative = *before + end - own;
    for (int other = 0; other < warp; other++) cumulative += scratch->warps[other];
#pragma unroll
    for (int i = 0; i < BINS; i++) {
        if (cumulative <= target && cumulative + bins[i] > target) {
            scratch->found[0] = threadIdx.x * BINS + i;
            scratch->found[1] = cumulative;
        }
        cumulative += bins[i];
    }
    __syncthreads();
    int bin = (int)scratch->found[0];
    *before = scratch->found[1];
    __syncthreads();
    return bin;
}

DEVICE u64 histogram_total(const u64* histogram, Scratch* scratch) {
    u64 own = 0;
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) own += __ldcg(histogram + i);
    return block_sum(own, scratch);
}

DEVICE u32 distance_bin(float value, float max) {
    float distance = __fmul_rn(__fsub_rn(max, value), BINS_PER_UNIT);
    return distance < (float)(NUM_BINS - 1) ? (u32)__float2int_rn(distance) : NUM_BINS - 1;
}

// What a search counts: tokens, or their weights.
enum Measure { TOKENS, WEIGHTS };

struct Selection {
    u32 key;      // of the value at which the running amount, from the largest value down, exceeds the target
    u64 before;   // the amount of all larger values
    u64 target;
};

// Adds the kept values for which `bin_of` gives a bin (below NUM_BINS) to the row's histogram of this round.
template <class Bin>
DEVICE void fill_histogram(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, const Kept& kept, Measure measure, int round,
    FilterScratch* scratch, Bin bin_of) {
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) scratch->low[i] = scratch->high[i] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) {
        u32 key = key_of(values[i]);
        u32 bin = bin_of(values[i], key);
        if (bin >= NUM_BINS || !keeps(kept, key, id_of(*chunk, i))) continue;
        u64 amount = measure == TOKENS ? 1 : weight_of(values[i], max);
        u32 low = (u32)amount, high = (u32)(amount >> 32);
        if (low > 0) high += atomicAdd(scratch->low + bin, low) > 0xffffffff - low;
        if (high > 0) atomicAdd(scratch->high + bin, high);
    }
    __syncthreads();
    u64* histogram = histogram_of(args, *chunk, round);
    for (int i = threadIdx.x; i < NUM_BINS; i += SAMPLE_THREADS) {
        u64 amount = (u64)scratch->high[i] << 32 | scratch->low[i];
        if (amount > 0) atomicAdd(histogram + i, amount);
    }
    clear_histogram(args, *chunk, round + 1);
    wait_for_row(args, chunk);
}

// Finds where the running amount exceeds a target: `rank` tokens, or the fraction top_p of all weights. One round over
// distances from the maximum, where logits spread well, then three over the bits of the keys of one bin.
DEVICE Selection select(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, const Kept& kept, Measure measure, int* round,
    FilterScratch* scratch) {
    fill_histogram(args, chunk, values, max, kept, measure, *round, scratch, [&](float value, u32) { return distance_bin(value, max); });
    u64* histogram = histogram_of(args, *chunk, *round);
    Selection selection = {0, 0, args.top_k - 1};
    if (measure == WEIGHTS) selection.target = target_of((double)args.top_p, histogram_total(histogram, scratch));
    u32 distance = crossing_bin(histogram, selection.target, &selection.before, scratch);
    *round += 1;
    int shift = 32;
    for (int bits = 11; shift > 0; bits = shift < bits ? shift : bits) {
        int next_shift = shift - bits;
        u32 prefix = selection.key;
        u32 last_bin = (1u << bits) - 1;
        fill_histogram(args, chunk, values, max, kept, measure, *round, scratch, [&](float value, u32 key) -> u32 {
            bool is_inside = distance_bin(value, max) == distance && (shift == 32 || key >> shift == prefix >> shift);
            return is_inside ? last_bin - (key >> next_shift & last_bin) : NUM_BINS;
        });
        u32 bin = crossing_bin(histogram_of(args, *chunk, *round), selection.target, &selection.before, scratch);
        selection.key |= (last_bin - bin) << next_shift;
        *round += 1;
        shift = next_shift;
    }
    return selection;
}

// Where the smallest prefix, by value and then by id, ends whose weight exceeds top_p of all.
struct TopP {
    u32 last_key;
    u64 num_kept_ties;  // of the tokens with this value, the first by id; 0: top_p is off
};

DEVICE TopP find_top_p(
    const SampleArgs& args, Chunk* chunk, const float (&values)[SAMPLE_VALUES], float max, const Kept& kept, int* round,
    FilterScratch* scratch) {
    Selection selection = select(args, chunk, values, max, kept, WEIGHTS, round, scratch);
    TopP top_p;
    top_p.last_key = selection.key;
    top_p.num_kept_ties = (selection.target - selection.before) / weight_of(value_of(selection.key), max) + 1;
    u64 own_ties = 0;
#pragma unroll
    for (int i = 0; i < SAMPLE_VALUES; i++) own_ties += key_of(values[i]) == selection.key;
    own_ties = block_sum(own_ties, scratch);
    if (threadIdx.x == 0) args.ties[(i64)chunk->entry * args.num_chunks + chunk->idx] = own_ties;
    wait_for_row(args, chunk);
    return top_p;
}

// Says which values of a chunk, whose they must be, top_p leaves.
DEVICE void limit_ties(
    const SampleArgs& args, const Chunk& chunk, const float (&values)[SAMPLE_VALUES], const TopP& top_p, Kept* kept, Scratch* scratch) {
    if (top_p.num_kept_ties == 0) return;
    u64 before = row_before(args, chunk, args.ties);
    u64 own = __ldcg(args.ties + (i64)chunk.entry * args.num_chunks + chunk.idx);
    kept->last_key = top_p.last_key;
    kept->last_id = 0x7fffffff;
    if (top_p.num_kept_ties <= before) {
        kept->last_id = -1;
    } else if (top_p.num_kept_ties < before + own) {
        auto is_tie = [&](int i) -> u64 { return key_of(values[i]) == top_p.last_key; };
        kept->last_id = walk(chunk, is_tie, top_p.num_kept_ties - before - 1, scratch);
    }
}
