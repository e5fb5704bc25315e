//! The queue of samples: rank 0 deals them out and takes the answers, every rank computes, rank 0 among them.
//!
//! A rank talks to rank 0 through a [`Mailbox`]. That of rank 0 itself is two channels; the others' go through the store
//! ([`link`]). With one rank there is no store, and everything else is the same.

pub(crate) mod dispatch;
pub(crate) mod lease;
pub(crate) mod link;
pub(crate) mod message;
pub(crate) mod order;
pub(crate) mod worker;

use std::sync::mpsc::Receiver;

use message::{FromZero, Stop, ToZero};

/// What a rank hears: a message, or why there will be none any more.
pub(crate) type Heard = Result<FromZero, String>;

/// A rank's line to rank 0.
pub(crate) struct Mailbox {
    /// A line that is lost is noticed by who listens.
    pub(crate) say: Box<dyn Fn(ToZero)>,
    pub(crate) from_zero: Receiver<Heard>,
}

impl Mailbox {
    /// Why the job has ended, as far as it is known before this rank computes anything.
    pub(crate) fn ended(&self) -> Option<String> {
        match self.from_zero.try_recv() {
            Ok(Ok(FromZero::Stop(Stop::Failed { message }))) => {
                Some(format!("rank 0 ended the job: {message}"))
            }
            Ok(Ok(FromZero::Stop(Stop::Early { reason, .. }))) => {
                Some(format!("rank 0 stopped the job: {reason}"))
            }
            Ok(Ok(FromZero::Stop(Stop::Finished))) => Some("rank 0 has finished the job".to_owned()),
            Ok(Err(reason)) => {
                Some(format!("rank 0 is gone ({})", reason.lines().next().unwrap_or_default()))
            }
            Ok(Ok(FromZero::Welcome { .. } | FromZero::Grant(_) | FromZero::Cancel(_))) | Err(_) => None,
        }
    }
}
