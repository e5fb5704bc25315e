//! Cosines and sines of the rotary position embedding.
//!
//! The rules are Megatron-Core's `RotaryEmbedding`: frequencies `base^(-2i / dims)`, positions divided by the
//! interpolation factor, and the Llama 3.1 rescaling of long wavelengths. Angles are float32 products, as there.

use crate::ModelError;
use model_spec::{RopeScaling, RotaryConfig};

/// Rotary positions computed at once; longer sequences grow the tables, so that a config's number alone allocates
/// nothing.
const INITIAL_POSITIONS: usize = 4096;

/// The tables of all layers; layers that rotate alike share one.
#[derive(Clone, Debug)]
pub(crate) struct RotaryTables {
    initial_positions: usize,
    tables: Vec<(RotaryConfig, Rotary)>,
}

/// Which of [`RotaryTables`] a layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RotaryId(usize);

impl RotaryId {
    /// Its index among the tables, in the order in which they were added.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU has copies of the tables"))]
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

impl RotaryTables {
    /// No tables yet, for sequences of up to `max_seq_len_tokens`.
    pub(crate) fn new(max_seq_len_tokens: usize) -> Self {
        Self { initial_positions: max_seq_len_tokens.min(INITIAL_POSITIONS), tables: Vec::new() }
    }

    /// The table of a layer that rotates like this.
    pub(crate) fn add(&mut self, config: &RotaryConfig) -> RotaryId {
        let known = self.tables.iter().position(|(other, _)| other == config);
        RotaryId(known.unwrap_or_else(|| {
            self.tables.push((*config, Rotary::new(config, self.initial_positions)));
            self.tables.len() - 1
        }))
    }

    /// Makes all tables cover positions below `num_positions`.
    pub(crate) fn grow(&mut self, num_positions: usize) {
        for (_, table) in &mut self.tables {
            table.grow(num_positions);
        }
    }

    /// A table that [`Self::add`] named.
    ///
    /// # Errors
    /// When other tables named it: attention without its rotation would be silently wrong.
    pub(crate) fn get(&self, id: RotaryId) -> Result<&Rotary, ModelError> {
        let table = self.tables.get(id.0).map(|(_, table)| table);
        table.ok_or(ModelError::NoBackend { backend: "rotary", reason: "a layer belongs to another model" })
    }

    /// All tables, by [`RotaryId::index`].
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU has copies of the tables"))]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rotary> {
        self.tables.iter().map(|(_, table)| table)
    }
}

