//! `--quantization fp8`: the linear layers of what is written become FP8.

use std::collections::BTreeSet;

use model_spec::{Part, parse_name};
use serde_json::{Value, json};

use super::rows::RowSource;
use crate::fp8::{Quantized, ScaleShape};
use crate::writer::FolderFile;
use crate::{ConvertNote, DType, FormatError, SourceNote, TensorSource};

const CONFIG: &str = "config.json";

/// Number formats of weights that can be written in place of the type of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// e4m3 with a float32 scale for each output of the linear layers of attention, MLPs and experts.
    Fp8,
}

/// Whether a tensor of a model is the weight of a linear layer that jobs hold in FP8.
fn is_linear(canonical: &str) -> bool {
    parse_name(canonical).is_some_and(|id| id.part == Part::Weight && id.module.is_layer_linear())
}

/// The tensors of a model with its linear layers in FP8, rounded to `dtype` before.
pub(super) fn quantized(source: Box<dyn TensorSource>, dtype: DType) -> Result<Quantized, FormatError> {
    Quantized::new(source, dtype, ScaleShape::Rows, is_linear)
}

/// The same of the tensors of a Hugging Face folder, and its `config.json` with what it has to say of it.
pub(super) fn quantized_folder(
    source: RowSource,
    dtype: DType,
    files: &mut [FolderFile],
) -> Result<Quantized, FormatError> {
    let linears: BTreeSet<String> = source.names_made_of(is_linear).map(str::to_owned).collect();
    let is_matrix = |name: &&str| source.meta(name).is_some_and(|meta| meta.shape.len() == 2);
    let others = source.names().filter(|name| !linears.contains(*name)).filter(is_matrix);
    // Tables are no linear layers of transformers.
    let modules =
        others.filter_map(|name| name.strip_suffix(".weight")).filter(|name| !name.contains("embed"));
    let ignored: Vec<&str> = modules.collect();
    for file in files.iter_mut().filter(|file| file.name == CONFIG) {
        let bad = |reason: String| FormatError::BadConfig { file: CONFIG.to_owned(), reason };
        let mut config: Value =
            serde_json::from_slice(&file.bytes).map_err(|error| bad(error.to_string()))?;
        config["quantization_config"] = compressed_tensors(&ignored);
        file.bytes = format!("{config:#}\n").into_bytes();
    }
    Quantized::new(Box::new(source), dtype, ScaleShape::Column, |name| linears.contains(name))
}

/// What the package `compressed-tensors` writes for a scale of each output, and one of each token that is found while it runs.
fn compressed_tensors(ignored: &[&str]) -> Value {
    let args = |strategy: &str, dynamic: bool| {
        json!({
            "actorder": null,
            "block_structure": null,
            "dynamic": dynamic,
            "group_size": null,
            "num_bits": 8,
            "observer": if dynamic { Value::Null } else { json!("minmax") },
            "observer_kwargs": {},
            "strategy": strategy,
            "symmetric": true,
            "type": "float",
        })
    };
    json!({
        "config_groups": {
            "group_0": {
                "input_activations": args("token", true),
                "output_activations": null,
                "targets": ["Linear"],
                "weights": args("channel", false),
            },
        },
        "format": "float-quantized",
        "global_compression_ratio": null,
        "ignore": ignored,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    })
}

/// What to say of the result in place of the notes on weights that are FP8 in the input.
pub(super) fn put_note(notes: &mut Vec<ConvertNote>, source: &Quantized) {
    let mut stored = None;
    notes.retain(|note| match note {
        ConvertNote::Source(SourceNote::Dequantized { num_tensors, recipe, .. }) => {
            stored = Some((*num_tensors, recipe.clone()));
            false
        }
        ConvertNote::NoLongerFp8 { .. } => false,
        _ => true,
    });
    let [num_kept, num_made] = source.num_kept_and_made();
    let again =
        stored.filter(|(num_stored, _)| num_made > 0 && *num_stored > num_kept).map(|(_, recipe)| recipe);
    notes.push(ConvertNote::InFp8 { num_kept, num_made, again });
}
