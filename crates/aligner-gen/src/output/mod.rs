//! What a run leaves on disk: `generations/generations.jsonl`, its manifest, and how a run continues one.
//!
//! It knows nothing of models or tokenizers: texts come in ready. Rules: `docs/guide.rst`, the end of "Running Generation in Aligner".

mod batch;
mod check;
mod counted;
mod disk;
mod error;
pub(crate) mod identity;
mod legacy;
mod lock;
mod manifest;
mod parquet;
pub(crate) mod python_json;
mod record;
mod resume;
mod whole_file;
mod writer;

#[cfg(test)]
mod faults;

#[cfg(test)]
pub(crate) use check::Verdict;
pub(crate) use check::{Answer, Checked, Question};
pub(crate) use counted::{pass_at_k_of, read_pass_at_k};
pub(crate) use error::OutputError;
pub(crate) use identity::Identity;
pub(crate) use manifest::{Manifest, write_atomically};
pub(crate) use parquet::copy_as_parquet;
pub(crate) use record::{
    CleanResponse, CompletedStep, LineLayout, OutputField, ResponseOutput, SampleOutput, TopLogprob,
};
pub(crate) use resume::{ExistingOutput, OutputFolder, ResumePoint, SPOOL};
pub(crate) use whole_file::{WholeFile, is_same_file};
pub(crate) use writer::JsonlSink;

/// Where finished steps go.
pub(crate) trait GenerationSink {
    /// Makes one step durable; on an error the earlier steps stay as they are.
    fn commit(&mut self, step: &CompletedStep) -> Result<(), OutputError>;
}
