//! A GGUF file: its metadata, and its tensors unpacked.
#![no_main]

use nemo_format::{DType, GgufFile, GgufSource};
use nemo_format_fuzz::{Sandbox, read_all};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        let file = GgufFile::open(&sandbox.write("model.gguf", bytes));
        if let Ok(source) = file.and_then(|file| GgufSource::new(file, DType::F32)) {
            read_all(&source);
        }
    });
});
