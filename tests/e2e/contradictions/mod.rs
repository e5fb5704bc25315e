//! Checkpoints that contradict themselves: the source that the original software uses wins, with a note, or the
//! conversion stops.

mod files;
mod gguf;
mod tokenizers;
mod weights;
