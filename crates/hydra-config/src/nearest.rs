//! The known key that looks most like an unknown one.

/// The candidate most like `key`, if any is near enough to be what was meant.
pub(crate) fn nearest_of<'a>(key: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    candidates
        .map(|candidate| (score(key, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate.to_owned())
}

/// A slip in the last part of the right block is likelier than a right name in the wrong block, and that likelier than
/// slips anywhere.
fn score(key: &str, candidate: &str) -> f64 {
    let split = |path: &str| {
        path.rsplit_once('.')
            .map_or((String::new(), path.to_owned()), |(parent, last)| (parent.to_owned(), last.to_owned()))
    };
    let ((parent, last), (candidate_parent, candidate_last)) = (split(key), split(candidate));
    if parent == candidate_parent {
        strsim::jaro_winkler(&last, &candidate_last)
    } else if last == candidate_last {
        0.75 + 0.2 * strsim::jaro_winkler(&parent, &candidate_parent)
    } else {
        strsim::jaro_winkler(key, candidate) - 0.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_slip_is_named() {
        let known = ["model.seed", "model.data.train_ds.seed", "trainer.devices", "model.generation.top_k"];
        for (key, expect) in [
            ("modle.seed", Some("model.seed")),
            ("model.sead", Some("model.seed")),
            ("trainer.device", Some("trainer.devices")),
            ("model.top_k", Some("model.generation.top_k")),
            ("zzz", None),
        ] {
            assert_eq!(nearest_of(key, known.into_iter()).as_deref(), expect, "{key}");
        }
    }
}
