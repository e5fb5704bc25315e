//! The project's own tasks. Builds without libtorch.

fn main() {}
