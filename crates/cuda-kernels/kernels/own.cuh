#pragma once
// Rules of a row's own, in place of the launch's: the words of `row_words.rs` in the sampling crate.

#define ROW_RULE_WORDS 28

enum RowRuleWord {
    IS_OWN,
    SEED_LOW,
    SEED_HIGH,
    MIN_LENGTH,
    TOP_K,
    TOP_P,
    MIN_P,
    TEMPERATURE,
    REPETITION_PENALTY,
    USE_GREEDY,
    NUM_END_TOKENS,
    END_TOKENS = 12,
};

// All threads that work on a row call this with its slot; a row without rules of its own leaves the launch's.
DEVICE void take_own_rules(SampleArgs* args, int slot) {
    if (!args->row_rules) return;
    const int* own = args->row_rules + (i64)slot * ROW_RULE_WORDS;
    if (!own[IS_OWN]) return;
    args->seed = (u64)(u32)own[SEED_HIGH] << 32 | (u32)own[SEED_LOW];
    args->min_length = own[MIN_LENGTH];
    // Keeping all tokens is keeping no list of them.
    args->top_k = (u32)own[TOP_K] < (u32)args->vocab_size ? own[TOP_K] : 0;
    args->top_p = __int_as_float(own[TOP_P]);
    args->min_p = __int_as_float(own[MIN_P]);
    args->temperature = __int_as_float(own[TEMPERATURE]);
    args->repetition_penalty = __int_as_float(own[REPETITION_PENALTY]);
    args->use_greedy = own[USE_GREEDY];
    args->num_end_tokens = own[NUM_END_TOKENS];
    args->end_token_ids = own + END_TOKENS;
}
