//! Many ranks: which rank this process is, starting the others, and the queue through which they share the samples.
//!
//! Data parallel generation needs no collective: ranks lease samples from rank 0 and give back tokens.

pub(crate) mod cores;
pub(crate) mod hostlist;
pub(crate) mod model_group;
pub(crate) mod own_ranks;
pub(crate) mod queue;
pub(crate) mod ranks;
pub(crate) mod spawn;
pub(crate) mod topology;
