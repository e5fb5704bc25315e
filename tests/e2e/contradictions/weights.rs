//! Contradictions among weights and their configuration.
