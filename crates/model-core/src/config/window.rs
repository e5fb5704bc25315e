//! How far attention reaches back: NeMo's `window_size`, and what a conversion keeps under `huggingface.sliding_window`.
//!
//! Up to the window attention over all earlier positions is the same. Beyond it `huggingface.sliding_window` is computed in
//! every layer. Of a `window_size` in every layer it is not known what it counts, so nothing is computed beyond, and every
//! path asks [`ModelConfig::longest_sequence`] first.

use model_spec::{AttentionWindow, LocalLayers};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::ModelConfig;
use super::raw::{RawModelConfig, RawNumber};
use crate::ModelError;

/// `window_size` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum RawWindow {
    /// Positions to the left and to the right.
    Pair(Vec<RawNumber>),
    /// Not a list.
    One(RawNumber),
    /// Neither.
    Other(IgnoredAny),
}

/// What only a conversion from Hugging Face has written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawHuggingFace {
    sliding_window: Option<RawNumber>,
}

const WINDOW_SIZE: &str = "window_size";
const SLIDING_WINDOW: &str = "huggingface.sliding_window";

/// The windows that a configuration can state of every layer.
pub(super) struct Everywhere {
    /// `window_size`, up to which sequences are computed.
    pub(super) limit: Option<AttentionWindow>,
    /// `huggingface.sliding_window`.
    sliding: Option<AttentionWindow>,
}

/// What is stated of every layer.
pub(super) fn parse(raw: &RawModelConfig) -> Result<Everywhere, ModelError> {
    let stated = raw.window_size.as_ref().map(parse_pair).transpose()?.flatten();
    let is_everywhere = raw.window_attn_skip_freq.is_none() && !raw.is_gemma2();
    let sliding = raw.huggingface.as_ref().and_then(|section| section.sliding_window.as_ref());
    let sliding =
        raw.size(SLIDING_WINDOW, sliding)?.map(|tokens| AttentionWindow { tokens, key: SLIDING_WINDOW });
    Ok(Everywhere { limit: stated.filter(|_| is_everywhere), sliding })
}

impl Everywhere {
    /// The window of every layer, where sequences may be longer and it is known what it counts: in transformers a row sees
    /// as many positions, itself among them.
    pub(super) fn local(&self, num_layers: usize, encoder_seq_length: usize) -> Option<LocalLayers> {
        let tokens = self.sliding?.tokens;
        let is_local = vec![true; num_layers];
        (tokens < encoder_seq_length).then_some(LocalLayers { tokens, is_local, rotary_base: None })
    }
}

/// How many positions a row sees, itself among them, in a layer with the window.
pub(super) fn tokens_seen(raw: &RawModelConfig) -> Result<Option<usize>, ModelError> {
    let left = raw.window_size.as_ref().map(parse_pair).transpose()?.flatten();
    Ok(left.map(|window| window.tokens.saturating_add(1)))
}

/// Transformer Engine lets a position see `left` others before it and itself. NeMo's converters write the
/// `sliding_window` of Hugging Face there, which counts the position itself, so that only as many tokens are safe.
/// What lies to the right is hidden by the causal mask.
fn parse_pair(raw: &RawWindow) -> Result<Option<AttentionWindow>, ModelError> {
    let bad = |actual: String| ModelError::BadValue {
        key: WINDOW_SIZE,
        expected: "null or two whole numbers `[window, 0]`, of which -1 is no window".to_owned(),
        actual,
    };
    let pair = match raw {
        RawWindow::Pair(pair) => pair,
        RawWindow::One(number) => return Err(bad(number.to_string())),
        RawWindow::Other(_) => return Err(bad("neither a list nor a number".to_owned())),
    };
    let shown = || format!("[{}]", pair.iter().map(RawNumber::to_string).collect::<Vec<_>>().join(", "));
    let [left, right] = pair.as_slice() else { return Err(bad(shown())) };
    match (left.to_whole(), right.to_whole()) {
        (Some(-1), Some(-1..)) => Ok(None),
        (Some(left), Some(-1..)) if left > 0 => Ok(Some(AttentionWindow {
            tokens: usize::try_from(left).unwrap_or(usize::MAX),
            key: WINDOW_SIZE,
        })),
        _ => Err(bad(shown())),
    }
}

impl ModelConfig {
    /// The longest sequence whose numbers are those of the model, and the key that limits it.
    pub fn longest_sequence(&self) -> (usize, &'static str) {
        match self.uniform.window {
            Some(window) if window.tokens < self.encoder_seq_length => (window.tokens, window.key),
            _ => (self.encoder_seq_length, "encoder_seq_length"),
        }
    }

    /// For a run whose sequences may be as long as `encoder_seq_length`.
    ///
    /// # Errors
    /// When attention does not reach back that far.
    pub fn refuse_beyond_window(&self) -> Result<(), ModelError> {
        let (tokens, key) = self.longest_sequence();
        if tokens == self.encoder_seq_length {
            return Ok(());
        }
        let encoder_seq_length = self.encoder_seq_length;
        Err(ModelError::BeyondWindow { encoder_seq_length, tokens, key })
    }

