//! Llama-Nemotron 51B, Super and Ultra: Llamas whose layers a search over architectures has left with several kinds
//! (`DeciLMForCausalLM`), as `block_configs` lists them.

use serde_json::json;

use super::llama;
use crate::FormatError;
use crate::convert::arch::ModelArch;
use crate::convert::family::Family;
use crate::heterogeneous;
use crate::huggingface::HfConfig;

pub(super) fn nemotron_nas(config: &HfConfig) -> Result<ModelArch, FormatError> {
    let mut arch = llama(config, Family::NemotronNas)?;
    arch.model.norm.epsilon = config.f64(&["rms_norm_eps"])?.unwrap_or(1e-5);
    let Some(blocks) = config.value("block_configs") else {
        return Err(config.bad("the key `block_configs` is missing".to_owned()));
    };
    let text = json!({ "block_configs": blocks }).to_string();
    let model = &arch.model;
    let parsed = heterogeneous::parse(&text, model.num_layers, model.hidden_size, model.heads);
    arch.model.blocks = Some(parsed.map_err(|reason| config.bad(format!("`block_configs`: {reason}")))?);
    arch.block_configs = Some(text);
    Ok(arch)
}
