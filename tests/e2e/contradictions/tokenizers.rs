//! Files of tokenizers that contradict each other.
