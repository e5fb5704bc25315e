//! Weights of a linear layer, laid out once for the micro-kernel.
#![expect(unsafe_code, reason = "tasks of one loop fill disjoint panels")]

use half::bf16;
use torch_ext::BadTensor;

use super::buffer::{Arena, Buffer, SharedPtr};
use super::elem::{Elem, SourceDType};
use super::pool::Pool;
use super::tile::{PANEL, Panel, Share};
use crate::CpuKernelError;

/// Which output column of the layer a panel's column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In order.
    Plain,
    /// For a layer whose first half of outputs gates the second: 16 gates and their 16 partners in one panel, so
    /// that the activation needs no second pass.
    Gated,
}

/// A linear layer's weights as a checkpoint stores them.
#[derive(Clone, Copy, Debug)]
pub struct StoredLinear<'a> {
    /// `[out_features, in_features]`, row-major, little endian.
    pub weight: &'a [u8],
    /// `[out_features]`, same type.
    pub bias: Option<&'a [u8]>,
    /// Type of both.
    pub dtype: SourceDType,
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
}

/// Packed weights of one element type: `[panel][group][PANEL][GROUP]`, zero where the sizes do not divide.
pub(crate) struct Packed<E> {
    pub(crate) panels: Buffer<E>,
    /// One row a panel, empty without bias.
    pub(crate) bias: Vec<[f32; PANEL]>,
    pub(crate) layout: Layout,
    pub(crate) out_features: usize,
    pub(crate) in_features: usize,
}

/// Packed weights of a linear layer.
pub enum PackedLinear {
    /// In float32.
    F32(PackedF32),
    /// In bfloat16.
    Bf16(PackedBf16),
}

/// Packed float32 weights.
pub struct PackedF32(pub(crate) Packed<f32>);
/// Packed bfloat16 weights.
pub struct PackedBf16(pub(crate) Packed<bf16>);

impl std::fmt::Debug for PackedLinear {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, out_features, in_features) = match self {
            Self::F32(packed) => ("float32", packed.0.out_features, packed.0.in_features),
            Self::Bf16(packed) => ("bfloat16", packed.0.out_features, packed.0.in_features),
        };
        write!(formatter, "PackedLinear({kind} [{out_features}, {in_features}])")
    }
}

impl PackedLinear {
    /// Inputs.
    pub fn in_features(&self) -> usize {
        match self {
            Self::F32(packed) => packed.0.in_features,
            Self::Bf16(packed) => packed.0.in_features,
        }
    }

    /// Outputs, gates included.
    pub fn out_features(&self) -> usize {
        match self {
            Self::F32(packed) => packed.0.out_features,
            Self::Bf16(packed) => packed.0.out_features,
        }
    }

    /// The order of the outputs.
    pub fn layout(&self) -> Layout {
        match self {
            Self::F32(packed) => packed.0.layout,
            Self::Bf16(packed) => packed.0.layout,
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::F32(packed) => packed.0.panels.size_bytes(),
            Self::Bf16(packed) => packed.0.panels.size_bytes(),
        }
    }
}

impl<E: Elem> Packed<E> {
    pub(crate) fn num_panels(&self) -> usize {
        self.out_features.div_ceil(PANEL)
    }

    fn panel_elems(&self) -> usize {
        self.in_features.next_multiple_of(E::GROUP) * PANEL
    }

    pub(crate) fn panel(&self, panel_idx: usize) -> Panel<E> {
        debug_assert!(panel_idx < self.num_panels());
        let start = self.panels.as_ptr().wrapping_add(panel_idx * self.panel_elems());
        Panel {
            start,
            stride_elems: PANEL * E::GROUP,
            num_groups: self.in_features.div_ceil(E::GROUP),
            prefetch: start.wrapping_add(self.panel_elems()),
            prefetch_share: Share::All,
        }
    }

    /// The weights of one output of a plain layer, as they were packed; `out` has `in_features` elements.
    pub(crate) fn copy_row(&self, output: usize, out: &mut [E]) -> Result<(), CpuKernelError> {
        if self.layout != Layout::Plain || output >= self.out_features {
            return Err(CpuKernelError::BadTensor(BadTensor {
                what: "output of a linear layer",
                expected: format!("below {} of a plain layer", self.out_features),
                actual: format!("{output} of {:?}", self.layout),
            }));
        }
        // SAFETY: the panel exists, since the output does, and nothing writes to a packed layer.
        let panel =
            unsafe { std::slice::from_raw_parts(self.panel(output / PANEL).start, self.panel_elems()) };
        let at = output % PANEL * E::GROUP;
        for (group, out) in panel.chunks_exact(PANEL * E::GROUP).zip(out.chunks_mut(E::GROUP)) {
            out.iter_mut().zip(&group[at..]).for_each(|(out, &elem)| *out = elem);
        }
        Ok(())
    }

