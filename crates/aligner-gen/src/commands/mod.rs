//! The commands beside the main job.

pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod quality;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod tokenize;
