//! Gates saved apart: with `singleton_local_shards` Megatron-Core stores the two halves of a gated `linear_fc1` as arrays of
//! their own, `weight_w` and `weight_v` (`apply_swiglu_sharded_factory` of `megatron/core/transformer/mlp.py`).

use crate::FormatError;
use crate::naming::is_weight;
use crate::pieced::Array;

const MODULE: &str = "linear_fc1.";
/// How names of the first and the second half end.
const ENDS: [&str; 2] = ["_w", "_v"];

/// The arrays with halves put together, in the order of the first ones.
pub(super) fn joined(arrays: Vec<Array>) -> Result<Vec<Array>, FormatError> {
    let [is_first, is_second] = ENDS.map(|end| move |array: &Array| whole_name(&array.name, end).is_some());
    if !arrays.iter().any(|array| is_first(array) || is_second(array)) {
        return Ok(arrays);
    }
    let (mut seconds, others): (Vec<_>, Vec<_>) = arrays.into_iter().partition(|array| is_second(array));
    let mut all = Vec::with_capacity(others.len());
    for array in others {
        let Some(name) = whole_name(&array.name, ENDS[0]) else {
            all.push(array);
            continue;
        };
        let other = format!("{name}{}", ENDS[1]);
        let second = seconds.iter().position(|second| second.name == other);
        let second = second.map(|idx| seconds.swap_remove(idx));
        let second = second.ok_or_else(|| missing(&array.name, &other))?;
        all.push(whole(name, array, second)?);
    }
    match seconds.first() {
        None => Ok(all),
        Some(second) => {
            let name = whole_name(&second.name, ENDS[1]).unwrap_or_default();
            Err(missing(&second.name, &format!("{name}{}", ENDS[0])))
        }
    }
}

/// `….linear_fc1.weight` of `….linear_fc1.weight_w`.
fn whole_name(name: &str, end: &str) -> Option<String> {
    let whole = name.strip_suffix(end)?;
    let (_, parameter) = whole.rsplit_once(MODULE)?;
    (matches!(parameter, "weight" | "bias") && is_weight(name)).then(|| whole.to_owned())
}

fn missing(name: &str, other: &str) -> FormatError {
    FormatError::bad_tensor(name, format!("its other half, `{other}`, is missing"))
}

fn whole(name: String, first: Array, second: Array) -> Result<Array, FormatError> {
    // Layers and experts may be counted by axes in front.
    let num_own = if name.ends_with("bias") { 1 } else { 2 };
    let axis = first.meta.shape.len().checked_sub(num_own);
    let (Some(axis), true) = (axis, first.meta == second.meta) else {
        let shown = |array: &Array| format!("{} {:?}", array.meta.dtype.name(), array.meta.shape);
        let reason = format!("its halves are {} and {}", shown(&first), shown(&second));
        return Err(FormatError::bad_tensor(&name, reason));
    };
    let Array { mut meta, mut pieces, .. } = first;
    let length = meta.shape.get(axis).copied().unwrap_or_default();
    let doubled = length
        .checked_mul(2)
        .ok_or_else(|| FormatError::bad_tensor(&name, format!("its halves have {length} rows each")))?;
    for dim in meta.shape.iter_mut().skip(axis).take(1) {
        *dim = doubled;
    }
    for mut piece in second.pieces {
        for offset in piece.offsets.iter_mut().skip(axis).take(1) {
            *offset = offset.saturating_add(length);
        }
        pieces.push(piece);
    }
    Ok(Array { name, meta, pieces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pieced::{Piece, PieceData};
    use crate::{DType, TensorMeta};

    fn array(name: &str, shape: &[u64]) -> Array {
        let data = PieceData::Strided { start_bytes: 0, strides_elems: vec![1; shape.len()] };
        let piece = Piece { offsets: vec![0; shape.len()], sizes: shape.to_vec(), member_idx: 0, data };
        let meta = TensorMeta { dtype: DType::BF16, shape: shape.to_vec() };
        Array { name: name.to_owned(), meta, pieces: vec![piece] }
    }

    #[test]
    fn halves_become_one_array() {
        let names = [
            "norm.weight",
            "decoder.layers.0.mlp.linear_fc1.weight_v",
            "decoder.layers.0.mlp.linear_fc1.weight_w",
        ];
        let found = joined(names.map(|name| array(name, &[4, 3])).to_vec()).unwrap();
        assert_eq!(
            found.iter().map(|array| array.name.as_str()).collect::<Vec<_>>(),
            ["norm.weight", "decoder.layers.0.mlp.linear_fc1.weight"]
        );
        assert_eq!(found[1].meta.shape, [8, 3]);
        let offsets = found[1].pieces.iter().map(|piece| piece.offsets.clone()).collect::<Vec<_>>();
        assert_eq!(offsets, [[0, 0], [4, 0]]);
        // Of all layers, and a bias.
        let stacked = ["decoder.layers.mlp.linear_fc1.weight_w", "decoder.layers.mlp.linear_fc1.weight_v"]
            .map(|name| array(name, &[2, 4, 3]));
        assert_eq!(joined(stacked.to_vec()).unwrap()[0].meta.shape, [2, 8, 3]);
        let biases = ["decoder.layers.0.mlp.linear_fc1.bias_w", "decoder.layers.0.mlp.linear_fc1.bias_v"]
            .map(|name| array(name, &[4]));
        assert_eq!(joined(biases.to_vec()).unwrap()[0].meta.shape, [8]);
    }

    #[test]
    fn a_half_alone_or_of_another_shape_is_an_error() {
        let of = |arrays: &[Array]| joined(arrays.to_vec()).unwrap_err().to_string();
        insta::assert_snapshot!(of(&[array("decoder.layers.0.mlp.linear_fc1.weight_w", &[4, 3])]), @"tensor `decoder.layers.0.mlp.linear_fc1.weight_w` is inconsistent: its other half, `decoder.layers.0.mlp.linear_fc1.weight_v`, is missing");
        insta::assert_snapshot!(of(&[array("decoder.layers.0.mlp.linear_fc1.weight_v", &[4, 3])]), @"tensor `decoder.layers.0.mlp.linear_fc1.weight_v` is inconsistent: its other half, `decoder.layers.0.mlp.linear_fc1.weight_w`, is missing");
        insta::assert_snapshot!(of(&[array("decoder.layers.0.mlp.linear_fc1.weight_w", &[4, 3]), array("decoder.layers.0.mlp.linear_fc1.weight_v", &[5, 3])]), @"tensor `decoder.layers.0.mlp.linear_fc1.weight` is inconsistent: its halves are bfloat16 [4, 3] and bfloat16 [5, 3]");
    }
}
