//! The least time that a decode step can take: to read the weights once and the cached keys and values of every row, at a
//! given bandwidth, and to send what goes from rank to rank, at another.
//!
//! With several pipeline stages each step has a part of the rows, and the stages work on as many steps side by side: in the
//! long run a step takes what the slowest stage takes for it.

use model_core::{BLOCK_SIZE_TOKENS, LoadOptions};
use model_spec::ModelSpec;

use super::cases::place;
use crate::cluster::topology::Topology;
use crate::config::cli::BenchArgs;
use crate::exit::Failure;

/// A model and who computes it.
pub(super) struct Layout<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) topology: Topology,
    pub(super) options: LoadOptions,
}

/// What bounds the steps of a layout.
pub(super) struct Floor {
    stages: Vec<Stage>,
    /// Bytes a second.
    bandwidth: f64,
    /// The same from rank to rank.
    wire: f64,
}

/// What a rank of a stage reads and sends.
struct Stage {
    weight_bytes: u64,
    kv_bytes_per_token: u64,
    /// For each row of a step.
    wire_bytes: u64,
}

impl Floor {
    /// Of the first rank of each stage: the others have as much.
    ///
    /// # Errors
    /// When the ranks cannot share the model.
    pub(super) fn of(layout: &Layout<'_>, arguments: &BenchArgs) -> Result<Self, Failure> {
        let &Layout { spec, topology, options } = layout;
        let [_, pipeline, tensor] = topology.sizes();
        let stage = |idx: u32| -> Result<Stage, Failure> {
            let place = place(spec, topology, idx * tensor, options)?;
            let footprint = model_core::footprint(spec, options, &place)?;
            let (hidden, others) = (spec.hidden_size as u64, u64::from(tensor) - 1);
            // A partial sum in float32 behind attention and behind the MLP, and columns of logits.
            let of_sums = 2 * place.layers.len() as u64 * hidden * 4 * others;
            let of_logits = match place.is_last_stage(spec) {
                true => spec.padded_vocab_size / u64::from(tensor) * 4 * others,
                false => hidden * options.numerics.compute.size_bytes() as u64,
            };
            Ok(Stage {
                weight_bytes: footprint.weight_bytes - footprint.lookup_bytes,
                kv_bytes_per_token: footprint.bytes_per_block() / BLOCK_SIZE_TOKENS as u64,
                wire_bytes: of_sums + of_logits,
            })
        };
        Ok(Self {
            stages: (0..pipeline).map(stage).collect::<Result<_, _>>()?,
            bandwidth: arguments.bandwidth_gbps * 1e9,
            wire: arguments.wire_gbps * 1e9,
        })
    }

    /// Of a step, where so many rows with so many cached tokens are computed in all.
    pub(super) fn step_ms(&self, rows: u64, context: u64) -> f64 {
        let rows = rows.div_ceil(self.stages.len().max(1) as u64);
        let of_stage = |stage: &Stage| {
            let read = stage.weight_bytes + rows * context * stage.kv_bytes_per_token;
            read as f64 / self.bandwidth + (rows * stage.wire_bytes) as f64 / self.wire
        };
        self.stages.iter().map(of_stage).fold(0.0, f64::max) * 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_work_side_by_side() {
        let stage = |weight_bytes| Stage { weight_bytes, kv_bytes_per_token: 10, wire_bytes: 50 };
        let floor = |stages| Floor { stages, bandwidth: 1e6, wire: 1e5 };
        // 1,000 of weights, 4 x 25 x 10 of the cache, 4 x 50 on the wire.
        assert!((floor(vec![stage(1_000)]).step_ms(4, 25) - 4.0).abs() < 1e-9);
        // Half of the rows, and the slower of the two.
        assert!((floor(vec![stage(1_000), stage(2_000)]).step_ms(4, 25) - 3.5).abs() < 1e-9);
    }
}
