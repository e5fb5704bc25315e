//! Every configuration key, once: whether something reads it, and whether another value may change texts.
//!
//! What keys exist, which the checkpoint may default, which are dropped and where an unknown one is a slip follows from
//! this table. Tests hold it against the built-in defaults and their comments, against the types that are read, against
//! the documentation, and against what a run is resumed and joined by.

mod model;
mod table;

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Something reads it, and another value may change texts: it is part of a run's identity.
    Read,
    /// Something reads it, and no value of it changes a text.
    Neutral,
    /// Something reads it to refuse every value that would have a meaning.
    Refused,
    /// Of the training software: accepted, so that its command lines work, and without effect.
    Ignored,
    /// Of a checkpoint: says what wrote it, not what it is, and is left out.
    Dropped,
    /// A block that only this program reads: a key in it that has no row is a slip.
    Closed,
}

/// A key, or a block with all that is in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub(crate) path: &'static str,
    pub(crate) status: Status,
    /// What the identity of a run calls it, where it is [`Status::Read`].
    #[cfg_attr(not(test), expect(dead_code, reason = "a test holds the identity against it"))]
    pub(crate) identity: Option<&'static str>,
    /// The checkpoint's value is a better default than the built-in one.
    pub(crate) is_checkpoints: bool,
}

impl Key {
    const fn new(path: &'static str, status: Status) -> Self {
        Self { path, status, identity: None, is_checkpoints: false }
    }

    const fn read(path: &'static str) -> Self {
        Self::read_as(path, path)
    }

    /// Read, and compared as a part of something else.
    const fn read_as(path: &'static str, identity: &'static str) -> Self {
        Self { identity: Some(identity), ..Self::new(path, Status::Read) }
    }

    const fn neutral(path: &'static str) -> Self {
        Self::new(path, Status::Neutral)
    }

    const fn refused(path: &'static str) -> Self {
        Self::new(path, Status::Refused)
    }

    const fn ignored(path: &'static str) -> Self {
        Self::new(path, Status::Ignored)
    }

    const fn dropped(path: &'static str) -> Self {
        Self::new(path, Status::Dropped)
    }

    const fn closed(path: &'static str) -> Self {
        Self::new(path, Status::Closed)
    }

    const fn or_checkpoints(self) -> Self {
        Self { is_checkpoints: true, ..self }
    }

    /// Whether the row speaks of this key.
    fn covers(&self, key: &str) -> bool {
        key == self.path || is_below(key, self.path)
    }
}

/// All rows.
pub(crate) fn all() -> impl Iterator<Item = &'static Key> {
    table::KEYS.iter().chain(&model::KEYS)
}

/// The row of a key: the one that names it, or the block that it is in.
pub(crate) fn find(key: &str) -> Option<&'static Key> {
    all().find(|row| row.status != Status::Closed && row.covers(key))
}

/// Whether only this program reads the block that a key is in.
pub(crate) fn is_in_closed_block(key: &str) -> bool {
    all().any(|row| row.status == Status::Closed && is_below(key, row.path))
}

/// Keys of the checkpoint that say what wrote it, as they stand in its own file.
pub(crate) fn dropped_from_checkpoints() -> impl Iterator<Item = &'static str> {
    let dropped = all().filter(|row| row.status == Status::Dropped);
    dropped.filter_map(|row| row.path.strip_prefix("model."))
}

/// Whether a key is inside of a block.
pub(crate) fn is_below(key: &str, block: &str) -> bool {
    key.strip_prefix(block).is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests;
