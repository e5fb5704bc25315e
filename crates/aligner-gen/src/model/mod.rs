//! A model for any command: its checkpoint, the device and the memory it gets, and the engine on top.

pub(crate) mod checkpoint;
pub(crate) mod device;
pub(crate) mod end_tokens;
pub(crate) mod host_memory;
pub(crate) mod known_texts;
pub(crate) mod loading;
pub(crate) mod memory;
pub(crate) mod open_engine;
pub(crate) mod structures;
