//! What a folder says about its quantisation, as far as FP8 weights are concerned.

use std::path::Path;

use serde_json::{Map, Value};

use super::super::read_json;
use crate::FormatError;
use crate::huggingface::HfConfig;
use crate::huggingface::gpt_oss::is_mxfp4;

/// ModelOpt writes it beside `config.json`.
const MODELOPT_FILE: &str = "hf_quant_config.json";
const HINT: &str = "convert the original bf16 or fp16 model";

/// How weights in FP8 are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    /// As the folder calls it.
    pub(super) name: &'static str,
    /// Rows and columns that share a scale; else a tensor or a row does.
    pub(super) block: Option<[u64; 2]>,
    is_inverse: bool,
}

impl Recipe {
    /// What the tensor of scales is called behind the stem of its weight.
    pub(super) fn scale_suffix(&self) -> &'static str {
        if self.is_inverse { ".weight_scale_inv" } else { ".weight_scale" }
    }

    /// The recipe of a folder, if it names one.
    ///
    /// # Errors
    /// For a recipe that is not read.
    pub(super) fn find(config: &HfConfig, folder: &Path) -> Result<Option<Self>, FormatError> {
        // Not FP8: experts are unpacked where they are told apart.
        if is_mxfp4(config)? {
            return Ok(None);
        }
        for key in ["quantization_config", "compression_config", "quantization"] {
            if let Some(value) = config.values_of(&[key]).get(key) {
                let Value::Object(values) = value else {
                    return Err(config.bad(format!("the key `{key}` is `{value}`, expected a dictionary")));
                };
                return Said { file: config.file().to_owned(), values }.recipe().map(Some);
            }
        }
        let path = folder.join(MODELOPT_FILE);
        let Some(stated) = read_json(&path)? else { return Ok(None) };
        let file = path.display().to_string();
        let Some(Value::Object(values)) = stated.get("quantization") else {
            return Err(FormatError::BadConfig {
                file,
                reason: "it has no dictionary `quantization`".to_owned(),
            });
        };
        Said { file, values }.modelopt().map(Some)
    }
}

/// A dictionary of a file.
struct Said<'a> {
    file: String,
    values: &'a Map<String, Value>,
}

impl Said<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key).and_then(Value::as_str)
    }

    /// Whether a key has a value that says something.
    fn states(&self, key: &str) -> bool {
        match self.values.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Object(inner)) => !inner.is_empty(),
            Some(Value::Array(inner)) => !inner.is_empty(),
            Some(_) => true,
        }
    }

    fn unsupported(&self, what: &str) -> FormatError {
        FormatError::Unsupported { what: format!("{what} in `{}`", self.file), hint: HINT.to_owned() }
    }

    fn recipe(&self) -> Result<Recipe, FormatError> {
        match self.text("quant_method") {
            Some("compressed-tensors") => self.compressed_tensors(),
            Some("modelopt") => self.modelopt(),
            Some("fbgemm_fp8") => Ok(Recipe { name: "fbgemm_fp8", block: None, is_inverse: false }),
            Some("fp8") => self.fp8(),
            Some(other) => Err(self.unsupported(&format!("weights quantised by `{other}`"))),
            None => Err(self.unsupported("quantised weights")),
        }
    }

    fn modelopt(&self) -> Result<Recipe, FormatError> {
        match self.text("quant_algo") {
            Some("FP8") => Ok(Recipe { name: "modelopt", block: None, is_inverse: false }),
            other => {
                Err(self
                    .unsupported(&format!("weights quantised by modelopt to `{}`", other.unwrap_or("null"))))
            }
        }
    }

    fn fp8(&self) -> Result<Recipe, FormatError> {
        if let Some(format) = self.text("fmt").filter(|format| *format != "e4m3") {
            return Err(self.unsupported(&format!("FP8 weights of format `{format}`")));
        }
        let block = match self.values.get("weight_block_size") {
            None | Some(Value::Null) => None,
            Some(sizes) => Some(self.block("weight_block_size", sizes)?),
        };
        Ok(Recipe { name: "fp8", block, is_inverse: block.is_some() })
    }

    fn block(&self, key: &str, sizes: &Value) -> Result<[u64; 2], FormatError> {
        let read = sizes.as_array().and_then(|sizes| match sizes.as_slice() {
            [height, width] => Some([height.as_u64()?, width.as_u64()?]),
            _ => None,
        });
        read.filter(|sizes| sizes.iter().all(|&size| size > 0)).ok_or_else(|| FormatError::BadConfig {
            file: self.file.clone(),
            reason: format!("the key `{key}` is `{sizes}`, expected two whole numbers above 0"),
        })
    }

    fn compressed_tensors(&self) -> Result<Recipe, FormatError> {
        let format = self.text("format").unwrap_or("dense");
        if !matches!(format, "float-quantized" | "naive-quantized") {
            return Err(self.unsupported(&format!("compressed-tensors of format `{format}`")));
        }
        for key in ["sparsity_config", "transform_config"] {
            if self.states(key)
                && self.values.get(key).and_then(|inner| inner.get("format")) != Some(&"dense".into())
            {
                return Err(self.unsupported(&format!("compressed-tensors with `{key}`")));
            }
        }
        let groups = self.values.get("config_groups").and_then(Value::as_object);
        let mut recipe = None;
        for group in groups.into_iter().flat_map(Map::values) {
            let Some(weights) = group.get("weights").and_then(Value::as_object) else { continue };
            let weights = Said { file: self.file.clone(), values: weights };
            let found = weights.compressed_weights()?;
            if recipe.is_some_and(|earlier| earlier != found) {
                return Err(self.unsupported("compressed-tensors with several kinds of scales"));
            }
            recipe = Some(found);
        }
        recipe.ok_or_else(|| self.unsupported("compressed-tensors without `config_groups` of weights"))
    }

    fn compressed_weights(&self) -> Result<Recipe, FormatError> {
        let bits = self.values.get("num_bits").and_then(Value::as_u64).unwrap_or(8);
        let kind = self.text("type").unwrap_or("int");
        if bits != 8 || kind != "float" {
            return Err(
                self.unsupported(&format!("compressed-tensors with weights of {bits} bits, type `{kind}`,"))
            );
        }
        if self.values.get("symmetric") == Some(&Value::Bool(false)) {
            return Err(self.unsupported("compressed-tensors with weights that are not symmetric"));
        }
        let name = "compressed-tensors";
        match self.text("strategy") {
            None | Some("tensor" | "channel") => Ok(Recipe { name, block: None, is_inverse: false }),
            Some("block") => {
                let sizes = self.values.get("block_structure").unwrap_or(&Value::Null);
                let block = Some(self.block("block_structure", sizes)?);
                Ok(Recipe { name, block, is_inverse: false })
            }
            Some(other) => {
                Err(self.unsupported(&format!("compressed-tensors with weights of strategy `{other}`")))
            }
        }
    }
}
