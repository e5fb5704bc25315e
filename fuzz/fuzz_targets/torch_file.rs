//! A file of `torch.save`, zip or older, as `model_weights.ckpt`.
#![no_main]

use nemo_format_fuzz::{Sandbox, open};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        sandbox.write("model_weights.ckpt", bytes);
        open(sandbox.checkpoint());
    });
});