/// Tables of cosines and sines by position, grown as sequences get longer.
#[derive(Clone, Debug)]
pub(crate) struct Rotary {
    inv_freq: Vec<f32>,
    position_scale: f32,
    attention_factor: f32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotary {
    /// Tables for positions below `num_positions`.
    pub(crate) fn new(config: &RotaryConfig, num_positions: usize) -> Self {
        let mut rotary = Self {
            inv_freq: inv_freq(config),
            position_scale: (1.0 / config.seq_len_interpolation_factor) as f32,
            attention_factor: config.factors.map_or(1.0, |factors| factors.attention_factor) as f32,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        rotary.grow(num_positions);
        rotary
    }

    /// Makes the tables cover positions below `num_positions`.
    pub(crate) fn grow(&mut self, num_positions: usize) {
        for position in self.num_positions()..num_positions {
            let scaled = position as f32 * self.position_scale;
            for &freq in &self.inv_freq {
                let (sin, cos) = f64::from(scaled * freq).sin_cos();
                self.cos.push(cos as f32 * self.attention_factor);
                self.sin.push(sin as f32 * self.attention_factor);
            }
        }
    }

    /// Pairs of dimensions that are rotated: `i` with `i + half_dims()` of each head. Weights of another pairing are
    /// brought into this one when they are read.
    pub(crate) fn half_dims(&self) -> usize {
        self.inv_freq.len()
    }

    /// Positions that the tables cover.
    pub(crate) fn num_positions(&self) -> usize {
        self.cos.len() / self.inv_freq.len().max(1)
    }

    /// Cosines, row-major `[num_positions, half_dims]`.
    pub(crate) fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// Sines, row-major `[num_positions, half_dims]`.
    pub(crate) fn sin(&self) -> &[f32] {
        &self.sin
    }
}

fn inv_freq(config: &RotaryConfig) -> Vec<f32> {
    (0..config.rotary_dims / 2)
        .map(|pair| {
            let freq = config.rotary_base.powf(-2.0 * pair as f64 / config.rotary_dims as f64);
            let divisor = config.factors.as_ref().and_then(|factors| factors.divisors().get(pair).copied());
            let freq = config.rope_scaling.map_or(freq, |scaling| stretch(freq, &scaling));
            (freq / f64::from(divisor.unwrap_or(1.0))) as f32
        })
        .collect()
}

/// Llama 3.1's rule for one frequency.
fn stretch(freq: f64, scaling: &RopeScaling) -> f64 {
    let RopeScaling { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        *scaling;
    let wavelength = std::f64::consts::TAU / freq;
    if wavelength < original_max_position_embeddings / high_freq_factor {
        return freq;
    }
    if wavelength > original_max_position_embeddings / low_freq_factor {
        return freq / factor;
    }
    let smooth = (original_max_position_embeddings / wavelength - low_freq_factor)
        / (high_freq_factor - low_freq_factor);
    (1.0 - smooth) * freq / factor + smooth * freq
}

#[cfg(test)]
mod tests {
    use super::*;
    use model_spec::RotaryPairing;

    const BASE: RotaryConfig = RotaryConfig {
        rotary_dims: 8,
        rotary_base: 10_000.0,
        seq_len_interpolation_factor: 1.0,
        pairing: RotaryPairing::HalfSplit,
        rope_scaling: None,
        factors: None,
    };

    fn assert_close(actual: f32, expected: f64) {
        assert!((f64::from(actual) - expected).abs() < 2e-6, "{actual} is not {expected}");
    }

    #[test]
    fn angles_are_position_times_frequency() {
        let rotary = Rotary::new(&BASE, 5);
        assert_eq!((rotary.half_dims(), rotary.num_positions()), (4, 5));
        for position in 0..5 {
            for (pair, freq) in [1.0, 0.1, 0.01, 0.001].into_iter().enumerate() {
                let angle = position as f64 * freq;
                assert_close(rotary.cos()[position * 4 + pair], angle.cos());
                assert_close(rotary.sin()[position * 4 + pair], angle.sin());
            }
        }
    }

    #[test]
    fn interpolation_divides_positions() {
        let halved = Rotary::new(&RotaryConfig { seq_len_interpolation_factor: 2.0, ..BASE }, 9);
        let plain = Rotary::new(&BASE, 5);
        for position in 0..5 {
            assert_eq!(halved.cos()[position * 8..][..4], plain.cos()[position * 4..][..4]);
        }
    }

    #[test]
    fn layers_that_rotate_alike_share_a_table_and_all_grow_together() {
        let mut tables = RotaryTables::new(3);
        let other = RotaryConfig { rotary_base: 500.0, ..BASE };
        let ids = [&BASE, &other, &BASE].map(|config| tables.add(config));
        assert_eq!(ids, [RotaryId(0), RotaryId(1), RotaryId(0)]);
        tables.grow(7);
        for (id, config) in ids.iter().zip([&BASE, &other, &BASE]) {
            assert_eq!(tables.get(*id).unwrap().cos(), Rotary::new(config, 7).cos());
        }
    }

    #[test]
    fn growing_equals_building_at_once() {
        let mut grown = Rotary::new(&BASE, 3);
        grown.grow(40);
        grown.grow(10);
        let whole = Rotary::new(&BASE, 40);
        assert_eq!(grown.cos(), whole.cos());
        assert_eq!(grown.sin(), whole.sin());
    }

    #[test]
    fn llama31_keeps_short_wavelengths_divides_long_ones_and_blends_between() {
        let freq_of = |wavelength: f64| std::f64::consts::TAU / wavelength;
        let llama31 = |freq| stretch(freq, &RopeScaling::LLAMA_3_1);
        assert_eq!(llama31(freq_of(2000.0)), freq_of(2000.0));
        assert_eq!(llama31(freq_of(9000.0)), freq_of(9000.0) / 8.0);
        // At 4096 tokens the blend is (2 - 1) / 3.
        let expected = freq_of(4096.0) * (2.0 / 3.0 / 8.0 + 1.0 / 3.0);
        assert!((llama31(freq_of(4096.0)) - expected).abs() < 1e-15);
        // Both ends of the blend meet the rules beside it.
        assert!((llama31(freq_of(2048.0)) - freq_of(2048.0)).abs() < 1e-15);
        assert!((llama31(freq_of(8192.0)) - freq_of(8192.0) / 8.0).abs() < 1e-15);
        let llama32 = RopeScaling { factor: 32.0, ..RopeScaling::LLAMA_3_1 };
        assert_eq!(stretch(freq_of(9000.0), &llama32), freq_of(9000.0) / 32.0);
    }
}
