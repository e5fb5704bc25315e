//! One safetensors file.
#![no_main]

use nemo_format::SafetensorsSource;
use nemo_format_fuzz::{Sandbox, read_all};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        if let Ok(source) = SafetensorsSource::open_file(&sandbox.write("model.safetensors", bytes)) {
            read_all(&source);
        }
    });
});
