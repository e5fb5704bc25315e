//! Which linear layers have a bias: what `config.json` says, held against what the weights have.
//!
//! transformers leaves a bias out that the configuration does not announce, and puts zeros where the weights lack one. The
//! first is refused here, since the numbers were surely meant to count; the second is done and said.

use super::arch::{Biases, ModelArch};
use super::family::{Announced, Family};
use crate::huggingface::HfConfig;
use crate::names::NameMap;
use crate::{FormatError, SourceNote, TensorSource};

/// What the configuration says of each part of a layer.
pub(super) struct StatedBiases {
    qkv: Stated,
    proj: Stated,
    mlp: Stated,
}

/// Whether there are biases, and which key decides it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stated {
    has_bias: bool,
    key: Option<&'static str>,
}

const NEVER: Stated = Stated { has_bias: false, key: None };

impl StatedBiases {
    pub(super) fn read(config: &HfConfig, family: Family) -> Result<Self, FormatError> {
        let stated = |announced| {
            Ok::<_, FormatError>(match announced {
                Announced::Always | Announced::OfQkv => Stated { has_bias: true, key: None },
                Announced::Never => NEVER,
                Announced::ByKey(key, default) | Announced::OfQkvByKey(key, default) => {
                    Stated { has_bias: config.bool(key)?.unwrap_or(default), key: Some(key) }
                }
            })
        };
        let facts = family.facts();
        let qkv = stated(facts.attention_bias)?;
        let is_of_qkv = matches!(facts.attention_bias, Announced::OfQkv | Announced::OfQkvByKey(..));
        let proj = if is_of_qkv { NEVER } else { qkv };
        Ok(Self { qkv, proj, mlp: stated(facts.mlp_bias)? })
    }

    /// Sets the architecture's biases, or refuses what contradicts the weights.
    pub(super) fn settle(
        &self,
        arch: &mut ModelArch,
        names: &NameMap,
        source: &dyn TensorSource,
        file: &str,
    ) -> Result<Vec<SourceNote>, FormatError> {
        let mlp: Vec<&str> = names.fc1.iter().copied().chain([names.fc2]).collect();
        let mut parts = vec![(self.mlp, mlp)];
        if self.qkv == self.proj {
            parts.insert(0, (self.qkv, names.qkv_stems().into_iter().chain([names.proj]).collect()));
        } else {
            parts.splice(0..0, [(self.qkv, names.qkv_stems()), (self.proj, vec![names.proj])]);
        }
        let mut notes = Vec::new();
        for (stated, stems) in parts {
            notes.extend(stated.check(arch, names, source, &stems, file)?);
        }
        let has_proj = source.meta(&names.in_layer(0, names.proj, "bias")).is_some();
        arch.set_biases(match (self.qkv.has_bias, self.mlp.has_bias) {
            (true, false) if !has_proj => Biases::Qkv,
            (false, false) => Biases::None,
            _ => Biases::All,
        });
        Ok(notes)
    }
}

impl Stated {
    fn check(
        self,
        arch: &ModelArch,
        names: &NameMap,
        source: &dyn TensorSource,
        stems: &[&str],
        file: &str,
    ) -> Result<Option<SourceNote>, FormatError> {
        let has = |layer, stem: &str| source.meta(&names.in_layer(layer, stem, "bias")).is_some();
        if !self.has_bias {
            for layer in 0..arch.model.num_layers as u64 {
                if let Some(stem) = stems.iter().find(|stem| has(layer, stem)) {
                    return Err(self.unannounced(&names.in_layer(layer, stem, "bias"), file));
                }
            }
            return Ok(None);
        }
        let lacking: Vec<&str> = stems.iter().filter(|stem| !has(0, stem)).copied().collect();
        let Some(first) = lacking.first() else { return Ok(None) };
        let key = match self.key {
            Some(key) if lacking.len() < stems.len() => key,
            _ => {
                let reason = match self.key {
                    Some(key) => format!("the weights do not have it, and `{key}` is true in `{file}`"),
                    None => {
                        format!("the weights do not have it, and models of the type that `{file}` states do")
                    }
                };
                return Err(FormatError::bad_tensor(&names.in_layer(0, first, "bias"), reason));
            }
        };
        let stems = lacking.into_iter().map(str::to_owned).collect();
        Ok(Some(SourceNote::ZeroBiases { stems, key: key.to_owned() }))
    }

    fn unannounced(self, name: &str, file: &str) -> FormatError {
        let reason = match self.key {
            Some(key) => format!(
                "the weights have it, and `{key}` is not true in `{file}`, so that transformers leaves it out; set \
                 `{key}` to true if the model was trained with it, else remove the tensor"
            ),
            None => format!(
                "the weights have it, and models of the type that `{file}` states have no such bias; correct the \
                 `model_type`, or remove the tensor if the model was trained without it"
            ),
        };
        FormatError::bad_tensor(name, reason)
    }
}
