//! `config.json` of a Hugging Face model, as far as a decoder's shape and rotary embedding need it.
//!
//! Both spellings are read: `torch_dtype` and `rope_scaling` of transformers 4, `dtype` and `rope_parameters` of 5.
//! Defaults for keys left out are those of `LlamaConfig`.

use std::path::Path;

use serde::Deserialize;

use super::read_json;
use crate::FormatError;

/// The keys of `config.json` that matter here. Unknown keys are tolerated, as transformers does.
#[derive(Debug, Deserialize)]
pub(crate) struct HfConfig {
    pub(crate) model_type: Option<String>,
    #[serde(default)]
    pub(crate) architectures: Option<Vec<String>>,
    #[serde(rename = "_name_or_path")]
    pub(crate) name_or_path: Option<String>,
    pub(crate) hidden_size: Option<u64>,
    pub(crate) intermediate_size: Option<u64>,
    pub(crate) num_hidden_layers: Option<u64>,
    pub(crate) num_attention_heads: Option<u64>,
    pub(crate) num_key_value_heads: Option<u64>,
    pub(crate) head_dim: Option<u64>,
    pub(crate) vocab_size: Option<u64>,
    pub(crate) max_position_embeddings: Option<u64>,
    pub(crate) initializer_range: Option<f64>,
    pub(crate) rms_norm_eps: Option<f64>,
    pub(crate) rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    pub(crate) tie_word_embeddings: Option<bool>,
    pub(crate) hidden_act: Option<String>,
    pub(crate) partial_rotary_factor: Option<f64>,
}

/// `rope_scaling` or `rope_parameters`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct HfRope {
    #[serde(alias = "type")]
    pub(crate) rope_type: Option<String>,
    pub(crate) factor: Option<f64>,
    pub(crate) low_freq_factor: Option<f64>,
    pub(crate) high_freq_factor: Option<f64>,
    pub(crate) original_max_position_embeddings: Option<f64>,
    pub(crate) rope_theta: Option<f64>,
}

impl HfConfig {
    /// Reads `config.json` of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self, FormatError> {
        let path = folder.join("config.json");
        let mut value = read_json(&path)?.ok_or_else(|| FormatError::MissingMember {
            path: folder.to_path_buf(),
            member: "config.json".into(),
        })?;
        // Old files state the kind of scaling twice, as `type` and `rope_type`.
        for key in ["rope_scaling", "rope_parameters"] {
            if let Some(rope) = value.get_mut(key).and_then(serde_json::Value::as_object_mut)
                && rope.contains_key("rope_type")
            {
                rope.remove("type");
            }
        }
        serde_json::from_value(value).map_err(|error| FormatError::BadConfig {
            file: path.display().to_string(),
            reason: error.to_string(),
        })
    }

    /// The rotary embedding's parameters, whichever key has them.
    pub(crate) fn rope(&self) -> HfRope {
        let mut rope = self.rope_parameters.clone().or_else(|| self.rope_scaling.clone()).unwrap_or_default();
        rope.rope_theta = rope.rope_theta.or(self.rope_theta);
        rope
    }
}
