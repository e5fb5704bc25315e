//! Failures and their exit codes: every error that leaves the program passes through here.
//!
//! What the errors of the model, the engine, the sampler and the kernels mean stands in `compute`.

use std::process::ExitCode;

use anyhow::anyhow;

mod compute;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Done, or the time limit was reached.
    Done,
    /// Failed while running.
    Failed,
    /// Usage or configuration.
    Usage,
    /// Input data.
    Data,
    /// Checkpoint or tokenizer.
    Checkpoint,
    /// Device or memory.
    Device,
    /// Stopped by this signal with state saved.
    Signal(i32),
}

impl ExitStatus {
    /// The exit code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Data => 3,
            Self::Checkpoint => 4,
            Self::Device => 5,
            // The shells' convention.
            Self::Signal(signal) => u8::try_from(128 + signal).unwrap_or(1),
        }
    }

    /// What an exit code of this program means.
    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            0 => Self::Done,
            2 => Self::Usage,
            3 => Self::Data,
            4 => Self::Checkpoint,
            5 => Self::Device,
            129.. => Self::Signal(i32::from(code) - 128),
            _ => Self::Failed,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}

/// An error and the exit code that it means.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    pub(crate) error: anyhow::Error,
}

impl Failure {
    /// A mistake in the command line or the configuration.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self { status: ExitStatus::Usage, error: anyhow!("{message}") }
    }

    /// What a rank ends with because another one has failed or is gone.
    pub(crate) fn of_another_rank(status: ExitStatus, message: impl std::fmt::Display) -> Self {
        Self { status, error: OtherRank(message.to_string()).into() }
    }

    /// Whether this rank ended because of another one.
    pub(crate) fn is_of_another_rank(&self) -> bool {
        self.error.chain().any(|error| error.is::<OtherRank>() || compute::is_lost_rank(error))
    }

    /// The error and its causes in one sentence.
    pub(crate) fn sentence(&self) -> String {
        format!("{:#}", self.error)
    }
}

/// Another rank has failed or is gone, which this says of it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OtherRank(String);

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { status: ExitStatus::Failed, error }
    }
}

/// Attaches the exit code to an error that could mean several.
pub(crate) trait ResultExt<T> {
    fn exit_with(self, status: ExitStatus) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> ResultExt<T> for Result<T, E> {
    fn exit_with(self, status: ExitStatus) -> Result<T, Failure> {
        self.map_err(|error| Failure { status, error: error.into() })
    }
}

impl From<model_spec::BadPrecision> for Failure {
    fn from(error: model_spec::BadPrecision) -> Self {
        Self { status: ExitStatus::Usage, error: error.into() }
    }
}

impl From<convert_cli::ConvertError> for Failure {
    fn from(error: convert_cli::ConvertError) -> Self {
        let status = match error {
            convert_cli::ConvertError::Format { .. } => ExitStatus::Checkpoint,
            convert_cli::ConvertError::Print(_) => ExitStatus::Failed,
        };
        Self { status, error: error.into() }
    }
}

impl From<nemo_format::FormatError> for Failure {
    fn from(error: nemo_format::FormatError) -> Self {
        Self { status: ExitStatus::Checkpoint, error: error.into() }
    }
}

impl From<data::DataError> for Failure {
    fn from(error: data::DataError) -> Self {
        use data::DataError;
        let status = match &error {
            DataError::ZeroBatchSetting { .. }
            | DataError::IndivisibleBatch { .. }
            | DataError::LimitTooLarge { .. }
            | DataError::MaxEpochs { .. }
            | DataError::LimitedToNone { .. }
            | DataError::BadDate { .. }
            | DataError::NoTemplateDate { .. }
            | DataError::NoSuchColumn { .. }
            | DataError::NoBosToken
            | DataError::TooManyRecords { .. } => ExitStatus::Usage,
            DataError::UnusableChatTemplate { .. } => ExitStatus::Checkpoint,
            _ => ExitStatus::Data,
        };
        Self { status, error: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_has_the_causes() {
        let source = std::io::Error::from_raw_os_error(28);
        let error = crate::output::OutputError::Io { action: "write", path: "/out/x".into(), source };
        let failure = Failure::from(error);
        assert_eq!(failure.status, ExitStatus::Failed);
        assert_eq!(failure.sentence(), "cannot write `/out/x`: No space left on device (os error 28)");
    }

    #[test]
    fn what_another_rank_is_to_blame_for_is_known() {
        let lost = || model_core::ModelError::from(model_core::LostRank("rank 1 is lost".to_owned()));
        let other = Failure::of_another_rank(ExitStatus::Device, "rank 1 failed");
        assert_eq!((other.status, other.sentence().as_str()), (ExitStatus::Device, "rank 1 failed"));
        let context = anyhow::Error::from(engine::EngineError::from(lost())).context("while computing");
        let drawn = sampling::SamplingError::OtherRank(String::new());
        let all = [other, lost().into(), context.into(), drawn.into(), Failure::usage("x")];
        assert_eq!(all.map(|failure| failure.is_of_another_rank()), [true, true, true, true, false]);
    }

    #[test]
    fn signals_follow_the_shells() {
        assert_eq!(ExitCode::from(ExitStatus::Signal(2)), ExitCode::from(130));
        assert_eq!(ExitCode::from(ExitStatus::Signal(15)), ExitCode::from(143));
        for code in [0, 1, 2, 3, 4, 5, 130, 143] {
            assert_eq!(ExitStatus::from_code(code).code(), code);
        }
    }
}
