//! Minimum length: no end token may be chosen before it.
//!
//! NeMo holds back EOS alone; here every token that ends a response is held back.

/// Masks `end_token_ids` in `row`, `[vocab_size]`.
pub(crate) fn apply(row: &mut [f32], end_token_ids: &[u32]) {
    for &id in end_token_ids {
        if let Some(logit) = row.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn masks_all_end_tokens_and_ignores_ids_past_the_row() {
        let mut row = [1.0, 2.0, 3.0];
        super::apply(&mut row, &[0, 2, 9]);
        assert_eq!(row, [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY]);
    }
}
