//! Sums against plain arithmetic, for every region and every kind of rows.

use std::collections::BTreeMap;

use model_spec::HeadLayout;
use proptest::prelude::*;

use super::*;
use crate::adapter_names::Rows;
use crate::{Region, TensorMeta};

const HIDDEN: u64 = 6;
const FFN: u64 = 5;
const HEADS: HeadLayout = HeadLayout { num_attention_heads: 4, num_query_groups: 2, kv_channels: 3 };

struct Memory(BTreeMap<String, (TensorMeta, Vec<u8>)>);

impl TensorSource for Memory {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.0.get(name).map(|(meta, _)| meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let (meta, bytes) = &self.0[name];
        crate::region::copy_region(name, meta, bytes, region, dst)
    }
}

fn base() -> BaseModel {
    BaseModel { name: "base".to_owned(), num_layers: 1, heads: HEADS, is_gated: true, is_tied: false }
}

/// Numbers that are exact in bf16 and whose sums show where they come from.
fn number(row: u64, column: u64, salt: u64) -> f32 {
    ((row * 31 + column * 17 + salt * 7) % 97) as f32 / 16.0 - 3.0
}

fn matrix_of(rows: u64, columns: u64, salt: u64) -> Matrix {
    let value = |at: u64| number(at / columns, at % columns, salt);
    Matrix { rows, columns, values: (0..rows * columns).map(value).collect() }
}

/// Outputs and inputs of the rows' part of a layer.
fn sizes(rows: Rows) -> (u64, u64) {
    let (query, key) = (HEADS.query_size() as u64, (HEADS.num_query_groups * HEADS.kv_channels) as u64);
    match rows {
        Rows::Qkv | Rows::StackedQkv => (HEADS.qkv_size() as u64, HIDDEN),
        Rows::Query => (query, HIDDEN),
        Rows::Key | Rows::Value => (key, HIDDEN),
        Rows::Proj => (HIDDEN, query),
        Rows::Fc1 => (2 * FFN, HIDDEN),
        Rows::Gate | Rows::Up => (FFN, HIDDEN),
        Rows::Fc2 => (HIDDEN, FFN),
        Rows::Output => (11, HIDDEN),
    }
}

/// The row of the weight that a row of the part is: written down once more, from Megatron-Core's order.
fn row_of(rows: Rows, row: u64) -> u64 {
    let (group, head, queries) = (4 * 3, 3, 2 * 3);
    let of_key = |row: u64, from: u64| row / head * group + queries + from * head + row % head;
    match rows {
        Rows::Query => row / queries * group + row % queries,
        Rows::Key => of_key(row, 0),
        Rows::Value => of_key(row, 1),
        Rows::StackedQkv if row < 12 => row_of(Rows::Query, row),
        Rows::StackedQkv if row < 18 => row_of(Rows::Key, row - 12),
        Rows::StackedQkv => row_of(Rows::Value, row - 18),
        Rows::Up => FFN + row,
        _ => row,
    }
}

fn pair(rows: Rows, rank: u64, scale: f32) -> Pair {
    let (outputs, inputs) = sizes(rows);
    let layer = (rows != Rows::Output).then_some(0);
    Pair {
        target: Target { layer, rows },
        name: rows.name().to_owned(),
        down: matrix_of(rank, inputs, 1),
        up: matrix_of(outputs, rank, 2),
        scale,
        alpha: None,
    }
}

fn adapter(pairs: Vec<Pair>) -> Adapter {
    Adapter { path: "adapter".to_owned(), format: "test", pairs, trained_on: None }
}

fn source(dtype: DType, rows: Rows) -> (String, Memory) {
    let whole = match rows {
        Rows::Query | Rows::Key | Rows::Value => Rows::Qkv,
        Rows::Gate | Rows::Up => Rows::Fc1,
        rows => rows,
    };
    let ((outputs, inputs), name) = (sizes(whole), pair(rows, 1, 1.0).target.weight());
    let values: Vec<u8> =
        matrix_of(outputs, inputs, 3).values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut bytes = vec![0; values.len() / 4 * dtype.size_bytes()];
    convert_into(&values, DType::F32, &mut bytes, dtype, 0.0);
    let meta = TensorMeta { dtype, shape: vec![outputs, inputs] };
    (name.clone(), Memory(BTreeMap::from([(name, (meta, bytes))])))
}

const ALL: [Rows; 11] = [
    Rows::Qkv,
    Rows::StackedQkv,
    Rows::Query,
    Rows::Key,
    Rows::Value,
    Rows::Proj,
    Rows::Fc1,
    Rows::Gate,
    Rows::Up,
    Rows::Fc2,
    Rows::Output,
];

