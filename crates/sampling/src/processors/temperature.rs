//! Temperature: divides the logits.

/// Divides `row`, `[vocab_size]`, by `temperature`, which is positive and finite.
pub(crate) fn apply(row: &mut [f32], temperature: f32) {
    for logit in row {
        *logit /= temperature;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn divides() {
        let mut row = [1.0, -3.0, f32::NEG_INFINITY];
        super::apply(&mut row, 2.0);
        assert_eq!(row, [0.5, -1.5, f32::NEG_INFINITY]);
    }
}
