//! `cargo run --release -p cpu-kernels --example gemm_speed [-- ISA…]`: how near the linear layers of a small model come to
//! what the arithmetic units of this machine do at most, for every instruction set that it has or for those named.
//!
//! The best of many short rounds, in which the peak and the layers take turns: other programs disturb all alike.
#![expect(clippy::print_stdout, reason = "its figures are its output")]

use std::time::Instant;

use cpu_kernels::{CpuKernels, Isa, Layout, SourceDType, StoredLinear, peak_flops};
use tch::{Device, Kind, Tensor};

/// Outputs and inputs of SmolLM2-135M's layers.
const SHAPES: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const NUM_ROWS: [usize; 6] = [1, 4, 16, 32, 64, 512];
const NUM_LAYERS: usize = 4;
const NUM_ROUNDS: usize = 12;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{num_threads} threads; GFLOP/s, and percent of the peak of all");
    for isa in
        Isa::of_machine().filter(|isa| wanted.is_empty() || wanted.iter().any(|name| name == isa.name()))
    {
        for kind in [Kind::BFloat16, Kind::Float] {
            let mut kernels = CpuKernels::with_isa(num_threads, isa)?;
            let mut layers = Vec::new();
            for _ in 0..NUM_LAYERS {
                for (out_features, in_features) in SHAPES {
                    let weight = vec![0x3c_u8; out_features * in_features * 2];
                    let stored = StoredLinear {
                        weight: &weight,
                        bias: None,
                        dtype: SourceDType::BF16,
                        out_features,
                        in_features,
                    };
                    layers.push(kernels.pack(&stored, Layout::Plain, kind)?);
                }
            }
            let weights: usize = SHAPES.iter().map(|(outputs, inputs)| NUM_LAYERS * outputs * inputs).sum();
            let mut peak = 0.0_f64;
            let mut best = [const { [f64::INFINITY; NUM_LAYERS * SHAPES.len()] }; NUM_ROWS.len()];
            for _ in 0..NUM_ROUNDS {
                for (num_rows, best) in NUM_ROWS.into_iter().zip(&mut best) {
                    peak = peak.max(peak_flops(isa, kind)?);
                    let inputs =
                        [576, 1536].map(|width| Tensor::ones([num_rows as i64, width], (kind, Device::Cpu)));
                    for (layer, best) in layers.iter().zip(best) {
                        let x = &inputs[usize::from(layer.in_features() == 1536)];
                        let started = Instant::now();
                        let _ = kernels.linear(x, layer)?;
                        *best = best.min(started.elapsed().as_secs_f64());
                    }
                }
            }
            let peak = peak * num_threads as f64 / 1e9;
            print!("{:<12} {:<9} peak {peak:>6.0}", isa.name(), format!("{kind:?}"));
            for (num_rows, seconds) in NUM_ROWS.into_iter().zip(best) {
                let seconds: f64 = seconds.into_iter().sum();
                let flops = 2.0 * (num_rows * weights) as f64 / seconds / 1e9;
                print!("   {num_rows} rows {flops:>6.1} {:>3.0} %", 100.0 * flops / peak);
            }
            println!();
        }
    }
    Ok(())
}
