//! The commands beside the main job.

pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod tokenize;
