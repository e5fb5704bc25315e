//! A `.nemo` archive: plain or gzip tar.
#![no_main]

use nemo_format_fuzz::{Sandbox, open};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        open(&sandbox.write("model.nemo", bytes));
    });
});
