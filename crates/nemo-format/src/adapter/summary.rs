//! What an adapter was and what became of it, for people and for comparisons.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::Adapter;
use crate::adapter_names::Rows;

/// An adapter that was merged.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSummary {
    path: String,
    format: &'static str,
    ranks: Vec<u64>,
    /// Written as they are stated; empty where nothing is.
    alphas: Vec<String>,
    /// What was merged, with the number of layers.
    targets: Vec<(&'static str, usize)>,
    trained_on: Option<String>,
    fingerprint: String,
}

impl AdapterSummary {
    pub(super) fn of(adapter: &Adapter) -> Self {
        let ranks: BTreeSet<u64> = adapter.pairs.iter().map(|pair| pair.down.rows).collect();
        let mut alphas: Vec<f64> = adapter.pairs.iter().filter_map(|pair| pair.alpha).collect();
        alphas.sort_by(f64::total_cmp);
        alphas.dedup();
        let mut targets: BTreeMap<Rows, usize> = BTreeMap::new();
        for pair in &adapter.pairs {
            *targets.entry(pair.target.rows).or_default() += 1;
        }
        Self {
            path: adapter.path.clone(),
            format: adapter.format,
            ranks: ranks.into_iter().collect(),
            alphas: alphas.iter().map(f64::to_string).collect(),
            targets: targets.into_iter().map(|(rows, count)| (rows.name(), count)).collect(),
            trained_on: adapter.trained_on.clone(),
            fingerprint: fingerprint(adapter),
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }

    /// A hash of everything that is added to the weights. It does not depend on the files that it was read from.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The same without the folders of its path, for a file that goes elsewhere.
    pub(crate) fn recorded(&self) -> String {
        let path = self.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
        Self { path, ..self.clone() }.to_string()
    }
}

fn fingerprint(adapter: &Adapter) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut pairs: Vec<_> = adapter.pairs.iter().map(|pair| (pair.target.weight(), pair)).collect();
    // Files list their tensors in many orders.
    pairs.sort_by_key(|(weight, pair)| (weight.clone(), pair.target.rows));
    for (weight, pair) in pairs {
        hasher.update(weight.as_bytes());
        hasher.update(pair.target.rows.name().as_bytes());
        hasher.update(&[0, u8::from(pair.target.rows == Rows::StackedQkv)]);
        hasher.update(&pair.scale.to_le_bytes());
        for factor in [&pair.down, &pair.up] {
            hasher.update(&factor.rows.to_le_bytes());
            hasher.update(&factor.columns.to_le_bytes());
            for value in &factor.values {
                hasher.update(&value.to_le_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}

impl fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &mut dyn Iterator<Item = String>| values.collect::<Vec<_>>().join(", ");
        let ranks = list(&mut self.ranks.iter().map(u64::to_string));
        let alpha = match self.alphas.as_slice() {
            [] => "no alpha, so that the product is added as it is".to_owned(),
            alphas => format!("alpha {}", alphas.join(", ")),
        };
        let targets = list(&mut self.targets.iter().map(|(name, count)| format!("{name} ({count})")));
        write!(
            f,
            "LoRA `{}` ({}), rank {ranks}, {alpha}, merged in float32 into {targets}",
            self.path, self.format
        )?;
        match &self.trained_on {
            Some(base) => write!(f, "; it was trained on `{base}`"),
            None => Ok(()),
        }
    }
}
