//! Which steps a GPU computes: prompts, or one token more of responses and drafts behind it.

use std::collections::HashSet;

use crate::{
    EngineError,
    plan::{NewPrompt, RowId, RowSpan, SeqId},
};

const NAME: &str = "GPU";
pub(super) const PROMPTS_AND_RESPONSES: &str = "prompts and responses in one step";

/// A response that goes on by a token, or by several.
pub(super) struct DecodeRow<'a> {
    pub(super) id: SeqId,
    /// Tokens in the cache.
    pub(super) context_len: u32,
    /// Tokens that may follow the newest.
    pub(super) drafts: &'a [u32],
}

/// The steps that a GPU computes.
pub(super) enum StepKind<'a> {
    /// Prompts, whole or in parts.
    Prefill,
    /// These responses go on.
    Decode(Vec<DecodeRow<'a>>),
}

impl<'a> StepKind<'a> {
    /// # Errors
    /// For every other step.
    pub(super) fn of(
        prompts: &[NewPrompt],
        rows: &[RowSpan],
        drafts: &'a [u32],
    ) -> Result<Self, EngineError> {
        let num_prompts = rows.iter().filter_map(|row| row.id.prompt()).count();
        if rows.is_empty() {
            return Err(unsupported("a step without rows"));
        }
        let with_row: HashSet<u64> = rows.iter().filter_map(|row| row.id.prompt()).collect();
        if !prompts.iter().all(|prompt| with_row.contains(&prompt.group_idx)) {
            return Err(unsupported("a prompt that is new before its step"));
        }
        if num_prompts == rows.len() && drafts.is_empty() {
            return Ok(Self::Prefill);
        }
        if num_prompts > 0 {
            return Err(unsupported(PROMPTS_AND_RESPONSES));
        }
        let mut drafts = drafts;
        let decoded = rows.iter().filter_map(|row| match *row {
            RowSpan { id: RowId::Response(id), context_len, query_len, draws } if draws == query_len => {
                let (of_row, left) = drafts.split_at_checked((query_len as usize).checked_sub(1)?)?;
                drafts = left;
                Some(DecodeRow { id, context_len, drafts: of_row })
            }
            _ => None,
        });
        let decoded: Vec<_> = decoded.collect();
        match decoded.len() == rows.len() && drafts.is_empty() {
            true => Ok(Self::Decode(decoded)),
            false => Err(unsupported("a response with more or fewer draws or drafts than tokens")),
        }
    }
}

pub(super) fn unsupported(what: &'static str) -> EngineError {
    EngineError::UnsupportedStep { executor: NAME, what }
}
