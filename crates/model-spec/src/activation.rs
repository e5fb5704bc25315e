//! The function inside the MLP, and how NeMo's keys name it.

/// The nonlinearity and whether it gates a second projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The function.
    pub nonlinearity: Nonlinearity,
    /// The first half of `linear_fc1` goes through the function and multiplies the second half.
    pub gated: bool,
}

/// The function inside the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Nonlinearity {
    /// The error-function GELU.
    Gelu,
    /// The tanh approximation (`openai_gelu`, `bias_activation_fusion`).
    GeluTanh,
    /// `x * sigmoid(1.702 x)` (`approx-gelu`).
    QuickGelu,
    /// The same of an `x` that is at most [`GLU_CLAMP`]; what it multiplies is brought between that and its negative, and 1
    /// is added to it (`quick-geglu` with `activation_func_clamp_value: 7` and `glu_linear_offset: 1`). Always gated.
    ClampedQuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)` squared.
    SquaredRelu,
}

/// The limit of [`Nonlinearity::ClampedQuickGelu`].
pub const GLU_CLAMP: f32 = 7.0;

/// NeMo's names of activations, and Megatron-Core's of the last one, with what each is without the other keys. Where two names mean the same, the first is
/// written.
const ACTIVATIONS: [(&str, Activation); 10] = [
    ("gelu", Activation { nonlinearity: Nonlinearity::Gelu, gated: false }),
    ("approx-gelu", Activation { nonlinearity: Nonlinearity::QuickGelu, gated: false }),
    ("squared-relu", Activation { nonlinearity: Nonlinearity::SquaredRelu, gated: false }),
    ("geglu", Activation { nonlinearity: Nonlinearity::Gelu, gated: true }),
    ("fast-geglu", Activation { nonlinearity: Nonlinearity::Gelu, gated: true }),
    ("fast-swiglu", Activation { nonlinearity: Nonlinearity::Silu, gated: true }),
    ("swiglu", Activation { nonlinearity: Nonlinearity::Silu, gated: true }),
    ("fast-reglu", Activation { nonlinearity: Nonlinearity::Relu, gated: true }),
    ("reglu", Activation { nonlinearity: Nonlinearity::Relu, gated: true }),
    ("quick-geglu", Activation { nonlinearity: Nonlinearity::ClampedQuickGelu, gated: true }),
];

/// What NeMo's keys say of the function.
///
/// NeMo 2.5 and Megatron-Core 0.20 read them so:
///
/// * `openai_gelu` replaces whatever function the name stands for (`nlp/parts/utils_funcs.py` line 199,
///   `nlp/modules/common/megatron/mlp.py` line 175).
/// * A key `bias_activation_fusion` that is not there is true (`megatron_base_model.py` line 550,
///   `megatron_gpt_model.py` line 552).
/// * The fused kernel of the error-function GELU is the tanh form, with a gate or without: `megatron/core/transformer/mlp.py`
///   lines 299 to 307, `megatron/core/fusions/fused_bias_gelu.py` line 19, `fused_bias_geglu.py` line 27; before
///   Megatron-Core `mlp.py` lines 236 to 242, `fused_bias_gelu.py` line 37. Those of other functions compute these.
/// * Without biases there is no fused kernel of a GELU without a gate (`transformer_config.py` line 2426, `mlp.py` line 167):
///   such a model only runs with the key false.
#[derive(Clone, Copy, Debug)]
pub struct NemoActivation<'a> {
    /// `activation`.
    pub name: &'a str,
    /// `openai_gelu`.
    pub openai_gelu: bool,
    /// `bias_activation_fusion`, where it is stated.
    pub bias_activation_fusion: Option<bool>,
    /// `bias`.
    pub bias: bool,
}

/// What no model of NeMo computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadActivation {
    /// A name that is not one of NeMo's.
    UnknownName,
    /// `bias_activation_fusion` is true where there is no bias to fuse.
    FusedWithoutBias,
}

impl NemoActivation<'_> {
    /// The function that these keys mean.
    ///
    /// # Errors
    /// When NeMo has no such function.
    pub fn function(&self) -> Result<Activation, BadActivation> {
        let named = ACTIVATIONS.into_iter().find(|(known, _)| *known == self.name);
        let (_, named) = named.ok_or(BadActivation::UnknownName)?;
        let is_tanh = match named.nonlinearity {
            _ if self.openai_gelu => true,
            Nonlinearity::Gelu => match self.bias_activation_fusion {
                Some(true) if !self.bias && !named.gated => return Err(BadActivation::FusedWithoutBias),
                stated => stated.unwrap_or(self.bias || named.gated),
            },
            _ => false,
        };
        Ok(if is_tanh { Activation { nonlinearity: Nonlinearity::GeluTanh, ..named } } else { named })
    }
}

impl Activation {
    /// NeMo's `activation` and `openai_gelu` for it, beside `bias_activation_fusion: false`; `None` where NeMo has no name
    /// for it.
    pub fn to_nemo(self) -> Option<(&'static str, bool)> {
        let openai_gelu = self.nonlinearity == Nonlinearity::GeluTanh;
        let plain = if openai_gelu { Self { nonlinearity: Nonlinearity::Gelu, ..self } } else { self };
        let (name, _) = ACTIVATIONS.into_iter().find(|(_, activation)| *activation == plain)?;
        Some((name, openai_gelu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn keys(name: &str) -> NemoActivation<'_> {
        NemoActivation { name, openai_gelu: false, bias_activation_fusion: None, bias: true }
    }

    #[test]
    fn every_activation_that_nemo_names_is_written_under_a_name_that_means_it() {
        for (name, _) in ACTIVATIONS {
            for openai_gelu in [false, true] {
                for bias_activation_fusion in [None, Some(false), Some(true)] {
                    let keys = NemoActivation { openai_gelu, bias_activation_fusion, ..keys(name) };
                    let activation = keys.function().unwrap();
                    let (name, openai_gelu) = activation.to_nemo().unwrap();
                    let bias_activation_fusion = Some(false);
                    let written = NemoActivation { name, openai_gelu, bias_activation_fusion, ..keys };
                    assert_eq!(written.function(), Ok(activation), "{keys:?}");
                }
            }
        }
        assert_eq!(keys("mish").function(), Err(BadActivation::UnknownName));
        assert_eq!(Activation { nonlinearity: Nonlinearity::Relu, gated: false }.to_nemo(), None);
    }

    #[test]
    fn a_fused_gelu_is_the_tanh_form() {
        let of = |name, bias_activation_fusion, bias| {
            let keys = NemoActivation { bias_activation_fusion, bias, ..keys(name) };
            keys.function().map(|activation| activation.nonlinearity)
        };
        for name in ["gelu", "geglu", "fast-geglu"] {
            assert_eq!(of(name, None, true), Ok(Nonlinearity::GeluTanh));
            assert_eq!(of(name, Some(true), true), Ok(Nonlinearity::GeluTanh));
            assert_eq!(of(name, Some(false), true), Ok(Nonlinearity::Gelu));
            assert_eq!(of(name, Some(false), false), Ok(Nonlinearity::Gelu));
        }
        // Megatron-Core fuses a gate without biases, too; without a gate it refuses to.
        assert_eq!(of("geglu", None, false), Ok(Nonlinearity::GeluTanh));
        assert_eq!(of("gelu", None, false), Ok(Nonlinearity::Gelu));
        assert_eq!(of("gelu", Some(true), false), Err(BadActivation::FusedWithoutBias));
        for (name, function) in [
            ("approx-gelu", Nonlinearity::QuickGelu),
            ("squared-relu", Nonlinearity::SquaredRelu),
            ("fast-swiglu", Nonlinearity::Silu),
            ("fast-reglu", Nonlinearity::Relu),
        ] {
            assert_eq!(of(name, Some(true), true), Ok(function));
        }
    }
}
