//! What is known of each family of transformers' models beyond the numbers of one model: one table row a family.
//!
//! What its tensors are called is in `names`, what its `config.json` says of a model is read in `huggingface`.

/// What a model is called, for messages and for the few things that only one family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Gemma,
    Gemma2,
    Gemma3,
    Falcon,
    Gpt2,
    GptJ,
    GptNeoX,
    Nemotron,
    Qwen2,
    Qwen3,
    Mixtral,
    Qwen2Moe,
    Qwen3Moe,
    Olmoe,
    Phi3,
    Olmo2,
    Granite,
    StarCoder2,
    StableLm,
    Cohere,
    NemotronNas,
    GptOss,
}

/// The facts of a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct FamilyFacts {
    /// The `model_type` of transformers.
    pub(super) name: &'static str,
    /// Its classes in transformers. The way back writes the first.
    pub(super) classes: &'static [&'static str],
    /// What the number under a norm's root is called.
    pub(super) epsilon_key: &'static str,
    /// The MLP is this many times as wide as the residual stream where nothing is stated.
    pub(super) default_ffn_factor: Option<u64>,
    /// `num_key_value_heads` counts; elsewhere a head has a key of its own or another key says.
    pub(super) has_num_key_value_heads: bool,
    /// Biases of `linear_qkv` and `linear_proj`.
    pub(super) attention_bias: Announced,
    /// Biases of the MLP.
    pub(super) mlp_bias: Announced,
    /// Linear layers that become layers with a bias of zeros where no layer of the model has one.
    pub(super) zero_biases: ZeroBiases,
    /// Stored gains of norms are without 1.
    pub(super) has_zero_centered_gamma: bool,
    /// Norms have no biases where the layout needs some.
    pub(super) norms_lack_biases: bool,
    /// The output layer has a bias.
    pub(super) has_output_bias: bool,
    /// Embeddings are multiplied by the root of the hidden size.
    pub(super) scales_embeddings: bool,
    /// `sliding_window` counts.
    pub(super) has_window: bool,
    /// Query and key heads have norms.
    pub(super) has_qk_norm: bool,
    /// The embedding table has more rows than the tokenizer has tokens, padded by another rule than NeMo's.
    pub(super) overrides_vocab_size: bool,
    /// NeMo's `name` of the layers, where these are its own; they are parallel unless told otherwise.
    pub(super) nemo_name: Option<&'static str>,
    /// `hidden_activation` of `config.json`, beside `hidden_act`, which is `silu` elsewhere.
    pub(super) hidden_activation: Option<&'static str>,
    /// The class of its SentencePiece tokenizer.
    pub(super) tokenizer_class: &'static str,
}

