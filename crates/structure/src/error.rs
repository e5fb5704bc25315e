//! What can be wrong with a structure.

/// Why a structure cannot be used, or a response cannot go on in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StructureError {
    /// It is not written as structures are.
    #[error("{reason}")]
    Spec {
        /// What is wrong, in a sentence.
        reason: String,
    },
    /// It is written right and nothing can be made of it.
    #[error("{kind} cannot be used: {reason}")]
    Compile {
        /// What it is.
        kind: &'static str,
        /// What llguidance says.
        reason: String,
    },
    /// A vocabulary that no automaton can be made for.
    #[error("the tokenizer's {num_tokens} tokens cannot be used for structures: {reason}")]
    Vocabulary {
        /// How many tokens it has.
        num_tokens: usize,
        /// What llguidance says.
        reason: String,
    },
    /// Not known before the response has come here.
    #[error("the structure cannot be followed: {reason}")]
    Follow {
        /// What llguidance says.
        reason: String,
    },
}

/// What a message of llguidance says; the rest is its inner state. A regular expression that cannot be read stands in it over
/// several lines, with what is wrong in the last one.
pub(crate) fn first_line(text: &str) -> String {
    let of_regex = || text.lines().rev().find_map(|line| line.trim().strip_prefix("error: "));
    let line = of_regex().or_else(|| text.trim().lines().next()).unwrap_or_default();
    line.trim_end_matches('.').chars().take(400).collect()
}
