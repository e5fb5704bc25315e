//! How long the kernels take, replayed as CUDA graphs, and what part of the memory's speed they reach.

use cuda_kernels::{
    Activate, DecodeAttentionQkv, DecodePlan, E4M3, Fp8Out, Gating, GemmFp8, KernelError, LayerKv, Normalize,
    NormalizeFp8, PlanDecode, PlanSizes, QuantizeRows, RotaryArrays, RunMoe, Sample, SampleRules,
    SamplerScratch, SamplerState,
};
use cuda_runtime::{Event, Graph, Stream};
use model_spec::{Nonlinearity, Normalization};
use tch::{Kind, Tensor};

use crate::cases::say;
use crate::fp8::Fp8Rows;
use crate::moe;
use crate::pointwise::rotary_tables;
use crate::ranks;
use crate::support::{Checked, Gpu, Heads};

const NUM_REPLAYS: u32 = 20;

/// Microseconds of one replay of what `body` enqueues.
pub(crate) fn micros(
    gpu: &Gpu,
    body: impl Fn(&Stream) -> Result<(), KernelError>,
) -> Result<f64, Box<dyn std::error::Error>> {
    let stream = Stream::new(&gpu.device)?;
    gpu.device.synchronize()?;
    body(&stream)?;
    stream.synchronize()?;
    let graph = Graph::capture(&stream, || body(&stream))?;
    let (start, end) = (Event::new(&gpu.device)?, Event::new(&gpu.device)?);
    let mut times = Vec::new();
    for _ in 0..5 {
        start.record(&stream)?;
        for _ in 0..NUM_REPLAYS {
            graph.replay(&stream)?;
        }
        end.record(&stream)?;
        end.synchronize()?;
        times.push(f64::from(start.elapsed_ms(&end)?) * 1e3 / f64::from(NUM_REPLAYS));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// A layer of experts, and what part of the memory's speed reading the weights of the experts that were hit is.
fn experts(gpu: &Gpu) -> Checked {
    let shape = moe::QWEN3_30B;
    let kernels = moe::kernels(gpu, &shape)?;
    let layer = moe::Layer::new(gpu, &shape)?;
    for num_rows in [1_i64, 8, 64, 256, 2_048] {
        let x = gpu.random(&[num_rows, shape.hidden], shape.kind)?;
        let residual = gpu.random(&[num_rows, shape.hidden], shape.kind)?;
        let time = micros(gpu, |stream| {
            let _current = stream.as_current()?;
            let run = RunMoe { x: &x, residual: &residual, weights: &layer.weights, shared: None };
            kernels.run(stream, &run)
        })?;
        let missed = (1.0 - shape.topk as f64 / shape.num_experts as f64).powf(num_rows as f64);
        let hit = shape.num_experts as f64 * (1.0 - missed);
        let bytes = hit * 3.0 * (shape.ffn * shape.hidden * 2) as f64;
        say(&format!(
            "experts of Qwen3-30B-A3B, {num_rows} rows: {time:.1} us, about {hit:.0} experts, {:.0} GB/s",
            bytes / time / 1e3
        ));
    }
    Ok(())
}

/// A name and what is timed.
type Table = (&'static str, fn(&Gpu) -> Checked);

const TABLES: &[Table] = &[
    ("ranks", ranks::times),
    ("experts", experts),
    ("copy", device_copy),
    ("attention", attentions),
    ("fp8", fp8_gemms),
    ("rows_to_fp8", rows_to_fp8),
    ("pointwise", pointwise),
    ("sampling", sampling),
];

/// Prints the tables that are named, or all.
pub(crate) fn tables(gpu: &Gpu, wanted: &[String]) -> Checked {
    if let Some(unknown) = wanted.iter().find(|name| !TABLES.iter().any(|(known, _)| known == name)) {
        let known: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
        let known = known.join(", ");
        return Err(format!("no table is called `{unknown}`; there are {known}").into());
    }
    TABLES
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name))
        .try_for_each(|(_, table)| table(gpu))
}

fn device_copy(gpu: &Gpu) -> Checked {
    let from = gpu.random(&[1 << 29], Kind::BFloat16)?;
    let to = from.f_empty_like()?;
    let time = micros(gpu, |stream| {
        let _current = stream.as_current()?;
        to.shallow_clone().f_copy_(&from)?;
        Ok(())
    })?;
    say(&format!("device copy: {:.0} GB/s read and written", 4.0 * f64::from(1 << 29) / time / 1e3));
    Ok(())
}

fn attentions(gpu: &Gpu) -> Checked {
    for (groups, queries, rows, context) in [
        (32, 1, 64, 512),
        (16, 1, 256, 512),
        (16, 1, 128, 1024),
        (32, 1, 16, 2048),
        (8, 4, 64, 1024),
        (8, 4, 256, 512),
        (32, 1, 1, 512),
        (16, 1, 1, 512),
    ] {
        attention(gpu, heads(groups, queries), rows, context, 0)?;
        attention(gpu, heads(groups, queries).with_fp8_kv(), rows, context, 0)?;
    }
    for shared_blocks in [0, 32] {
        attention(gpu, heads(32, 1), 8, 1100, shared_blocks)?;
        attention(gpu, heads(32, 1), 64, 1100, shared_blocks)?;
    }
    Ok(())
}

/// The layers of Llama 3 8B in FP8; as many weights as the L2 cache cannot hold.
fn fp8_gemms(gpu: &Gpu) -> Checked {
    let kernels = gpu.kernels(Kind::BFloat16, 128, 1)?;
    // Of zeros they would take less power, and less time.
    let e4m3 = |shape: [i64; 2]| {
        Ok::<_, Box<dyn std::error::Error>>(gpu.random(&shape, Kind::BFloat16)?.f_to_kind(E4M3)?)
    };
    for [num_out, num_in] in [[6_144, 4_096], [4_096, 4_096], [28_672, 4_096], [4_096, 14_336]] {
        kernels.load_fp8(num_out, num_in)?;
        let weight_scales = gpu.random(&[num_out], Kind::Float)?;
        let weights = (0..(1 << 29) / (num_out * num_in) + 1)
            .map(|_| e4m3([num_out, num_in]))
            .collect::<Result<Vec<Tensor>, _>>()?;
        for num_rows in [1, 8, 32, 64, 256, 1_024, 8_192] {
            let (x, x_scales) = (e4m3([num_rows, num_in])?, gpu.random(&[num_rows], Kind::Float)?);
            let out = gpu.zeros(&[num_rows, num_out], Kind::BFloat16)?;
            let time = micros(gpu, |stream| {
                weights.iter().try_for_each(|weight| {
                    let (x, x_scales, weight_scales) = (&x, &x_scales, &weight_scales);
                    let out = Fp8Out::Rounded(&out);
                    kernels.gemm_fp8(
                        stream,
                        &GemmFp8 { x, x_start: 0, x_scales, weight, weight_scales, bias: None, out },
                    )
                })
            })? / weights.len() as f64;
            let bytes = (num_out * num_in) as f64;
            say(&format!(
                "FP8 GEMM, {num_out} x {num_in}, {num_rows} rows: {time:.1} us, {:.0} GB/s, {:.0} TFLOP/s",
                bytes / time / 1e3,
                2.0 * bytes * num_rows as f64 / time / 1e6
            ));
        }
    }
    Ok(())
}

fn heads(groups: i64, queries: i64) -> Heads {
    Heads::new(Kind::BFloat16, 128, queries, groups)
}

/// Neighbours in groups of 8 share their first blocks.
fn attention(gpu: &Gpu, heads: Heads, rows: i64, context: i64, shared_blocks: i64) -> Checked {
    const NUM_LAYERS: i64 = 8;
    let Heads { head_dim: d, queries, groups, .. } = heads;
    let kernels = gpu.kernels_for(&heads)?;
    let width = (context + 31) / 32;
    let num_blocks = rows * width;
    let elems = gpu.zeros(&[num_blocks, groups, 32, d], Kind::BFloat16)?.f_normal_(0.0, 1.0)?;
    let caches = (0..NUM_LAYERS)
        .map(|_| Ok([heads.cached(&elems)?, heads.cached(&elems)?]))
        .collect::<Result<Vec<[Tensor; 2]>, Box<dyn std::error::Error>>>()?;
    let block_tables =
        Tensor::f_randperm(num_blocks, (Kind::Int, tch::Device::Cpu))?.f_reshape([rows, width])?;
    let mut pairs = Vec::new();
    for row in 0..rows {
        let first = if shared_blocks > 0 { row / 8 * 8 } else { row };
        let shared = block_tables.f_get(first)?.f_narrow(0, 0, shared_blocks)?.f_detach_copy()?;
        block_tables.f_get(row)?.f_narrow(0, 0, shared_blocks)?.f_copy_(&shared)?;
        pairs.extend([first as i32, shared_blocks as i32]);
    }
    let block_tables = gpu.put(&block_tables)?;
    let prefix_groups = gpu.ints(&pairs, &[rows, 2])?;
    let positions = gpu.zeros(&[rows], Kind::Int)?.f_add_scalar(context - 1)?;
    let plan = DecodePlan::new(
        &kernels,
        &gpu.device,
        PlanSizes { max_rows: rows, max_blocks: width, num_groups: groups, local_tokens: None },
    )?;
    let qkv = gpu.random(&[rows, groups * (queries + 2) * d], Kind::BFloat16)?;
    let out = gpu.unset(&[rows, groups * queries, d], Kind::BFloat16)?;
    let [cos, sin] = rotary_tables(gpu, context, d)?;
    let plan_step = PlanDecode {
        positions: &positions,
        block_tables: &block_tables,
        prefix_groups: Some(&prefix_groups),
        num_blocks,
        plan: &plan,
    };
    let time = micros(gpu, |stream| {
        kernels.plan_decode(stream, &plan_step)?;
        for [keys, values] in &caches {
            let step = DecodeAttentionQkv {
                qkv: &qkv,
                rotary: Some(RotaryArrays { cos: &cos, sin: &sin }),
                cache: LayerKv { keys, values },
                block_tables: &block_tables,
                plan: &plan,
                scale: 0.088_388_35,
                softcap: None,
                out: &out,
            };
            kernels.decode_attention_qkv(stream, &step)?;
        }
        Ok(())
    })? / NUM_LAYERS as f64;
    let num_keys = rows * context - (rows - rows / 8) * shared_blocks * 32;
    let head_bytes = if heads.has_fp8_kv { d + 1 } else { 2 * d };
    let bytes = (num_keys * groups * 2 * head_bytes) as f64;
    let cached = if heads.has_fp8_kv { "FP8" } else { "bf16" };
    say(&format!(
        "attention, {cached} cache, {groups} groups of {queries}, {rows} rows, context {context}, {shared_blocks} blocks shared: {time:.1} us a layer, {:.0} GB/s",
        bytes / time / 1e3
    ));
    Ok(())
}

fn pointwise(gpu: &Gpu) -> Checked {
    const NUM_CALLS: i32 = 20;
    let kernels = gpu.kernels(Kind::BFloat16, 128, 1)?;
    let (width, ffn) = (4096, 11_008);
    for rows in [1, 64, 256] {
        let random = |columns: i64| gpu.random(&[rows, columns], Kind::BFloat16);
        let (x, out) = (random(width)?, random(width)?);
        let (gated, activated) = (random(2 * ffn)?, random(ffn)?);
        let gain = gpu.random(&[width], Kind::Float)?;
        let norm = Normalize {
            normalization: Normalization::RmsNorm,
            x: &x,
            gain: &gain,
            bias: None,
            eps: 1e-5,
            out: &out,
        };
        let activate =
            Activate { activation: Nonlinearity::Silu, gating: Gating::Gated, x: &gated, out: &activated };
        let norm = micros(gpu, |stream| (0..NUM_CALLS).try_for_each(|_| kernels.norm(stream, &norm)))?;
        let activate =
            micros(gpu, |stream| (0..NUM_CALLS).try_for_each(|_| kernels.activate(stream, &activate)))?;
        let [norm, activate] = [norm, activate].map(|time| time / f64::from(NUM_CALLS));
        say(&format!(
            "{rows} rows: norm of {width} {norm:.2} us, gated activation of {ffn} {activate:.2} us"
        ));
    }
    Ok(())
}

/// A norm of 8B with rows made FP8 behind it, by one kernel and by two.
fn rows_to_fp8(gpu: &Gpu) -> Checked {
    const NUM_CALLS: i32 = 20;
    let kernels = gpu.kernels(Kind::BFloat16, 128, 1)?;
    let width = 4096;
    kernels.load_fp8(width, width)?;
    for rows in [1, 8, 64, 256, 1_024, 8_192] {
        let random = |columns: i64| gpu.random(&[rows, columns], Kind::BFloat16);
        let (x, out) = (random(width)?, random(width)?);
        let narrow = Fp8Rows::unset(gpu, &[rows, width])?;
        let gain = &gpu.random(&[width], Kind::Float)?;
        let (normalization, bias, eps, x) = (Normalization::RmsNorm, None, 1e-5, &x);
        let norm = Normalize { normalization, x, gain, bias, eps, out: &out };
        let norm_fp8 = NormalizeFp8 { normalization, x, gain, bias, eps, out: narrow.out() };
        let time = |body: &dyn Fn(&Stream) -> Result<(), KernelError>| {
            let time = micros(gpu, |stream| (0..NUM_CALLS).try_for_each(|_| body(stream)))?;
            Ok::<_, Box<dyn std::error::Error>>(time / f64::from(NUM_CALLS))
        };
        let norm_apart = time(&|stream| {
            kernels.norm(stream, &norm)?;
            kernels.quantize_rows(stream, &QuantizeRows { x: &out, out: narrow.out() })
        })?;
        let norm_fused = time(&|stream| kernels.norm_fp8(stream, &norm_fp8))?;
        say(&format!(
            "{rows} rows to FP8 behind a norm of {width}: {norm_fused:.2} us in one kernel, {norm_apart:.2} in two"
        ));
    }
    Ok(())
}

fn sampling(gpu: &Gpu) -> Checked {
    let kernels = gpu.sampler_kernels()?;
    for (rows, vocab_size) in
        [(1, 32_000), (1, 256_000), (64, 32_000), (256, 32_000), (64, 128_256), (256, 256_000)]
    {
        let logits = gpu.random(&[rows, vocab_size], Kind::Float)?.f_mul_scalar(3.0)?;
        let [tokens, positions, num_generated, response_idxs] = [0; 4].map(|_| gpu.zeros(&[rows], Kind::Int));
        let state = SamplerState {
            tokens: &tokens?,
            positions: &positions?,
            num_generated: &num_generated?,
            sample_idxs: &gpu.zeros(&[rows], Kind::Int64)?,
            response_idxs: &response_idxs?,
            seen: None,
            row_rules: None,
        };
        let seen = gpu.zeros(&[rows, (vocab_size + 31) / 32], Kind::Int)?;
        // The program for rows with rules of their own, with those of the run.
        let row_rules = gpu.zeros(&[rows, sampling::ROW_RULE_WORDS as i64], Kind::Int)?;
        let with_own = SamplerState { seen: Some(&seen), row_rules: Some(&row_rules), ..state };
        let scratch = SamplerScratch::new(&gpu.device, rows, vocab_size)?;
        let out = gpu.zeros(&[rows, 4], Kind::Int)?;
        let base = SampleRules {
            use_greedy: false,
            temperature: 0.8,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            compute_logprob: false,
            min_length: 0,
            seed: 1,
            vocab_size,
        };
        let mut facts = Vec::new();
        for (name, rules, state) in [
            ("greedy", SampleRules { use_greedy: true, ..base }, state),
            ("temperature", base, state),
            ("with log-probability", SampleRules { compute_logprob: true, ..base }, state),
            ("top_k", SampleRules { top_k: Some(50), ..base }, state),
            ("top_p", SampleRules { top_p: Some(0.9), ..base }, state),
            ("min_p", SampleRules { min_p: Some(0.1), ..base }, state),
            ("rows' own rules", base, with_own),
            ("rows' own rules, top_p", SampleRules { top_p: Some(0.9), ..base }, with_own),
        ] {
            let sample = Sample {
                logits: &logits,
                rules: &rules,
                end_token_ids: None,
                bias: None,
                masks: None,
                forced: None,
                state,
                scratch: &scratch,
                admissions: None,
                out: &out,
            };
            facts.push(format!("{name} {:.1}", micros(gpu, |stream| kernels.sample(stream, &sample))?));
        }
        say(&format!("sampling, {rows} rows of {vocab_size}, us: {}", facts.join(", ")));
    }
    Ok(())
}
