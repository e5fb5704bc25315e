//! A family's weights as Megatron-Core tensors: fused QKV by query group, `linear_fc1` as `[gate; up]`.
//!
//! The source's own names come from a [`NameMap`]; nothing here reads a file.

use std::collections::HashMap;
use std::ops::Range;

use model_spec::{HeadLayout, ModelSpec, Module, Part, TensorId, TensorSpec};

use super::arch::{Biases, ModelArch};
use super::family::ZeroBiases;
use super::rows::{Piece, PieceFrom, RowSource, Values};
use crate::names::{Linear, NameMap, Qkv, is_buffer};
use crate::{DType, FormatError, TensorSource};

/// Which linear layers of the source have biases.
pub(super) fn biases(names: &NameMap, source: &dyn TensorSource) -> Biases {
    let has = |stem: &&str| source.meta(&names.in_layer(0, stem, "bias")).is_some();
    if [names.proj, names.fc2].iter().chain(names.fc1).any(has) {
        Biases::All
    } else if names.qkv_stems().iter().any(has) {
        Biases::Qkv
    } else {
        Biases::None
    }
}

/// Presents `source` under Megatron-Core names, floating-point values as `dtype`.
pub(super) fn canonical(
    source: Box<dyn TensorSource>,
    arch: &ModelArch,
    names: NameMap,
    dtype: DType,
) -> Result<RowSource, FormatError> {
    let spec = arch.spec();
    let mut builder = Builder { out: RowSource::new(source, dtype), spec: &spec, arch, names };
    for tensor in spec.tensors() {
        builder.add(tensor)?;
    }
    check_all_used(&builder.out, arch, &names)?;
    Ok(builder.out)
}

/// Every row of the source must have been used: an unused row means another architecture.
fn check_all_used(out: &RowSource, arch: &ModelArch, names: &NameMap) -> Result<(), FormatError> {
    let mut used_rows: HashMap<&str, u64> = HashMap::new();
    for (from, rows) in out.used() {
        *used_rows.entry(from).or_default() += rows;
    }
    let (output_weight, family) = (names.output("weight"), arch.family.name());
    for name in out.inner().names() {
        let Some(&used) = used_rows.get(name) else {
            if is_buffer(name) || (arch.model.output.tied && name == output_weight) {
                continue;
            }
            let reason = format!(
                "a model of type `{family}` with this configuration has no such tensor; the configuration and the weights do not \
                 belong together, or it is a variant that is not supported"
            );
            return Err(FormatError::bad_tensor(name, reason));
        };
        let stored = out.num_rows(name);
        if used != stored {
            let reason = format!(
                "it has {stored} rows, the configuration needs {used}; the configuration and the weights do not belong together"
            );
            return Err(FormatError::bad_tensor(name, reason));
        }
    }
    Ok(())
}

struct Builder<'a> {
    out: RowSource,
    spec: &'a ModelSpec,
    arch: &'a ModelArch,
    names: NameMap,
}