    /// For a sequence of `num_tokens`.
    ///
    /// # Errors
    /// When it is longer than [`Self::longest_sequence`].
    pub fn refuse_longer(&self, num_tokens: usize) -> Result<(), ModelError> {
        let (limit, key) = self.longest_sequence();
        if num_tokens <= limit {
            return Ok(());
        }
        Err(ModelError::SequenceTooLong { num_tokens, limit, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<ModelConfig, ModelError> {
        let base = "num_layers: 1\nhidden_size: 8\nnum_attention_heads: 2\nencoder_seq_length: 64\n";
        let node = hydra_config::yaml::parse(&format!("{base}{yaml}"), "x").unwrap();
        node.deserialize_into::<RawModelConfig>().unwrap().try_into()
    }

    #[test]
    fn windows_of_both_kinds() {
        for (yaml, expect) in [
            ("window_size: null", (64, "encoder_seq_length")),
            ("window_size: [-1, -1]", (64, "encoder_seq_length")),
            ("window_size: [-1, 0]", (64, "encoder_seq_length")),
            ("window_size: [128, 0]", (64, "encoder_seq_length")),
            ("window_size: [64, 0]", (64, "encoder_seq_length")),
            ("window_size: [63, 0]", (63, "window_size")),
            ("window_size: [8, -1]", (8, "window_size")),
            ("window_size: ['8', 0.0]", (8, "window_size")),
            ("huggingface: {model_type: mistral, sliding_window: 8}", (64, "encoder_seq_length")),
            ("huggingface: {model_type: mistral, sliding_window: null}", (64, "encoder_seq_length")),
            ("window_size: [16, 0]\nhuggingface: {sliding_window: 8}", (16, "window_size")),
            ("window_size: [7, 0]\nhuggingface: {sliding_window: 8}", (7, "window_size")),
        ] {
            assert_eq!(parse(yaml).unwrap().longest_sequence(), expect, "{yaml}");
        }
    }

    #[test]
    fn a_window_of_transformers_is_computed_in_every_layer() {
        let local = |yaml| parse(yaml).unwrap().uniform.attention.local;
        let window = |tokens| Some(LocalLayers { tokens, is_local: vec![true], rotary_base: None });
        assert_eq!(local("huggingface: {sliding_window: 8}"), window(8));
        assert_eq!(local("huggingface: {sliding_window: 63}"), window(63));
        assert_eq!(local("huggingface: {sliding_window: 64}"), None, "no sequence is longer");
        assert_eq!(local("window_size: [8, 0]"), None, "it is not known what it counts");
        let some = "window_size: [8, 0]\nwindow_attn_skip_freq: [1]\nhuggingface: {sliding_window: 8}";
        assert_eq!(local(some), window(9), "Megatron's key says which layers, and counts one more");
    }

    #[test]
    fn windows_that_are_none_are_shown() {
        let check = |yaml: &str| parse(yaml).unwrap_err().to_string();
        insta::assert_snapshot!(check("window_size: [0, 0]"), @"model config key `window_size` must be null or two whole numbers `[window, 0]`, of which -1 is no window, not `[0, 0]`");
        insta::assert_snapshot!(check("window_size: [8, 0, 0]"), @"model config key `window_size` must be null or two whole numbers `[window, 0]`, of which -1 is no window, not `[8, 0, 0]`");
        insta::assert_snapshot!(check("window_size: 128"), @"model config key `window_size` must be null or two whole numbers `[window, 0]`, of which -1 is no window, not `128`");
        insta::assert_snapshot!(check("window_size: {left: 1}"), @"model config key `window_size` must be null or two whole numbers `[window, 0]`, of which -1 is no window, not `neither a list nor a number`");
        insta::assert_snapshot!(check("huggingface: {sliding_window: 0}"), @"model config key `huggingface.sliding_window` must be a whole number from 1 to 2147483647, not `0`");
    }

    #[test]
    fn longer_sequences_are_refused_with_the_number() {
        let config = parse("window_size: [8, 0]").unwrap();
        insta::assert_snapshot!(config.refuse_beyond_window().unwrap_err(), @"`model.encoder_seq_length` is 64, and attention of this model reaches back 8 tokens (`window_size`), beyond which nothing is computed: pass `++model.encoder_seq_length=8`");
        assert!(config.refuse_longer(8).is_ok());
        insta::assert_snapshot!(config.refuse_longer(9).unwrap_err(), @"a sequence of 9 tokens is longer than the model computes: `window_size` is 8");
        assert!(parse("").unwrap().refuse_beyond_window().is_ok());
        insta::assert_snapshot!(parse("").unwrap().refuse_longer(65).unwrap_err(), @"a sequence of 65 tokens is longer than the model computes: `encoder_seq_length` is 64");
    }
}
