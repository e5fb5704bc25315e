//! How a token's position enters.

/// How a token's position enters.
#[expect(clippy::large_enum_variant, reason = "a model has one, which is copied with its description")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PositionEmbedding {
    /// A table added to the embeddings.
    LearnedAbsolute,
    /// Rotation of queries and keys.
    Rope(RotaryConfig),
}

/// The rotation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryConfig {
    /// How many of each head's first dimensions are rotated; even.
    pub rotary_dims: usize,
    /// Which of them are rotated together.
    pub pairing: RotaryPairing,
    /// The base of the frequencies.
    pub rotary_base: f64,
    /// Positions are divided by it.
    pub seq_len_interpolation_factor: f64,
    /// The frequency rule of Llama 3.1 (`scale_positional_embedding`).
    pub rope_scaling: Option<RopeScaling>,
    /// Frequencies are divided by these, one for each pair of dimensions (LongRoPE, YaRN).
    pub factors: Option<RotaryFactors>,
}

/// The most pairs of dimensions that a head has.
pub const MAX_ROTARY_PAIRS: usize = 128;

/// What each frequency is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RotaryFactors {
    divisors: [f32; MAX_ROTARY_PAIRS],
    num_pairs: usize,
    /// Cosines and sines are multiplied by it (`attention_factor`).
    pub attention_factor: f64,
}

impl RotaryFactors {
    /// `None` when there are more divisors than a head has pairs.
    pub fn new(divisors: &[f32], attention_factor: f64) -> Option<Self> {
        let mut all = [1.0; MAX_ROTARY_PAIRS];
        all.get_mut(..divisors.len())?.copy_from_slice(divisors);
        Some(Self { divisors: all, num_pairs: divisors.len(), attention_factor })
    }

    /// One for each pair of dimensions.
    pub fn divisors(&self) -> &[f32] {
        self.divisors.get(..self.num_pairs).unwrap_or_default()
    }
}

/// Which of a head's dimensions are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairing {
    /// `(i, i + rotary_dims / 2)`.
    HalfSplit,
    /// `(2 i, 2 i + 1)` (`rotary_interleaved`).
    Interleaved,
}

/// The constants of Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// Frequencies of long wavelengths are divided by it.
    pub factor: f64,
    /// The original length over this is where wavelengths are long.
    pub low_freq_factor: f64,
    /// The original length over this is where wavelengths are short.
    pub high_freq_factor: f64,
    /// Positions of the training before the context was made longer.
    pub original_max_position_embeddings: f64,
}

impl RopeScaling {
    /// The constants that NeMo has built in; Llama 3.2 has others.
    pub const LLAMA_3_1: Self = Self {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192.0,
    };

    /// The keys of `rope_scaling`, in the order of [`Self::values`].
    pub const KEYS: [&str; 4] =
        ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];

    /// The constants in the order of [`Self::KEYS`].
    pub const fn values(&self) -> [f64; 4] {
        [self.factor, self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings]
    }

    /// The constants from their values in the order of [`Self::KEYS`].
    pub const fn from_values(values: [f64; 4]) -> Self {
        let [factor, low_freq_factor, high_freq_factor, original_max_position_embeddings] = values;
        Self { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }
    }
}
