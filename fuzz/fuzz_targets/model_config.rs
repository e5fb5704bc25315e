//! `model_config.yaml`, beside weights that are there.
#![no_main]

use nemo_format_fuzz::{Sandbox, open};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        sandbox.write("model_config.yaml", bytes);
        sandbox.write("model_weights/metadata.json", br#"{"sharded_backend": "zarr", "sharded_backend_version": 1}"#);
        open(sandbox.folder());
    });
});
