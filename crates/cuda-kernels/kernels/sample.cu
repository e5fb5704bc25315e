// Logits to tokens, token for token what the reference sampler of the sampling crate draws.
//
// Weights are exp(value - max) rounded to multiples of 2^-34 and held as integers, so sums are exact in any order, over
// any number of thread blocks. All float arithmetic that decides a token is written with explicit roundings: fused
// multiply-adds would give other bits than the CPU.
//
// A row is cut into chunks, one a thread block, whose values stay in registers from the one read of the logits to their
// sum. In between the blocks of a row wait for the row's maximum (and for each search of top_k and top_p) at a counter in
// global memory; they take their chunks in the order in which they start (`ticket`), so whoever is waited for is running.
// The block that finishes last draws, and reads again the one chunk that holds the token. `many.cuh` has another way for
// many rows.

#include "common.cuh"
#include "numbers.cuh"
#include "row.cuh"
#include "filter.cuh"
#if SAMPLE_OWN_RULES
#include "own.cuh"
#endif

// Moves the slot on by the token. One thread of the row calls this.
DEVICE void choose(const SampleArgs& args, const Row& row, int token, float logprob) {
    int position = args.positions[row.slot] + 1;
    if (args.admissions) {
        Admission admission = args.admissions[row.entry];
        position = admission.position;
        args.sample_idxs[row.slot] = admission.sample_idx;
        args.response_idxs[row.slot] = admission.response_idx;
    }
    args.tokens[row.slot] = token;
    args.positions[row.slot] = position;
    args.num_generated[row.slot] = row.generated + 1;
    if (args.seen) atomicOr(args.seen + (i64)row.slot * ((args.vocab_size + 31) / 32) + token / 32, 1u << (token % 32));
    Sampled sampled = {token, logprob, CHOSEN, row.generated + 1};
    args.out[row.entry] = sampled;
}

// One thread of the row calls this.
DEVICE void refuse(const SampleArgs& args, const Row& row, Status status) {
    Sampled sampled = {-1, QUIET_NAN, status, row.generated};
    args.out[row.entry] = sampled;
}

DEVICE bool is_first_thread(const Chunk& chunk) { return chunk.idx == 0 && threadIdx.x == 0; }

// Log-softmax of the raw logits. `max` and `sum`: of the whole raw row.
DEVICE float log_softmax(const SampleArgs& args, const Row& row, int token, float max, u64 sum) {
    float logit = args.logits[row.row * args.logits_stride + token];
    double total = __dmul_rn(__ull2double_rn(sum), 1.0 / (double)(1ull << WEIGHT_BITS));
    return (float)((double)__fsub_rn(logit, max) - log(total));
}

// The number of this block's task: by the order in which blocks start, where they could not all run at once.
DEVICE int take_task(const SampleArgs& args) {
    int task = blockIdx.x;
    if (args.ticket) {
        __shared__ u32 ticket;
        if (threadIdx.x == 0) {
            ticket = atomicAdd(args.ticket, 1);
            if (ticket == gridDim.x - 1) *args.ticket = 0;
        }
        __syncthreads();
        task = ticket;
    }
    return task;
}

// False when the entry is nothing to this launch.
DEVICE bool find_row(const SampleArgs& args, int entry, Row* row) {
    row->entry = row->slot = entry;
    row->row = entry;
    row->generated = 0;
    if (args.admissions) {
        row->slot = args.admissions[entry].slot;
        row->row = args.admissions[entry].logits_row;
        return row->slot >= 0 && row->slot < args.num_slots && row->row >= 0 && row->row < args.num_logits_rows;
    }
    row->generated = args.num_generated[entry];
    return args.positions[entry] >= 0;
}

// The same of a block's part of it.
DEVICE bool find_chunk(const SampleArgs& args, int task, Chunk* chunk) {
    int entry = task / args.num_chunks;
    chunk->idx = task % args.num_chunks;
    chunk->arrivals = args.arrivals + entry;
    chunk->num_waited_for = 0;
    return find_row(args, entry, chunk);
}

// The place in its row, in units of the row's weights, at which a token is drawn.
DEVICE u64 drawn_target(const SampleArgs& args, const Row& row) {
    u64 sample_idx = args.admissions ? args.admissions[row.entry].sample_idx : args.sample_idxs[row.slot];
    u32 response_idx = args.admissions ? args.admissions[row.entry].response_idx : args.response_idxs[row.slot];
    return target_of(uniform(args.seed, sample_idx, response_idx, row.generated), row_total(args, row, args.sums));
}

// The next token of the text that a sample is known to have; below 0 where the text has no more.
DEVICE int forced_token(const SampleArgs& args, const Row& row) {
    u64 sample_idx = args.admissions ? args.admissions[row.entry].sample_idx : args.sample_idxs[row.slot];
    if (sample_idx >= (u64)args.num_forced) return -1;
    i64 place = args.forced_starts[sample_idx] + row.generated;
    if (place >= args.forced_starts[sample_idx + 1]) return -1;
    int token = args.forced_tokens[place];
    return token < args.vocab_size ? token : -1;
}

// What is known of a row when its last sums are taken.
struct RowChoice {
    float max;
    float raw_max;
    Kept kept;
    u64 min_weight;  // of min_p; 0: off
};

DEVICE u64 drawn_weight(const Chunk& chunk, const RowChoice& row, const float (&values)[SAMPLE_VALUES], int i) {
    u64 weight = weight_of(values[i], row.max);
    return weight >= row.min_weight && keeps(row.kept, key_of(values[i]), id_of(chunk, i)) ? weight : 0;
}

