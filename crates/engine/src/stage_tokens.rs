//! The tokens of pipeline stages. They are drawn where the logits are: on the ranks of the last stage, each of which draws
//! the same; the other stages are told them.

use model_core::LostRank;
use sampling::{RowState, SampledToken, SamplingError, TokenSampler};
use tch::Tensor;

/// The way of tokens from the last pipeline stage to the ranks of the others.
pub trait TokenPath: Send {
    /// Sends tokens to the ranks of the other stages with this rank's place in its own.
    ///
    /// # Errors
    /// When one is lost.
    fn send(&mut self, message: &[u8]) -> Result<(), LostRank>;

    /// What the last stage sends.
    ///
    /// # Errors
    /// When its rank is lost.
    fn receive(&mut self) -> Result<Vec<u8>, LostRank>;
}

/// What the last stage says of the tokens of some rows: them, or why there are none.
type Drawn = Result<Vec<SampledToken>, String>;

/// The sampler of the last pipeline stage.
pub struct SendingSampler {
    /// Draws.
    pub own: Box<dyn TokenSampler>,
    /// To the other stages.
    pub path: Box<dyn TokenPath>,
}

impl TokenSampler for SendingSampler {
    fn sample(&mut self, logits: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let drawn = self.own.sample(logits, rows);
        let told: Drawn = match &drawn {
            Ok(tokens) => Ok(tokens.clone()),
            Err(error) => Err(error.to_string()),
        };
        let message =
            serde_json::to_vec(&told).map_err(|error| SamplingError::OtherRank(error.to_string()))?;
        self.path.send(&message).map_err(|lost| SamplingError::OtherRank(lost.to_string()))?;
        drawn
    }

    fn is_greedy(&self) -> bool {
        self.own.is_greedy()
    }
}

/// The sampler of all stages but the last, which have no logits.
pub struct ReceivingSampler {
    /// From the last stage.
    pub path: Box<dyn TokenPath>,
    /// Whether that one is greedy.
    pub is_greedy: bool,
}

impl TokenSampler for ReceivingSampler {
    fn sample(&mut self, _: &Tensor, rows: &[RowState<'_>]) -> Result<Vec<SampledToken>, SamplingError> {
        let message = self.path.receive().map_err(|lost| SamplingError::OtherRank(lost.to_string()))?;
        let drawn: Drawn =
            serde_json::from_slice(&message).map_err(|error| SamplingError::OtherRank(error.to_string()))?;
        let tokens = drawn.map_err(SamplingError::OtherRank)?;
        match tokens.len() == rows.len() {
            true => Ok(tokens),
            false => Err(SamplingError::OtherRank(format!(
                "the last pipeline stage drew {} tokens for {} rows: all ranks must run the same program",
                tokens.len(),
                rows.len()
            ))),
        }
    }

    fn is_greedy(&self) -> bool {
        self.is_greedy
    }
}
