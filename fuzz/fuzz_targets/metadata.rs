//! The pickled `.metadata` of a torch_dist checkpoint.
#![no_main]

use nemo_format_fuzz::{Sandbox, open};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        sandbox.write("model_weights/metadata.json", br#"{"sharded_backend": "torch_dist", "sharded_backend_version": 1}"#);
        sandbox.write("model_weights/.metadata", bytes);
        // The items are read from the same bytes: what the pickle points to is then never quite a torch file.
        sandbox.write("model_weights/__0_0.distcp", bytes);
        open(sandbox.checkpoint());
    });
});
