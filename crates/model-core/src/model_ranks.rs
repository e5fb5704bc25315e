//! What a model needs of the other ranks that compute it.

/// How the inputs of `linear_proj` and `linear_fc2` are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// In one chain, which is the fastest where one rank has all of them.
    #[default]
    Chain,
    /// In a tree over pieces, whose bits do not depend on how many ranks share them.
    Tree,
}

/// The other ranks are not there any more, or do not answer: a sentence that names one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LostRank(pub String);

/// Tells whether the other ranks of a model came to all that was computed so far.
pub type RankCheck = Box<dyn Fn() -> Result<(), LostRank> + Send>;

/// What GPUs that compute one model exchange through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exchange {
    /// Each other's memory; where they do not reach that, the host's; between machines, messages.
    #[default]
    Auto,
    /// The host's memory, as where they do not reach each other's. For tests.
    HostMemory,
    /// The same for sums, and messages between pipeline stages, as between machines. For tests.
    Messages,
}

/// The way to the other ranks of a model. All of them make the same calls in the same order.
pub trait ModelRanks: Send {
    /// What every tensor-parallel rank of this stage gives, in their order; `mine` is this rank's.
    ///
    /// # Errors
    /// When a rank is lost.
    fn all_gather(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>, LostRank>;

    /// Sends to the rank of the next pipeline stage with this rank's place in it.
    ///
    /// # Errors
    /// When that rank is lost.
    fn send_to_next_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank>;

    /// What the previous stage sends.
    ///
    /// # Errors
    /// When its rank is lost.
    fn receive_from_previous_stage(&mut self) -> Result<Vec<u8>, LostRank>;

    /// Sends the other way, while a model is loaded.
    ///
    /// # Errors
    /// When the rank is lost.
    fn send_to_previous_stage(&mut self, bytes: &[u8]) -> Result<(), LostRank>;

    /// What the next stage sends, while a model is loaded.
    ///
    /// # Errors
    /// When its rank is lost.
    fn receive_from_next_stage(&mut self) -> Result<Vec<u8>, LostRank>;
}