// Leaves this block's share of the row's sums in memory.
template <bool FILTERS>
DEVICE void add_up(
    const SampleArgs& args, const Chunk& chunk, const float (&values)[SAMPLE_VALUES], const RowChoice& row, Scratch* scratch) {
    i64 own_chunk = (i64)chunk.entry * args.num_chunks + chunk.idx;
    if (!args.use_greedy) {
        u64 sum = 0;
#pragma unroll
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            sum += FILTERS ? drawn_weight(chunk, row, values, i) : weight_of(values[i], row.max);
        }
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0) args.sums[own_chunk] = sum;
    }
    if (args.compute_logprob) {
        const float* raw = args.logits + chunk.row * args.logits_stride;
        u64 sum = 0;
#pragma unroll 4
        for (int i = 0; i < SAMPLE_VALUES; i++) {
            int id = id_of(chunk, i);
            if (id < args.vocab_size) sum += weight_of(raw[id], row.raw_max);
        }
        sum = block_sum(sum, scratch);
        if (threadIdx.x == 0) args.raw_sums[own_chunk] = sum;
    }
}

// The last block of the row finds the token: it reads the one chunk again that holds it.
template <bool FILTERS>
DEVICE int draw(const SampleArgs& args, Chunk* chunk, const TopP& top_p, RowChoice* row, Scratch* scratch) {
    u64 target = drawn_target(args, *chunk);
    u64 before;
    chunk->idx = crossing_chunk(args, *chunk, args.sums, target, &before);
    float values[SAMPLE_VALUES];
    read_logits(args, *chunk, values);
    process(args, *chunk, values);
    if constexpr (FILTERS) limit_ties(args, *chunk, values, top_p, &row->kept, scratch);
    return walk(*chunk, [&](int i) -> u64 { return drawn_weight(*chunk, *row, values, i); }, target - before, scratch);
}

// Greedy: the last block to get here knows the row.
DEVICE void finish_greedy(const SampleArgs& args, Chunk* chunk) {
    if (!leave_row(args, *chunk)) return;
    ChunkStats row = row_stats(args, *chunk);
    Status status = status_of(row.max, row.has_nan);
    if (threadIdx.x != 0) return;
    if (status == CHOSEN) {
        choose(args, *chunk, row.id, QUIET_NAN);
    } else {
        refuse(args, *chunk, status);
    }
}

// The smallest weight that min_p keeps: exact, since a weight is a whole number.
DEVICE u64 min_weight_of(float min_p) { return __double2ull_ru(__dmul_rn((double)min_p, (double)(1ull << WEIGHT_BITS))); }

// Grid: entries times chunks. FILTERS: with top_k, top_p and min_p.
template <bool FILTERS, class AnyScratch>
DEVICE void sample_chunk(const SampleArgs& launch, AnyScratch* scratch) {
    Chunk chunk;
    if (!find_chunk(launch, take_task(launch), &chunk)) {
        if (is_first_thread(chunk)) refuse(launch, chunk, SKIPPED);
        return;
    }
#if SAMPLE_OWN_RULES
    SampleArgs args = launch;
    take_own_rules(&args, chunk.slot);
#else
    const SampleArgs& args = launch;
#endif
    float values[SAMPLE_VALUES];
    ChunkStats stats = NO_STATS;
    read_logits(args, chunk, values);
    if (args.compute_logprob) add_raw_stats(values, &stats);
    process(args, chunk, values);
    add_stats(args, chunk, values, &stats);
    stats = block_best(stats, scratch);
    if (threadIdx.x == 0) args.stats[(i64)chunk.entry * args.num_chunks + chunk.idx] = stats;
    if (args.use_greedy && !args.compute_logprob) {
        finish_greedy(args, &chunk);
        return;
    }
    if constexpr (FILTERS) clear_histogram(args, chunk, 1);
    wait_for_row(args, &chunk);
    ChunkStats row = row_stats(args, chunk);
    Status status = status_of(row.max, row.has_nan);
    if (status == CHOSEN && args.compute_logprob) status = status_of(row.raw_max, 0);
    if (status != CHOSEN) {
        if (is_first_thread(chunk)) refuse(args, chunk, status);
        leave_row(args, chunk);
        return;
    }
    RowChoice choice = {row.max, row.raw_max, {0, 0, 0x7fffffff}, FILTERS ? min_weight_of(args.min_p) : 0};
    TopP top_p = {0, 0};
    if constexpr (FILTERS) {
        int round = 1;
        if (args.top_k > 0 && !args.use_greedy) choice.kept.least_key = select(args, &chunk, values, row.max, choice.kept, TOKENS, &round, scratch).key;
        if (args.top_p > 0.0f && !args.use_greedy) {
            top_p = find_top_p(args, &chunk, values, row.max, choice.kept, &round, scratch);
            limit_ties(args, chunk, values, top_p, &choice.kept, scratch);
        }
    }
    add_up<FILTERS>(args, chunk, values, choice, scratch);
    if (!leave_row(args, chunk)) return;
    int token = args.forced_tokens ? forced_token(args, chunk)
                : args.use_greedy  ? row.id
                                   : draw<FILTERS>(args, &chunk, top_p, &choice, scratch);
    if (token < 0) {
        if (threadIdx.x == 0) refuse(args, chunk, HAS_NO_TOKEN);
        return;
    }
    float logprob = QUIET_NAN;
    if (args.compute_logprob) logprob = log_softmax(args, chunk, token, row.raw_max, row_total(args, chunk, args.raw_sums));
    if (threadIdx.x == 0) choose(args, chunk, token, logprob);
}

extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, SAMPLE_BLOCKS_PER_SM) sample(SampleArgs args) {
#if SAMPLE_FILTERS
    __shared__ FilterScratch scratch;
#else
    __shared__ Scratch scratch;
#endif
    sample_chunk<SAMPLE_FILTERS>(args, &scratch);
}

#if !SAMPLE_FILTERS
#include "many.cuh"
#endif
