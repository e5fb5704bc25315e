//! Checkpoints that contradict themselves: what counts is what the original software takes, and it is said, or the
//! conversion stops.

mod files;
mod gguf;
mod tokenizers;
mod weights;