/// How `config.json` says whether linear layers have biases.
#[derive(Clone, Copy, Debug)]
pub(super) enum Announced {
    /// They have.
    Always,
    /// They have none.
    Never,
    /// Queries, keys and values have, the output of attention has none.
    OfQkv,
    /// Those of queries, keys and values by this key, with this default; the output of attention has none.
    OfQkvByKey(&'static str, bool),
    /// By this key, with this default.
    ByKey(&'static str, bool),
}

/// See [`FamilyFacts::zero_biases`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroBiases {
    None,
    Attention,
    All,
}

const LLAMA: FamilyFacts = FamilyFacts {
    name: "llama",
    classes: &["LlamaForCausalLM", "LlamaModel", "LLaMAForCausalLM"],
    epsilon_key: "rms_norm_eps",
    default_ffn_factor: None,
    has_num_key_value_heads: true,
    attention_bias: Announced::ByKey("attention_bias", false),
    mlp_bias: Announced::ByKey("mlp_bias", false),
    zero_biases: ZeroBiases::All,
    has_zero_centered_gamma: false,
    norms_lack_biases: false,
    has_output_bias: false,
    scales_embeddings: false,
    has_window: false,
    has_qk_norm: false,
    overrides_vocab_size: false,
    nemo_name: None,
    hidden_activation: None,
    tokenizer_class: "LlamaTokenizer",
};

const MISTRAL: FamilyFacts = FamilyFacts {
    name: "mistral",
    classes: &["MistralForCausalLM", "MistralModel"],
    attention_bias: Announced::Never,
    mlp_bias: Announced::Never,
    has_window: true,
    ..LLAMA
};

const GEMMA: FamilyFacts = FamilyFacts {
    name: "gemma",
    classes: &["GemmaForCausalLM", "GemmaModel"],
    mlp_bias: Announced::Never,
    has_zero_centered_gamma: true,
    scales_embeddings: true,
    hidden_activation: Some("gelu_pytorch_tanh"),
    tokenizer_class: "GemmaTokenizer",
    ..LLAMA
};

const GEMMA2: FamilyFacts = FamilyFacts {
    name: "gemma2",
    classes: &["Gemma2ForCausalLM", "Gemma2Model"],
    // They stay so, as in NeMo, whose configuration says it.
    has_zero_centered_gamma: false,
    ..GEMMA
};

const GEMMA3: FamilyFacts = FamilyFacts {
    name: "gemma3_text",
    classes: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    has_qk_norm: true,
    ..GEMMA2
};

const QWEN2: FamilyFacts = FamilyFacts {
    name: "qwen2",
    classes: &["Qwen2ForCausalLM", "Qwen2Model"],
    attention_bias: Announced::OfQkv,
    mlp_bias: Announced::Never,
    zero_biases: ZeroBiases::None,
    overrides_vocab_size: true,
    tokenizer_class: "Qwen2Tokenizer",
    ..LLAMA
};

const QWEN3: FamilyFacts = FamilyFacts {
    name: "qwen3",
    classes: &["Qwen3ForCausalLM", "Qwen3Model"],
    attention_bias: Announced::ByKey("attention_bias", false),
    has_qk_norm: true,
    ..QWEN2
};

const MIXTRAL: FamilyFacts = FamilyFacts {
    name: "mixtral",
    classes: &["MixtralForCausalLM", "MixtralModel"],
    zero_biases: ZeroBiases::None,
    ..MISTRAL
};

const QWEN2_MOE: FamilyFacts = FamilyFacts {
    name: "qwen2_moe",
    classes: &["Qwen2MoeForCausalLM", "Qwen2MoeModel"],
    attention_bias: Announced::OfQkvByKey("qkv_bias", true),
    ..QWEN2
};

const QWEN3_MOE: FamilyFacts =
    FamilyFacts { name: "qwen3_moe", classes: &["Qwen3MoeForCausalLM", "Qwen3MoeModel"], ..QWEN3 };

const OLMOE: FamilyFacts = FamilyFacts {
    name: "olmoe",
    classes: &["OlmoeForCausalLM", "OlmoeModel"],
    tokenizer_class: "GPTNeoXTokenizer",
    ..QWEN3_MOE
};

const GPT_OSS: FamilyFacts = FamilyFacts {
    name: "gpt_oss",
    classes: &["GptOssForCausalLM", "GptOssModel"],
    attention_bias: Announced::ByKey("attention_bias", true),
    mlp_bias: Announced::Never,
    zero_biases: ZeroBiases::None,
    tokenizer_class: "PreTrainedTokenizerFast",
    ..LLAMA
};

const NEMOTRON: FamilyFacts = FamilyFacts {
    name: "nemotron",
    classes: &["NemotronForCausalLM", "NemotronModel"],
    epsilon_key: "norm_eps",
    ..LLAMA
};

/// Of Phi-4 as well.
const PHI3: FamilyFacts = FamilyFacts {
    name: "phi3",
    classes: &["Phi3ForCausalLM", "Phi3Model"],
    zero_biases: ZeroBiases::None,
    ..MISTRAL
};

const OLMO2: FamilyFacts = FamilyFacts {
    name: "olmo2",
    classes: &["Olmo2ForCausalLM", "Olmo2Model"],
    mlp_bias: Announced::Never,
    has_qk_norm: true,
    tokenizer_class: "GPT2Tokenizer",
    ..LLAMA
};

const GRANITE: FamilyFacts = FamilyFacts {
    name: "granite",
    classes: &["GraniteForCausalLM", "GraniteModel"],
    tokenizer_class: "GPT2Tokenizer",
    ..LLAMA
};

const STARCODER2: FamilyFacts = FamilyFacts {
    name: "starcoder2",
    classes: &["Starcoder2ForCausalLM", "Starcoder2Model"],
    epsilon_key: "norm_epsilon",
    attention_bias: Announced::ByKey("use_bias", true),
    mlp_bias: Announced::ByKey("use_bias", true),
    zero_biases: ZeroBiases::None,
    has_window: true,
    tokenizer_class: "GPT2Tokenizer",
    ..LLAMA
};

const STABLELM: FamilyFacts = FamilyFacts {
    name: "stablelm",
    classes: &["StableLmForCausalLM", "StableLmModel"],
    epsilon_key: "layer_norm_eps",
    attention_bias: Announced::OfQkvByKey("use_qkv_bias", false),
    mlp_bias: Announced::Never,
    zero_biases: ZeroBiases::None,
    tokenizer_class: "GPTNeoXTokenizer",
    ..LLAMA
};

const COHERE: FamilyFacts = FamilyFacts {
    name: "cohere",
    classes: &["CohereForCausalLM", "CohereModel"],
    epsilon_key: "layer_norm_eps",
    mlp_bias: Announced::Never,
    norms_lack_biases: true,
    tokenizer_class: "CohereTokenizer",
    ..LLAMA
};

/// Llama-Nemotron 51B, Super and Ultra.
const NEMOTRON_NAS: FamilyFacts = FamilyFacts {
    name: "nemotron-nas",
    classes: &["DeciLMForCausalLM"],
    // The blocks have widths of their own.
    default_ffn_factor: Some(4),
    zero_biases: ZeroBiases::None,
    ..LLAMA
};

const GPT2: FamilyFacts = FamilyFacts {
    name: "gpt2",
    classes: &["GPT2LMHeadModel", "GPT2Model"],
    epsilon_key: "layer_norm_epsilon",
    default_ffn_factor: Some(4),
    has_num_key_value_heads: false,
    attention_bias: Announced::Always,
    mlp_bias: Announced::Always,
    zero_biases: ZeroBiases::None,
    ..LLAMA
};

const FALCON: FamilyFacts = FamilyFacts {
    name: "falcon",
    classes: &["FalconForCausalLM", "FalconModel", "RWForCausalLM", "RWModel"],
    attention_bias: Announced::ByKey("bias", false),
    mlp_bias: Announced::ByKey("bias", false),
    nemo_name: Some("megatron_falcon_gpt"),
    ..GPT2
};

const GPT_J: FamilyFacts = FamilyFacts {
    name: "gptj",
    classes: &["GPTJForCausalLM", "GPTJModel"],
    attention_bias: Announced::Never,
    zero_biases: ZeroBiases::Attention,
    has_output_bias: true,
    ..GPT2
};

const GPT_NEOX: FamilyFacts = FamilyFacts {
    name: "gpt_neox",
    classes: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    epsilon_key: "layer_norm_eps",
    default_ffn_factor: None,
    attention_bias: Announced::ByKey("attention_bias", true),
    zero_biases: ZeroBiases::Attention,
    ..GPT2
};

impl Family {
    /// Its row of the table.
    pub(super) const fn facts(self) -> &'static FamilyFacts {
        match self {
            Self::Llama => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Gemma => &GEMMA,
            Self::Gemma2 => &GEMMA2,
            Self::Gemma3 => &GEMMA3,
            Self::Falcon => &FALCON,
            Self::Gpt2 => &GPT2,
            Self::GptJ => &GPT_J,
            Self::GptNeoX => &GPT_NEOX,
            Self::Nemotron => &NEMOTRON,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::Mixtral => &MIXTRAL,
            Self::Qwen2Moe => &QWEN2_MOE,
            Self::Qwen3Moe => &QWEN3_MOE,
            Self::Olmoe => &OLMOE,
            Self::Phi3 => &PHI3,
            Self::Olmo2 => &OLMO2,
            Self::Granite => &GRANITE,
            Self::StarCoder2 => &STARCODER2,
            Self::StableLm => &STABLELM,
            Self::Cohere => &COHERE,
            Self::NemotronNas => &NEMOTRON_NAS,
            Self::GptOss => &GPT_OSS,
        }
    }

    /// The `model_type` of transformers.
    pub(super) const fn name(self) -> &'static str {
        self.facts().name
    }
}