    pub(crate) fn pack(
        pool: &mut Pool,
        arena: &mut Arena,
        stored: &StoredLinear<'_>,
        layout: Layout,
    ) -> Result<Self, CpuKernelError> {
        check_stored(stored, layout)?;
        let (out_features, in_features) = (stored.out_features, stored.in_features);
        let num_panels = out_features.div_ceil(PANEL);
        let panel_elems = in_features.next_multiple_of(E::GROUP) * PANEL;
        let mut panels = arena.zeroed(num_panels * panel_elems)?;
        let shared = SharedPtr::new(panels.as_mut_ptr());
        let row_bytes = in_features * stored.dtype.size_bytes();
        pool.run(num_panels, &|panel_idx| {
            // SAFETY: panels are disjoint, and the buffer holds `num_panels` of them.
            let panel = unsafe { shared.slice(panel_idx * panel_elems, panel_elems) };
            let mut rows = vec![E::default(); PANEL * in_features];
            for (column, row) in rows.chunks_exact_mut(in_features).enumerate() {
                if let Some(output) = output_of(layout, out_features, panel_idx * PANEL + column) {
                    stored.dtype.convert(&stored.weight[output * row_bytes..(output + 1) * row_bytes], row);
                }
            }
            interleave(&rows, in_features, panel);
        });
        let mut bias = Vec::new();
        if let Some(bytes) = stored.bias {
            let mut in_order = vec![0.0; out_features];
            stored.dtype.convert(bytes, &mut in_order);
            let value =
                |column| output_of(layout, out_features, column).map_or(0.0, |output| in_order[output]);
            bias = (0..num_panels)
                .map(|panel_idx| std::array::from_fn(|column| value(panel_idx * PANEL + column)))
                .collect();
        }
        Ok(Self { panels, bias, layout, out_features, in_features })
    }
}

fn check_stored(stored: &StoredLinear<'_>, layout: Layout) -> Result<(), CpuKernelError> {
    let elem_bytes = stored.dtype.size_bytes();
    let weight_bytes =
        stored.out_features.checked_mul(stored.in_features).and_then(|n| n.checked_mul(elem_bytes));
    let bias_fits = stored.bias.is_none_or(|bias| bias.len() == stored.out_features * elem_bytes);
    if weight_bytes != Some(stored.weight.len()) || stored.in_features == 0 || !bias_fits {
        return Err(CpuKernelError::BadTensor(BadTensor {
            what: "linear weight",
            expected: format!(
                "[{}, {}] of {elem_bytes}-byte elements",
                stored.out_features, stored.in_features
            ),
            actual: format!("{} bytes", stored.weight.len()),
        }));
    }
    if layout == Layout::Gated && !stored.out_features.is_multiple_of(2) {
        return Err(CpuKernelError::BadTensor(BadTensor {
            what: "gated linear weight",
            expected: "of an even number of rows".to_owned(),
            actual: stored.out_features.to_string(),
        }));
    }
    Ok(())
}

/// The layer's output that a packed column holds, or `None` for padding.
fn output_of(layout: Layout, out_features: usize, column: usize) -> Option<usize> {
    match layout {
        Layout::Plain => (column < out_features).then_some(column),
        Layout::Gated => {
            let half = out_features / 2;
            let (panel_idx, within) = (column / PANEL, column % PANEL);
            let gate = panel_idx * (PANEL / 2) + within % (PANEL / 2);
            (gate < half).then_some(if within < PANEL / 2 { gate } else { half + gate })
        }
    }
}

/// `rows`: `[PANEL, in_features]` to `[group][PANEL][GROUP]`, in pieces that stay in the first-level cache.
fn interleave<E: Elem>(rows: &[E], in_features: usize, panel: &mut [E]) {
    for (group_idx, group) in panel.chunks_exact_mut(PANEL * E::GROUP).enumerate() {
        let first = group_idx * E::GROUP;
        // Elements one by one: copies of a few bytes would each be a call.
        for (row, out) in rows.chunks_exact(in_features).zip(group.chunks_exact_mut(E::GROUP)) {
            for (out, &elem) in out.iter_mut().zip(&row[first..]) {
                *out = elem;
            }
        }
    }
}
