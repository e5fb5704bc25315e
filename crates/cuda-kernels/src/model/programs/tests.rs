use model_spec::Nonlinearity;

use super::*;
use crate::test_compile::{ARCHS, check, check_for};

fn config(kind: Kind, head_dim: u32, queries_per_group: u32) -> KernelConfig {
    KernelConfig { kind, head_dim, queries_per_group, has_fp8_kv: false, scores: ScoreKind::default() }
}

#[test]
fn pointwise_kernels_compile() {
    for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
        check(&config(kind, 128, 1).pointwise());
        check(&config(kind, 128, 1).reduce());
    }
    for (head_dim, queries_per_group) in [(16, 3), (80, 8), (256, 1)] {
        check(&config(Kind::BFloat16, head_dim, queries_per_group).pointwise());
    }
}

#[test]
fn gemms_compile_where_there_is_wgmma() {
    let [older, newer] = ARCHS;
    for (kind, weight_rows, activated) in [
        (Kind::BFloat16, 32, None),
        (Kind::Half, 176, Some((Nonlinearity::Silu, Gating::Gated))),
        (Kind::BFloat16, 240, Some((Nonlinearity::Gelu, Gating::Gated))),
        (Kind::BFloat16, 248, None),
    ] {
        let config = config(kind, 128, 1);
        check_for(&config.gemm(newer, weight_rows, activated).unwrap(), newer);
        assert!(config.gemm(older, weight_rows, activated).is_none());
    }
    assert!(config(Kind::Float, 128, 1).gemm(newer, 32, None).is_none());
}

#[test]
fn experts_compile() {
    for (kind, activation, rows) in [
        (Kind::BFloat16, (Nonlinearity::Silu, Gating::Gated), TileRows::Short),
        (Kind::BFloat16, (Nonlinearity::Silu, Gating::Gated), TileRows::Tall),
        (Kind::Half, (Nonlinearity::Gelu, Gating::Plain), TileRows::Tall),
        (Kind::Float, (Nonlinearity::Silu, Gating::Gated), TileRows::Short),
        (Kind::Float, (Nonlinearity::Gelu, Gating::Plain), TileRows::Tall),
    ] {
        check(&config(kind, 128, 8).moe(activation, rows));
    }
}

#[test]
fn fp8_compiles_where_there_is_wgmma() {
    let [older, newer] = ARCHS;
    let bf16 = config(Kind::BFloat16, 128, 1);
    check_for(&bf16.quantize(newer).unwrap(), newer);
    check_for(&config(Kind::Half, 128, 1).quantize(newer).unwrap(), newer);
    // One group, two that share rows and two that share columns, with the sums of one, two and four chains of products.
    for (num_rows, num_out) in [(1, 4_096), (64, 28_672), (256, 4_096), (256, 28_672), (8_192, 28_672)] {
        let shape = Fp8Shape::of(num_rows, num_out, 132);
        check_for(&bf16.gemm_fp8(newer, &shape).unwrap(), newer);
    }
    let shape = Fp8Shape::of(1, 64, 132);
    assert_eq!(
        bf16.gemm_fp8(older, &shape).unwrap_err().to_string(),
        "no kernels: the compute capability of the GPU for FP8 linear layers must be 9.0, not 8.0"
    );
    assert_eq!(
        config(Kind::Float, 128, 1).quantize(newer).unwrap_err().to_string(),
        "no kernels: the type beside FP8 linear layers must be bfloat16 or float16, not Float"
    );
}

#[test]
fn attention_compiles_for_all_kinds_of_heads() {
    for (kind, head_dim, queries_per_group) in [
        (Kind::BFloat16, 128, 1),
        (Kind::BFloat16, 80, 1),
        (Kind::BFloat16, 256, 8),
        (Kind::BFloat16, 64, 71),
        (Kind::Half, 96, 4),
        (Kind::Half, 16, 3),
        (Kind::Float, 128, 1),
    ] {
        let config = config(kind, head_dim, queries_per_group);
        config.check(ARCHS[0]).unwrap();
        check(&config.attention());
    }
}

#[test]
fn windows_and_capped_scores_compile() {
    let [_, newer] = ARCHS;
    for (is_capped, is_local) in [(true, false), (false, true), (true, true)] {
        for kind in [Kind::BFloat16, Kind::Float] {
            let plain = config(kind, 256, 2);
            let config = KernelConfig { scores: ScoreKind { is_capped, is_local }, ..plain };
            check(&config.attention());
            check_for(&KernelConfig { has_fp8_kv: true, ..config }.attention(), newer);
        }
    }
}

#[test]
fn an_fp8_cache_compiles_where_there_is_fp8() {
    let [older, newer] = ARCHS;
    for (kind, head_dim, queries_per_group) in
        [(Kind::BFloat16, 128, 1), (Kind::BFloat16, 80, 8), (Kind::Half, 48, 71), (Kind::Float, 128, 1)]
    {
        let config = KernelConfig { has_fp8_kv: true, ..config(kind, head_dim, queries_per_group) };
        config.check(newer).unwrap();
        check_for(&config.attention(), newer);
        check_for(&config.pointwise(), newer);
    }
    let config = KernelConfig { has_fp8_kv: true, ..config(Kind::BFloat16, 128, 1) };
    assert_eq!(
        config.check(older).unwrap_err().to_string(),
        "no kernels: the compute capability of the GPU for an FP8 KV cache must be 8.9 or later, not 8.0"
    );
}

#[test]
fn what_has_no_kernels_is_refused_by_name() {
    let refused = |config: KernelConfig| config.check(ARCHS[0]).unwrap_err().to_string();
    assert_eq!(
        refused(config(Kind::BFloat16, 72, 1)),
        "no kernels: `head_dim` must be a multiple of 16 up to 256, not 72"
    );
    assert_eq!(
        refused(config(Kind::Int, 64, 1)),
        "no kernels: the type must be bfloat16, float16 or float32, not Int"
    );
    assert_eq!(
        refused(config(Kind::Half, 64, 0)),
        "no kernels: `queries_per_group` must be from 1 to 1024, not 0"
    );
}
