//! Parts of a layer that are the same for every backend.

pub(crate) mod rotary;
