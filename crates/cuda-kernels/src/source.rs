//! The kernels' sources as texts.

/// The text of one file.
macro_rules! source {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name))
    };
}

/// What a source includes: names and texts.
macro_rules! headers {
    ($($name:literal),*) => {
        &[$(($name, $crate::source::source!($name))),*]
    };
}

pub(crate) use {headers, source};
