//! The description of a zarr array, and a chunk.
#![no_main]

use nemo_format_fuzz::{Sandbox, open};

thread_local! {
    static SANDBOX: Sandbox = Sandbox::default();
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SANDBOX.with(|sandbox| {
        const ARRAY: &str = "model_weights/model.embedding.word_embeddings.weight";
        sandbox.write("model_weights/metadata.json", br#"{"sharded_backend": "zarr", "sharded_backend_version": 1}"#);
        sandbox.write(&format!("{ARRAY}/.zarray"), bytes);
        sandbox.write(&format!("{ARRAY}/0.0"), bytes);
        open(sandbox.checkpoint());
    });
});
