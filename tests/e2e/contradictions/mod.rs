//! Two sources of a checkpoint that contradict each other: the one that transformers or NeMo uses is taken and named, or
//! the conversion stops.

mod tokenizers;
mod weights;
