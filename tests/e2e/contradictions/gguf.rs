//! Metadata of GGUF files that contradicts their tensors or itself; what counts is what llama.cpp does.

use nemo_format::{Checkpoint, ConvertOptions, convert_checkpoint};

use super::files::{Meta, Tensor, write_gguf};
use crate::support::fixture;

const VOCAB: u64 = 420;
const HIDDEN: u64 = 16;
const FFN: u64 = 24;
/// Long enough for every part of Llama 3.1's rule.
const ROPE_BASE: f32 = 500_000.0;

fn keys() -> Vec<(&'static str, Meta)> {
    vec![
        ("general.architecture", Meta::Text("llama")),
        ("general.type", Meta::Text("model")),
        ("llama.block_count", Meta::U32(1)),
        ("llama.embedding_length", Meta::U32(HIDDEN as u32)),
        ("llama.feed_forward_length", Meta::U32(FFN as u32)),
        ("llama.context_length", Meta::U32(64)),
        ("llama.attention.head_count", Meta::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("llama.rope.freq_base", Meta::F32(ROPE_BASE)),
        ("llama.rope.dimension_count", Meta::U32(HIDDEN as u32)),
        ("llama.vocab_size", Meta::U32(VOCAB as u32)),
    ]
}

fn tensors() -> Vec<Tensor> {
    let value = |at: usize| (at % 13) as f32 / 13.0 - 0.5;
    [
        ("token_embd.weight", vec![VOCAB, HIDDEN]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.attn_k.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.attn_v.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.attn_output.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_gate.weight", vec![FFN, HIDDEN]),
        ("blk.0.ffn_up.weight", vec![FFN, HIDDEN]),
        ("blk.0.ffn_down.weight", vec![HIDDEN, FFN]),
        ("output_norm.weight", vec![HIDDEN]),
    ]
    .into_iter()
    .map(|(name, shape)| Tensor::f32(name, &shape, value))
    .collect()
}

/// By what llama.cpp's converter says each frequency is divided.
fn rope_freqs(factor: f32) -> Tensor {
    let (low, high) = (8192.0, 8192.0 / 4.0);
    Tensor::f32("rope_freqs.weight", &[HIDDEN / 2], move |at| {
        let wavelength = std::f64::consts::TAU * f64::from(ROPE_BASE).powf(2.0 * at as f64 / HIDDEN as f64);
        let smooth = (8192.0 / wavelength - 1.0) / 3.0;
        if wavelength < high {
            1.0
        } else if wavelength > low {
            factor
        } else {
            (1.0 / ((1.0 - smooth) / f64::from(factor) + smooth)) as f32
        }
    })
}

/// The value of `key` in the result, and the notes; or the error.
fn convert(extra: &[(&'static str, Meta)], more: Vec<Tensor>, key: &str) -> Result<(String, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.nemo"));
    let mut keys = keys();
    keys.retain(|(key, _)| extra.iter().all(|(other, _)| other != key));
    keys.extend_from_slice(extra);
    let mut tensors = tensors();
    tensors.extend(more);
    write_gguf(&input, &keys, &tensors);
    let tokenizer = Some(fixture("hf_llama/tokenizer.model"));
    let options = ConvertOptions { tokenizer, ..ConvertOptions::default() };
    let report = convert_checkpoint(&input, &output, &options)
        .map_err(|error| error.to_string().replace(&input.display().to_string(), "FILE"))?;
    let checkpoint = Checkpoint::open(&output).unwrap();
    assert_eq!(checkpoint.tensors().names().count(), 8);
    let value =
        checkpoint.model_config().get(key).map_or_else(|| "absent".to_owned(), |value| value.to_yaml());
    let notes: Vec<String> = report.notes.iter().map(ToString::to_string).collect();
    Ok((value.trim().to_owned(), notes.join("\n")))
}

#[test]
fn linear_scaling_in_all_its_spellings() {
    const KEY: &str = "seq_len_interpolation_factor";
    let factor = ("llama.rope.scaling.factor", Meta::F32(4.0));
    let kind = |kind| ("llama.rope.scaling.type", Meta::Text(kind));
    let old = ("llama.rope.scale_linear", Meta::F32(4.0));
    let check = |extra: &[(&'static str, Meta)], expect: &str| {
        let (value, notes) = convert(extra, Vec::new(), KEY).unwrap();
        assert_eq!(value, expect);
        notes
    };
    assert_eq!(check(&[], "absent"), "");
    for extra in [
        vec![factor.clone()],
        vec![factor.clone(), kind("linear")],
        vec![old.clone()],
        vec![old.clone(), factor.clone()],
    ] {
        assert_eq!(check(&extra, "4.0"), "");
    }
    assert_eq!(check(&[("llama.rope.scaling.factor", Meta::F32(0.0))], "absent"), "");
    assert_eq!(check(&[kind("linear")], "absent"), "");
    insta::assert_snapshot!(check(&[factor.clone(), kind("none")], "absent"), @"`llama.rope.scaling.type` none, as in llama.cpp, is used and `llama.rope.scaling.factor` is not: it is 4");
    let error = |extra: &[(&'static str, Meta)]| convert(extra, Vec::new(), KEY).unwrap_err();
    insta::assert_snapshot!(error(&[factor.clone(), kind("yarn")]), @"`llama.rope.scaling.type` `yarn` in `FILE` cannot be read: supported types are `none`, `linear` and Llama 3.1's");
    insta::assert_snapshot!(error(&[factor.clone(), ("llama.rope.scale_linear", Meta::F32(2.0))]), @"`FILE` is not a model configuration: metadata key `llama.rope.scale_linear` is 2 and `llama.rope.scaling.factor`, its newer name, is 4");
    insta::assert_snapshot!(error(&[("llama.rope.scaling.factor", Meta::F32(-2.0))]), @"`FILE` is not a model configuration: metadata key `llama.rope.scaling.factor` is -2, expected a number above 0");
}

#[test]
fn llama_3_rules_of_any_factor_are_found_in_the_tensor() {
    let check = |factor| convert(&[], vec![rope_freqs(factor)], "rope_scaling").unwrap();
    let (scaling, notes) = check(32.0);
    assert!(scaling.contains("factor: 32.0\n"), "{scaling}");
    assert_eq!(notes, "");
    assert_eq!(check(8.0), ("absent".to_owned(), String::new()));
    let ones = Tensor::f32("rope_freqs.weight", &[HIDDEN / 2], |_| 1.0);
    let (value, _) = convert(&[], vec![ones], "scale_positional_embedding").unwrap();
    assert_eq!(value, "false");
}

#[test]
fn a_tensor_of_frequencies_and_keys_of_scaling() {
    let factor = [("llama.rope.scaling.factor", Meta::F32(4.0))];
    let error = convert(&factor, vec![rope_freqs(32.0)], "x").unwrap_err();
    insta::assert_snapshot!(error, @"tensor `rope_freqs.weight` of `FILE` beside `llama.rope.scaling.factor`, which is 4, cannot be read: llama.cpp applies both, which no configuration of the result says; remove one with `gguf_new_metadata.py --remove-metadata` of the gguf package if it is there by mistake");
    let uneven = Tensor::f32("rope_freqs.weight", &[HIDDEN / 2], |at| [1.0, 9.0, 2.0, 5.0][at % 4]);
    let error = convert(&[], vec![uneven], "x").unwrap_err();
    insta::assert_snapshot!(error, @"tensor `rope_freqs.weight` of `FILE` cannot be read: its values are those of no factor and lengths under Llama 3.1's frequency rule");
    let long = Tensor::f32("rope_factors_long.weight", &[HIDDEN / 2], |_| 1.0);
    let error = convert(&[], vec![long], "x").unwrap_err();
    assert!(error.starts_with("tensor `rope_factors_long.weight` of `FILE` cannot be read"), "{error}");
}

#[test]
fn keys_that_change_the_arithmetic_are_refused_by_name() {
    for (key, value) in [
        ("llama.attention.scale", Meta::F32(0.1)),
        ("llama.attention.clamp_kqv", Meta::F32(8.0)),
        ("llama.attention.causal", Meta::Bool(false)),
        ("llama.attention.max_alibi_bias", Meta::F32(8.0)),
        ("llama.attention.value_length", Meta::U32(8)),
        ("llama.attention.temperature_scale", Meta::F32(0.1)),
        ("llama.rope.dimension_count", Meta::U32(8)),
        ("llama.rope.dimension_sections", Meta::U32(8)),
        ("llama.rope.freq_base_swa", Meta::F32(1000.0)),
        ("llama.rope.scaling.attn_factor", Meta::F32(1.2)),
        ("llama.rope.scaling.yarn_log_multiplier", Meta::F32(0.1)),
        ("llama.logit_scale", Meta::F32(0.25)),
        ("llama.embedding_scale", Meta::F32(12.0)),
        ("llama.residual_scale", Meta::F32(0.22)),
        ("llama.final_logit_softcapping", Meta::F32(30.0)),
        ("llama.use_parallel_residual", Meta::Bool(true)),
        ("llama.expert_count", Meta::U32(8)),
    ] {
        let error = convert(&[(key, value)], Vec::new(), "x").unwrap_err();
        assert!(error.contains(&format!("`{key}`")), "{error}");
    }
    let neutral = [
        ("llama.attention.scale", Meta::F32(0.25)),
        ("llama.attention.clamp_kqv", Meta::F32(0.0)),
        ("llama.attention.causal", Meta::Bool(true)),
        ("llama.attention.max_alibi_bias", Meta::F32(0.0)),
        ("llama.rope.scaling.attn_factor", Meta::F32(1.0)),
        ("llama.rope.scaling.finetuned", Meta::Bool(true)),
        ("llama.rope.scaling.original_context_length", Meta::U32(64)),
        ("llama.logit_scale", Meta::F32(1.0)),
        ("llama.use_parallel_residual", Meta::Bool(false)),
        ("llama.expert_count", Meta::U32(0)),
        ("llama.tensor_data_layout", Meta::Text("Meta AI original pth")),
    ];
    assert_eq!(convert(&neutral, Vec::new(), "num_layers").unwrap(), ("1".to_owned(), String::new()));
}

#[test]
fn a_window_limits_the_length() {
    let window = [("llama.attention.sliding_window", Meta::U32(48))];
    let (length, notes) = convert(&window, Vec::new(), "encoder_seq_length").unwrap();
    assert_eq!(length, "48");
    assert!(notes.starts_with("attention of the original reaches back 48 tokens"), "{notes}");
    assert_eq!(convert(&window, Vec::new(), "huggingface.sliding_window").unwrap().0, "48");
}

#[test]
fn sizes_and_strangers_are_named() {
    let (_, notes) = convert(&[("llama.vocab_size", Meta::U32(500))], Vec::new(), "x").unwrap();
    insta::assert_snapshot!(notes, @"`token_embd.weight`, which has 420 rows, is used and `llama.vocab_size` is not: it is 500");
    let strangers = [
        ("llama.pooling_type", Meta::U32(2)),
        ("llama.tensor_data_layout", Meta::Text("reference")),
        ("training.steps", Meta::U32(2)),
        ("general.sampling.temp", Meta::F32(0.5)),
    ];
    insta::assert_snapshot!(convert(&strangers, Vec::new(), "x").unwrap().1, @r"
    keys of `in.gguf` that are not understood and not used: `llama.pooling_type`, `llama.tensor_data_layout`, `training.steps`
    values of `in.gguf` that are not used: `temp 0.5`; set `model.generation.sampling_params` to sample so
    ");
    insta::assert_snapshot!(convert(&[("general.type", Meta::Text("adapter"))], Vec::new(), "x").unwrap_err(), @"`FILE`, a GGUF file of `general.type` `adapter`, cannot be read: give the GGUF file of the model itself, with adapters merged into it");
    insta::assert_snapshot!(convert(&[("adapter.type", Meta::Text("lora"))], Vec::new(), "x").unwrap_err(), @"`FILE`, an adapter (LoRA) without its model, cannot be read: give the GGUF file of the model itself, with adapters merged into it");
    insta::assert_snapshot!(convert(&[("split.count", Meta::U32(3))], Vec::new(), "x").unwrap_err(), @"`FILE`, one of 3 parts of a model, cannot be read: join the parts with llama.cpp's `llama-gguf-split --merge` first");
    let extra = Tensor::f32("blk.0.attn_sinks.weight", &[1], |_| 1.0);
    assert!(convert(&[], vec![extra], "x").unwrap_err().contains("tensor `blk.0.attn_sinks.weight`"));
}