proptest! {
    #[test]
    fn every_region_has_the_sum_of_its_elements(
        which in 0..ALL.len(), rank in 1_u64..4, ends in any::<[u64; 4]>(), is_bf16 in any::<bool>(),
    ) {
        let rows = ALL[which];
        let (name, memory) = source(if is_bf16 { DType::BF16 } else { DType::F32 }, rows);
        let mut adapted = AdaptedSource::new(memory, Precision::Float32);
        // Two adapters, one on top of the other.
        adapted.add(adapter(vec![pair(rows, rank, 0.5)]), &base()).unwrap();
        adapted.add(adapter(vec![pair(rows, rank + 1, 0.25)]), &base()).unwrap();
        let shape = adapted.meta(&name).unwrap().shape.clone();
        let range = |one: u64, two: u64, size: u64| {
            let (one, two) = (one % (size + 1), two % (size + 1));
            one.min(two)..one.max(two)
        };
        let region = Region { ranges: vec![range(ends[0], ends[1], shape[0]), range(ends[2], ends[3], shape[1])] };
        let mut bytes = vec![0; region.num_elems() as usize * 4];
        adapted.read(&name, &region, &mut bytes).unwrap();
        let actual = floats(&bytes, DType::F32);
        let (outputs, _) = sizes(rows);
        let update = |at: u64, column: u64, rank: u64| -> f64 {
            let Some(row) = (0..outputs).find(|&row| row_of(rows, row) == at) else { return 0.0 };
            (0..rank).map(|k| f64::from(number(row, k, 2)) * f64::from(number(k, column, 1))).sum()
        };
        let elements = region.ranges[0].clone().flat_map(|row| region.ranges[1].clone().map(move |column| (row, column)));
        for ((row, column), actual) in elements.zip(actual) {
            let expected = f64::from(number(row, column, 3)) + 0.5 * update(row, column, rank)
                + 0.25 * update(row, column, rank + 1);
            prop_assert!((f64::from(actual) - expected).abs() < 1e-4, "{row} {column}: {actual} {expected}");
        }
    }
}

/// bf16 has 8 bits: 1 and two times 0.003 is 1 where each sum is rounded, and 1.0078125 where the last is.
#[test]
fn sums_are_rounded_once() {
    let one = Matrix { rows: 1, columns: 1, values: vec![1.0] };
    let small = || Pair {
        target: Target { layer: Some(0), rows: Rows::Fc2 },
        name: "x".to_owned(),
        down: one.clone(),
        up: one.clone(),
        scale: 0.003,
        alpha: None,
    };
    let name = small().target.weight();
    let meta = TensorMeta { dtype: DType::BF16, shape: vec![1, 1] };
    let memory = Memory(BTreeMap::from([(name.clone(), (meta, vec![0x80, 0x3f]))]));
    let mut adapted = AdaptedSource::new(memory, Precision::Stored);
    for _ in 0..2 {
        adapted.add(adapter(vec![small()]), &base()).unwrap();
    }
    assert_eq!(floats(&adapted.read_whole(&name).unwrap(), DType::BF16), [1.007_812_5]);
}

#[test]
fn what_does_not_fit_says_what_was_found_and_needed() {
    let message = |pairs: Vec<Pair>, rows: Rows, base: &BaseModel| {
        let (_, memory) = source(DType::F32, rows);
        AdaptedSource::new(memory, Precision::Float32).add(adapter(pairs), base).unwrap_err().to_string()
    };
    let mut wide = pair(Rows::Query, 2, 1.0);
    wide.down = matrix_of(2, HIDDEN + 1, 1);
    insta::assert_snapshot!(message(vec![wide], Rows::Qkv, &base()), @"`adapter` is an adapter of another model: its `q of linear_qkv` is for 12 outputs of 7 inputs, and `base` has 12 of 6 there (`model.decoder.layers.0.self_attention.linear_qkv.weight`)");
    let deep = Pair { target: Target { layer: Some(7), rows: Rows::Fc2 }, ..pair(Rows::Fc2, 2, 1.0) };
    insta::assert_snapshot!(message(vec![deep], Rows::Fc2, &base()), @"`adapter` is an adapter of another model: its `linear_fc2` is for `model.decoder.layers.7.mlp.linear_fc2.weight`, and `base` has 1 layers and no such tensor");
    let tied = BaseModel { is_tied: true, ..base() };
    insta::assert_snapshot!(message(vec![pair(Rows::Output, 2, 1.0)], Rows::Output, &tied), @"`adapter` is an adapter of another model: its `output_layer` is for `model.output_layer.weight`, and `base` has 1 layers and no such tensor");
    let mut ranks = pair(Rows::Fc2, 2, 1.0);
    ranks.up = matrix_of(HIDDEN, 3, 2);
    insta::assert_snapshot!(message(vec![ranks], Rows::Fc2, &base()), @"tensor `linear_fc2` is inconsistent: its factors in `adapter` have the ranks 2 and 3");
    let twice = vec![pair(Rows::Qkv, 2, 1.0), pair(Rows::Key, 2, 1.0)];
    insta::assert_snapshot!(message(twice, Rows::Qkv, &base()), @"tensor `model.decoder.layers.0.self_attention.linear_qkv.weight` is inconsistent: `adapter` has an update of linear_qkv and one of k of linear_qkv, which overlap");
}

#[test]
fn the_fingerprint_is_that_of_what_is_added() {
    let fingerprint = |pairs: Vec<Pair>| AdapterSummary::of(&adapter(pairs)).fingerprint().to_owned();
    let two = || vec![pair(Rows::Query, 2, 1.0), pair(Rows::Fc2, 2, 1.0)];
    let swapped = two().into_iter().rev().collect();
    assert_eq!(fingerprint(two()), fingerprint(swapped));
    let mut scaled = two();
    scaled[0].scale = 2.0;
    let mut other = two();
    other[1].up.values[0] += 1.0;
    let stacked =
        |rows| fingerprint(vec![Pair { target: Target { layer: Some(0), rows }, ..pair(Rows::Qkv, 1, 1.0) }]);
    assert_ne!(fingerprint(two()), fingerprint(scaled));
    assert_ne!(fingerprint(two()), fingerprint(other));
    assert_ne!(stacked(Rows::Qkv), stacked(Rows::StackedQkv));
}
