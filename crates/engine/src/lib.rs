//! Requests in, completions out: in-flight batching, admission, KV blocks, prompt sharing.
//!
//! The scheduler itself holds no tensor. It knows no tokenizers, files or ranks.
