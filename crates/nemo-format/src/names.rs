//! How each kind of source names its tensors: one table row for each family.
//!
//! Names only. How rows are moved is in `canonical` and, for the way back, in `export`.

use model_spec::{Module, TensorId};

use crate::adapter_names::{Rows, Target};

/// The names of a family's tensors, without `.weight` and `.bias`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameMap {
    /// Before every name but the output layer's. Files of a base model lack it.
    pub(crate) prefix: &'static str,
    pub(crate) embedding: &'static str,
    pub(crate) positions: Option<&'static str>,
    /// What stands before the layer's number.
    pub(crate) layers: &'static str,
    pub(crate) qkv: Qkv,
    /// The norms of query heads and of key heads.
    pub(crate) qk_norm: Option<[&'static str; 2]>,
    /// These have a tensor for every head, with its number behind the name.
    pub(crate) numbers_head_norms: bool,
    /// The scores that belong to no key.
    pub(crate) sinks: Option<&'static str>,
    pub(crate) proj: &'static str,
    /// In the order of the rows of `linear_fc1`.
    pub(crate) fc1: &'static [&'static str],
    pub(crate) fc2: &'static str,
    /// What layers with experts have instead of the MLP.
    pub(crate) experts: Option<Experts>,
    pub(crate) attention_norm: &'static str,
    pub(crate) mlp_norm: Option<&'static str>,
    /// The norms of the outputs of attention and of the MLP.
    pub(crate) post_norms: Option<[&'static str; 2]>,
    /// Linear layers in the place of attention and of the MLP.
    pub(crate) linear_parts: Option<[&'static str; 2]>,
    pub(crate) final_norm: &'static str,
    pub(crate) output: &'static str,
    pub(crate) linear: Linear,
}

/// The names of a layer's experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Experts {
    pub(crate) router: &'static str,
    /// What stands before an expert's number.
    pub(crate) experts: &'static str,
    /// In an expert, in the order of the rows of its `linear_fc1`.
    pub(crate) fc1: [&'static str; 2],
    /// In an expert.
    pub(crate) fc2: &'static str,
    /// The same of the shared expert.
    pub(crate) shared_fc1: [&'static str; 2],
    pub(crate) shared_fc2: &'static str,
    pub(crate) shared_gate: &'static str,
}

impl Experts {
    /// What the first layer of an expert, or of the shared one, is made of.
    pub(crate) fn fc1_of(&self, expert: Option<usize>) -> [String; 2] {
        match expert {
            Some(expert) => self.fc1.map(|stem| self.of(expert, stem)),
            None => self.shared_fc1.map(str::to_owned),
        }
    }

    /// A module of an expert.
    pub(crate) fn of(&self, expert: usize, stem: &str) -> String {
        format!("{}.{expert}.{stem}", self.experts)
    }
}

/// How queries, keys and values are stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Qkv {
    /// Three tensors.
    Separate([&'static str; 3]),
    /// Three tensors, rows of q and k permuted for ggml's paired rotary embedding.
    SeparatePaired([&'static str; 3]),
    /// One tensor in Megatron-Core's own order.
    PerGroup(&'static str),
    /// One tensor: all queries, all keys, all values.
    Stacked(&'static str),
}

/// How weights of linear layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Linear {
    /// `[out, in]`.
    RowsOut,
    /// `[in, out]`: transformers' `Conv1D`.
    RowsIn,
}

const SEPARATE: Qkv = Qkv::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);

/// Llama, Mistral, Gemma, Qwen2 and Qwen3, of which only the last has norms of the heads.
pub(crate) const LLAMA: NameMap = NameMap {
    prefix: "model.",
    embedding: "embed_tokens",
    positions: None,
    layers: "layers",
    qkv: SEPARATE,
    qk_norm: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    numbers_head_norms: false,
    sinks: None,
    linear_parts: None,
    proj: "self_attn.o_proj",
    fc1: &["mlp.gate_proj", "mlp.up_proj"],
    fc2: "mlp.down_proj",
    experts: None,
    attention_norm: "input_layernorm",
    mlp_norm: Some("post_attention_layernorm"),
    post_norms: None,
    final_norm: "norm",
    output: "lm_head",
    linear: Linear::RowsOut,
};

/// Gemma 2 and 3.
pub(crate) const GEMMA2: NameMap = NameMap {
    mlp_norm: Some("pre_feedforward_layernorm"),
    post_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    ..LLAMA
};

/// Qwen 2 and 3 with experts, of which the former have a shared one.
pub(crate) const QWEN_MOE: NameMap = NameMap {
    experts: Some(Experts {
        router: "mlp.gate",
        experts: "mlp.experts",
        fc1: ["gate_proj", "up_proj"],
        fc2: "down_proj",
        shared_fc1: ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"],
        shared_fc2: "mlp.shared_expert.down_proj",
        shared_gate: "mlp.shared_expert_gate",
    }),
    ..LLAMA
};

/// GPT-OSS, its experts one by one.
pub(crate) const GPT_OSS: NameMap = NameMap {
    sinks: Some("self_attn.sinks"),
    experts: match QWEN_MOE.experts {
        Some(names) => Some(Experts { router: "mlp.router", ..names }),
        None => None,
    },
    ..LLAMA
};

/// Mixtral, which has no shared expert.
pub(crate) const MIXTRAL: NameMap = NameMap {
    experts: match QWEN_MOE.experts {
        Some(names) => Some(Experts {
            router: "block_sparse_moe.gate",
            experts: "block_sparse_moe.experts",
            fc1: ["w1", "w3"],
            fc2: "w2",
            ..names
        }),
        None => None,
    },
    ..LLAMA
};

/// Phi-3 and 4: rows of several layers in one tensor.
pub(crate) const PHI3: NameMap =
    NameMap { qkv: Qkv::Stacked("self_attn.qkv_proj"), fc1: &["mlp.gate_up_proj"], ..LLAMA };

/// OLMo 2, whose norms are all behind attention and MLP.
pub(crate) const OLMO2: NameMap = NameMap {
    post_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    mlp_norm: None,
    ..LLAMA
};

pub(crate) const STARCODER2: NameMap = NameMap { fc1: &["mlp.c_fc"], fc2: "mlp.c_proj", ..LLAMA };

pub(crate) const STABLELM: NameMap = NameMap {
    qk_norm: Some(["self_attn.q_layernorm.norms", "self_attn.k_layernorm.norms"]),
    numbers_head_norms: true,
    ..LLAMA
};

pub(crate) const NEMOTRON_NAS: NameMap =
    NameMap { linear_parts: Some(["self_attn.linear_attn", "mlp.linear_mlp"]), ..LLAMA };

pub(crate) const NEMOTRON: NameMap = NameMap { fc1: &["mlp.up_proj"], ..LLAMA };

/// Architecture `llama` of GGUF.
pub(crate) const GGUF_LLAMA: NameMap = NameMap {
    prefix: "",
    embedding: "token_embd",
    positions: None,
    layers: "blk",
    qkv: Qkv::SeparatePaired(["attn_q", "attn_k", "attn_v"]),
    qk_norm: None,
    numbers_head_norms: false,
    sinks: None,
    linear_parts: None,
    proj: "attn_output",
    fc1: &["ffn_gate", "ffn_up"],
    fc2: "ffn_down",
    experts: None,
    attention_norm: "attn_norm",
    mlp_norm: Some("ffn_norm"),
    post_norms: None,
    final_norm: "output_norm",
    output: "output",
    linear: Linear::RowsOut,
};

/// Falcon 7B: one norm for both halves of a layer.
pub(crate) const FALCON: NameMap = NameMap {
    prefix: "transformer.",
    embedding: "word_embeddings",
    positions: None,
    layers: "h",
    qkv: Qkv::PerGroup("self_attention.query_key_value"),
    qk_norm: None,
    numbers_head_norms: false,
    sinks: None,
    linear_parts: None,
    proj: "self_attention.dense",
    fc1: &["mlp.dense_h_to_4h"],
    fc2: "mlp.dense_4h_to_h",
    experts: None,
    attention_norm: "input_layernorm",
    mlp_norm: None,
    post_norms: None,
    final_norm: "ln_f",
    output: "lm_head",
    linear: Linear::RowsOut,
};

/// Falcon 40B and 180B.
pub(crate) const FALCON_TWO_NORMS: NameMap =
    NameMap { attention_norm: "ln_attn", mlp_norm: Some("ln_mlp"), ..FALCON };

/// Falcon with `parallel_attn: false`.
pub(crate) const FALCON_SEQUENTIAL: NameMap =
    NameMap { mlp_norm: Some("post_attention_layernorm"), ..FALCON };

pub(crate) const GPT2: NameMap = NameMap {
    prefix: "transformer.",
    embedding: "wte",
    positions: Some("wpe"),
    layers: "h",
    qkv: Qkv::Stacked("attn.c_attn"),
    qk_norm: None,
    numbers_head_norms: false,
    sinks: None,
    linear_parts: None,
    proj: "attn.c_proj",
    fc1: &["mlp.c_fc"],
    fc2: "mlp.c_proj",
    experts: None,
    attention_norm: "ln_1",
    mlp_norm: Some("ln_2"),
    post_norms: None,
    final_norm: "ln_f",
    output: "lm_head",
    linear: Linear::RowsIn,
};

pub(crate) const GPTJ: NameMap = NameMap {
    positions: None,
    qkv: Qkv::Separate(["attn.q_proj", "attn.k_proj", "attn.v_proj"]),
    proj: "attn.out_proj",
    fc1: &["mlp.fc_in"],
    fc2: "mlp.fc_out",
    mlp_norm: None,
    linear: Linear::RowsOut,
    ..GPT2
};

pub(crate) const GPT_NEOX: NameMap = NameMap {
    prefix: "gpt_neox.",
    embedding: "embed_in",
    positions: None,
    layers: "layers",
    qkv: Qkv::PerGroup("attention.query_key_value"),
    qk_norm: None,
    numbers_head_norms: false,
    sinks: None,
    linear_parts: None,
    proj: "attention.dense",
    fc1: &["mlp.dense_h_to_4h"],
    fc2: "mlp.dense_4h_to_h",
    experts: None,
    attention_norm: "input_layernorm",
    mlp_norm: Some("post_attention_layernorm"),
    post_norms: None,
    final_norm: "final_layer_norm",
    output: "embed_out",
    linear: Linear::RowsOut,
};

/// Buffers that old versions of transformers and llama.cpp's converter store beside the weights.
const BUFFERS: [&str; 6] = [
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
    "rope_freqs.weight",
];

/// Whether a tensor is recomputed from the configuration.
pub(crate) fn is_buffer(name: &str) -> bool {
    BUFFERS
        .iter()
        .any(|buffer| name.strip_suffix(buffer).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

impl NameMap {
    /// The same names without the prefix, for a file that has them so.
    pub(crate) fn fitting(self, has: impl Fn(&str) -> bool) -> Self {
        let bare = Self { prefix: "", ..self };
        if !has(&self.embedding()) && has(&bare.embedding()) { bare } else { self }
    }

    pub(crate) fn in_layer(&self, layer: u64, stem: &str, suffix: &str) -> String {
        format!("{}{}.{layer}.{stem}.{suffix}", self.prefix, self.layers)
    }

    pub(crate) fn embedding(&self) -> String {
        self.outside(self.embedding, "weight")
    }

    pub(crate) fn output(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.output)
    }

    pub(crate) fn outside(&self, stem: &str, suffix: &str) -> String {
        format!("{}{stem}.{suffix}", self.prefix)
    }

    /// What the source calls the one tensor that becomes a canonical one; `None` where several do, and where the family has
    /// none such.
    pub(crate) fn name_of(&self, id: TensorId) -> Option<String> {
        let suffix = id.part.suffix();
        let in_expert;
        let stem = match id.module {
            Module::WordEmbeddings => self.embedding,
            Module::PositionEmbeddings => self.positions?,
            Module::InputNorm => self.attention_norm,
            Module::QNorm => self.qk_norm?[0],
            Module::KNorm => self.qk_norm?[1],
            Module::Sinks => self.sinks?,
            Module::Proj => self.proj,
            Module::MlpNorm => self.mlp_norm?,
            Module::Fc2 => self.fc2,
            Module::Router => self.experts?.router,
            Module::SharedFc2 => self.experts?.shared_fc2,
            Module::SharedGate => self.experts?.shared_gate,
            Module::ExpertFc2 => {
                let names = self.experts?;
                in_expert = names.of(id.expert?, names.fc2);
                &in_expert
            }
            Module::AttentionLinearNorm => self.attention_norm,
            Module::MlpLinearNorm => self.mlp_norm?,
            Module::AttentionLinear => self.linear_parts?[0],
            Module::MlpLinear => self.linear_parts?[1],
            Module::PostAttentionNorm => self.post_norms?[0],
            Module::PostMlpNorm => self.post_norms?[1],
            Module::FinalNorm => self.final_norm,
            Module::Output => return Some(self.output(suffix)),
            Module::Qkv | Module::Fc1 | Module::SharedFc1 | Module::ExpertFc1 | Module::ExpertBias => {
                return None;
            }
        };
        Some(match id.layer {
            Some(layer) => self.in_layer(layer as u64, stem, suffix),
            None => self.outside(stem, suffix),
        })
    }

    /// The stems of queries, keys and values.
    pub(crate) fn qkv_stems(&self) -> Vec<&'static str> {
        match self.qkv {
            Qkv::Separate(stems) | Qkv::SeparatePaired(stems) => stems.to_vec(),
            Qkv::PerGroup(stem) | Qkv::Stacked(stem) => vec![stem],
        }
    }
}

/// Every table, for names of which the family is not known.
const ALL: [NameMap; 10] =
    [LLAMA, PHI3, NEMOTRON, STARCODER2, FALCON, FALCON_TWO_NORMS, FALCON_SEQUENTIAL, GPT2, GPTJ, GPT_NEOX];

/// The linear layer that a module of transformers is, or the part of its rows; `None` for every other module.
///
/// `gated`: whether the MLP has a gate, on which depends what `up_proj` is.
pub(crate) fn linear_of(module: &str, gated: bool) -> Option<Target> {
    let has_gate = |names: &&NameMap| names.fc1.len() == 2 || names.fc1 == PHI3.fc1;
    ALL.iter().filter(|names| has_gate(names) == gated).find_map(|names| names.linear(module))
}

impl NameMap {
    fn linear(&self, module: &str) -> Option<Target> {
        if module == self.output {
            return Some(Target { layer: None, rows: Rows::Output });
        }
        let in_layers = module.strip_prefix(self.prefix)?.strip_prefix(self.layers)?.strip_prefix('.')?;
        let (layer, stem) = in_layers.split_once('.')?;
        let of_qkv = match self.qkv {
            Qkv::Separate(stems) | Qkv::SeparatePaired(stems) => {
                stems.into_iter().zip([Rows::Query, Rows::Key, Rows::Value]).collect()
            }
            Qkv::PerGroup(stem) => vec![(stem, Rows::Qkv)],
            Qkv::Stacked(stem) => vec![(stem, Rows::StackedQkv)],
        };
        let of_fc1 = match *self.fc1 {
            [gate, up] => vec![(gate, Rows::Gate), (up, Rows::Up)],
            [only] => vec![(only, Rows::Fc1)],
            _ => Vec::new(),
        };
        let others = [(self.proj, Rows::Proj), (self.fc2, Rows::Fc2)];
        let (_, rows) = of_qkv.into_iter().chain(of_fc1).chain(others).find(|(name, _)| *name == stem)?;
        Some(Target { layer: Some(layer.parse().ok()?), rows })
    }
}
