//! End-to-end tests of the real binary: what a user types, and what is on disk and on the screen afterwards.

mod commands;
mod complete;
mod errors;
mod interruption;
mod support;
