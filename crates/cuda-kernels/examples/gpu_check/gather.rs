//! Reading cached keys and values back, against libtorch's indexing.

use cuda_kernels::{GatherCache, LayerKv, UNSEEN_SLOT};
use tch::{Kind, Tensor};

use crate::cases::{Outcome, ensure};
use crate::support::{Checked, Gpu, Heads, same};

pub(crate) fn all_kinds(gpu: &Gpu) -> Outcome {
    let mut num_cases = 0;
    for (kind, head_dim) in
        [(Kind::BFloat16, 128), (Kind::BFloat16, 16), (Kind::Half, 80), (Kind::Float, 128), (Kind::Float, 48)]
    {
        for groups in [1, 3, 8] {
            let heads = Heads::new(kind, head_dim, 1, groups);
            for heads in [heads, heads.with_fp8_kv()] {
                check(gpu, &heads)
                    .map_err(|error| format!("{kind:?}, {groups} groups of {head_dim}: {error}"))?;
                num_cases += 1;
            }
        }
    }
    Ok(format!("{num_cases} shapes"))
}

fn check(gpu: &Gpu, heads: &Heads) -> Checked {
    let &Heads { kind, head_dim, groups, .. } = heads;
    let kernels = gpu.kernels_for(heads)?;
    let [keys, values] = [(); 2].map(|()| gpu.random(&[9, groups, 32, head_dim], kind));
    let (keys, values) = (heads.cached(&keys?)?, heads.cached(&values?)?);
    // Two sequences, the second of which does not fill its block, and slots that are none.
    let of_blocks = |blocks: &[i32]| blocks.iter().flat_map(|block| block * 32..(block + 1) * 32).collect();
    let mut slots: Vec<i32> = of_blocks(&[7, 0, 3, 8]);
    slots.truncate(32 * 3 + 13);
    let num_valid = slots.len() as i64;
    slots.extend([-1, 9 * 32, UNSEEN_SLOT]);
    let num_keys = slots.len() as i64;
    let slots = gpu.ints(&slots, &[num_keys])?;
    let shape = [num_keys, groups, head_dim];
    let (k_out, v_out) = (gpu.zeros(&shape, kind)?, gpu.zeros(&shape, kind)?);
    let cache = LayerKv { keys: &keys, values: &values };
    let launch = GatherCache { cache, slots: &slots, k_out: &k_out, v_out: &v_out };
    kernels.gather_cache(&gpu.stream, &launch)?;
    for (what, cache, out) in [("keys", &keys, &k_out), ("values", &values, &v_out)] {
        let elems = heads.uncached(cache)?.f_to_kind(kind)?;
        let flat = elems.f_transpose(1, 2)?.f_reshape([9 * 32, groups, head_dim])?;
        let valid = slots.f_narrow(0, 0, num_valid)?;
        let expect = flat.f_index_select(0, &valid)?;
        ensure(same(&out.f_narrow(0, 0, num_valid)?, &expect)?, || format!("{what} differ"))?;
        let others: Tensor = out.f_narrow(0, num_valid, 2)?.f_isnan()?.f_all()?;
        ensure(others.f_int64_value(&[])? == 1, || format!("{what} outside the cache are not NaN"))?;
        let unseen = out.f_narrow(0, num_valid + 2, 1)?;
        ensure(same(&unseen, &unseen.f_zeros_like()?)?, || format!("{what} that no row sees are not 0"))?;
    }
    Ok(())
}