impl Builder<'_> {
    fn add(&mut self, tensor: TensorSpec) -> Result<(), FormatError> {
        let shape = tensor.shape();
        let pieces = self.pieces(&tensor)?;
        let is_gain = tensor.id.module.is_norm() && tensor.id.part == Part::Weight;
        // 1 + w does not fit the type of w.
        let values = if is_gain && self.arch.family.facts().has_zero_centered_gamma {
            Values::Shifted { by: 1.0, dtype: DType::F32 }
        } else {
            Values::Kept
        };
        self.out.add(tensor.name, shape, pieces, values)
    }

    fn pieces(&self, tensor: &TensorSpec) -> Result<Vec<Piece>, FormatError> {
        let TensorId { layer, expert, module, part } = tensor.id;
        let layer = layer.unwrap_or_default() as u64;
        let rows = 0..tensor.dims.first().map_or(0, |dim| dim.size());
        Ok(match module {
            Module::Qkv => self.qkv(layer, part),
            Module::Fc1 => {
                let rows = 0..rows.end / self.names.fc1.len() as u64;
                self.names.fc1.iter().map(|stem| self.piece(layer, stem, part, rows.clone())).collect()
            }
            Module::SharedFc1 | Module::ExpertFc1 => {
                let rows = 0..rows.end / 2;
                let names = self.names.experts.ok_or_else(|| self.has_none(tensor))?;
                let stems = names.fc1_of(expert);
                stems.iter().map(|stem| self.piece(layer, stem, part, rows.clone())).collect()
            }
            Module::Proj => vec![self.piece(layer, self.names.proj, part, rows)],
            Module::Fc2 => vec![self.piece(layer, self.names.fc2, part, rows)],
            Module::QNorm | Module::KNorm if self.names.numbers_head_norms => {
                let name = self.names.name_of(tensor.id).ok_or_else(|| self.has_none(tensor))?;
                let stem = name.strip_suffix(part.suffix()).unwrap_or(&name);
                let row = |head| PieceFrom::Row(format!("{stem}{head}.{}", part.suffix()));
                rows.map(|head| Piece { rows: 0..1, from: row(head) }).collect()
            }
            _ if module.is_norm() && part == Part::Bias && self.arch.family.facts().norms_lack_biases => {
                vec![Piece { rows, from: PieceFrom::Zeros }]
            }
            _ => {
                let name = self.names.name_of(tensor.id).ok_or_else(|| self.has_none(tensor))?;
                vec![Piece { rows, from: PieceFrom::Tensor(name) }]
            }
        })
    }

    fn has_none(&self, tensor: &TensorSpec) -> FormatError {
        let family = self.arch.family.name();
        FormatError::bad_tensor(&tensor.name, format!("models of type `{family}` have none such"))
    }

    /// For each query group its query heads, then its key head, then its value head.
    fn qkv(&self, layer: u64, part: Part) -> Vec<Piece> {
        let heads = self.heads(layer);
        let (head_dim, num_groups) = (heads.kv_channels as u64, heads.num_query_groups as u64);
        let group_rows = heads.queries_per_group() as u64 * head_dim;
        let (q_rows, kv_rows) = (num_groups * group_rows, num_groups * head_dim);
        // Each of q, k and v: its tensor, and where its rows start there.
        let parts = match self.names.qkv {
            Qkv::PerGroup(stem) => return vec![self.piece(layer, stem, part, 0..q_rows + 2 * kv_rows)],
            Qkv::Separate([q, k, v]) | Qkv::SeparatePaired([q, k, v]) => [(q, 0), (k, 0), (v, 0)],
            Qkv::Stacked(stem) => [(stem, 0), (stem, q_rows), (stem, q_rows + kv_rows)],
        };
        let mut pieces = Vec::new();
        for group in 0..num_groups {
            for ((stem, base), num_rows) in parts.into_iter().zip([group_rows, head_dim, head_dim]) {
                let start = base + group * num_rows;
                pieces.push(self.piece(layer, stem, part, start..start + num_rows));
            }
        }
        pieces
    }

    /// The heads of a layer.
    fn heads(&self, layer: u64) -> HeadLayout {
        let layer = usize::try_from(layer).ok().and_then(|layer| self.spec.layers.get(layer));
        layer
            .and_then(|layer| layer.attention.as_ref())
            .map_or(self.arch.model.heads, |attention| attention.heads)
    }

    /// Rows of a linear layer's tensor.
    fn piece(&self, layer: u64, stem: &str, part: Part, rows: Range<u64>) -> Piece {
        let name = self.names.in_layer(layer, stem, part.suffix());
        let is_paired = matches!(self.names.qkv, Qkv::SeparatePaired([q, k, _]) if [q, k].contains(&stem));
        let from = if part == Part::Bias && self.lacks_bias(&name, stem) {
            PieceFrom::Zeros
        } else if is_paired {
            PieceFrom::PairedRotary { name, head_dim: self.arch.model.heads.kv_channels as u64 }
        } else if self.names.linear == Linear::RowsIn && part == Part::Weight {
            PieceFrom::Transposed(name)
        } else {
            PieceFrom::Tensor(name)
        };
        Piece { rows, from }
    }

    /// Whether a linear layer has no bias by design: in no layer of the model, and in a family where that happens.
    fn lacks_bias(&self, name: &str, stem: &str) -> bool {
        let is_optional = match self.arch.family.facts().zero_biases {
            ZeroBiases::None => false,
            ZeroBiases::Attention => self.names.qkv_stems().contains(&stem) || stem == self.names.proj,
            ZeroBiases::All => true,
        };
        let is_missing = |name: &str| self.out.inner().meta(name).is_none();
        is_optional && is_missing(name) && is_missing(&self.names.in_layer(0, stem, "bias"))
    }
}
