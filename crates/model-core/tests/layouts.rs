//! Every model among the fixtures over several ranks: the bits of one rank, and no byte of it read twice.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};

use common::fixtures::{FOLDERS, Fixture};
use common::ranks::{Layout, logits};
use model_core::{AttentionSwitches, Backend, Isa, LoadOptions, Reduction};
use model_spec::{ExpertSharing, Float, Numerics};
use nemo_format::{FormatError, Region, TensorMeta, TensorSource};

/// Tensor-parallel and pipeline sizes. Replicas are jobs of their own in this respect: `tests/e2e/parallel.rs`.
const LAYOUTS: [(usize, usize); 5] = [(2, 1), (4, 1), (1, 2), (2, 2), (4, 2)];

fn options(float: Float) -> LoadOptions {
    LoadOptions {
        numerics: Numerics::uniform(float),
        backend: Backend::Fused,
        device: tch::Device::Cpu,
        attention: AttentionSwitches::default(),
        isa: Isa::detect(),
    }
}

/// The layouts that a model's heads, layers and experts allow.
fn possible(fixture: &Fixture) -> Vec<Layout> {
    let spec = fixture.config.spec_of(fixture.tensors());
    let has_experts = spec.layers.iter().any(|layer| layer.moe().is_some());
    let mut layouts = Vec::new();
    for experts in [ExpertSharing::Widths, ExpertSharing::Numbers] {
        let tensor = spec.tensor_parallel_sizes(experts);
        let is_possible = |layout: &Layout| {
            let has_any = experts == ExpertSharing::Widths || (has_experts && layout.tensor > 1);
            has_any && tensor.contains(&(layout.tensor as u32)) && layout.pipeline <= spec.layers.len()
        };
        let all = LAYOUTS.map(|sizes| Layout { experts, ..sizes.into() });
        layouts.extend(all.into_iter().filter(is_possible));
    }
    layouts
}

/// The layouts of some fixtures, all of which must have the bits of one rank; how many there are.
fn check(folders: &[&str]) -> usize {
    let mut num_layouts = 0;
    for folder in folders {
        let fixture = Fixture::open(folder);
        let of = |float, layout: Layout| {
            logits(&fixture.config, fixture.tensors(), options(float), layout, Reduction::Tree)
        };
        let layouts = possible(&fixture);
        let [bf16, fp32] = [Float::Bf16, Float::Fp32].map(|float| of(float, (1, 1).into()));
        assert!(bf16.iter().flatten().all(|&bits| f32::from_bits(bits).is_finite()), "{folder}");
        for &layout in &layouts {
            assert_eq!(of(Float::Bf16, layout), bf16, "{folder} bf16 {layout:?}");
        }
        let last = |experts| layouts.iter().rfind(|layout| layout.experts == experts);
        for &layout in [last(ExpertSharing::Widths), last(ExpertSharing::Numbers)].into_iter().flatten() {
            assert_eq!(of(Float::Fp32, layout), fp32, "{folder} fp32 {layout:?}");
        }
        num_layouts += layouts.len();
    }
    num_layouts
}

/// In parts, which run side by side.
macro_rules! parts {
    ($($name:ident: $nth:literal, $least:literal;)*) => {
        $(#[test]
        fn $name() {
            let part = FOLDERS.len().div_ceil(NUM_PARTS);
            let num_layouts = check(FOLDERS.chunks(part).nth($nth).unwrap());
            assert!(num_layouts >= $least, "{num_layouts}");
        })*
    };
}

const NUM_PARTS: usize = 4;

parts! {
    fixtures_have_one_text_for_every_layout: 0, 30;
    more_of_them: 1, 30;
    even_more_of_them: 2, 30;
    the_rest_of_them: 3, 30;
}

/// Counts what is read of a source. Nothing of it is mapped: the same regions are then taken without a copy.
struct Counted<'a> {
    inner: &'a dyn TensorSource,
    read_bytes: AtomicU64,
}

impl TensorSource for Counted<'_> {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.inner.names()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.inner.meta(name)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        self.inner.read(name, region, dst)?;
        self.read_bytes.fetch_add(dst.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Ranks of a machine read a model about once together: norms are read by each, and everything else by one.
#[test]
fn ranks_read_their_own_part_only() {
    let mut num_with_whole_experts = 0;
    for folder in [
        "hf_llama",
        "mcore_llama",
        "mcore_gptnext",
        "families/mixtral",
        "families/qwen2_moe",
        "families/qwen3",
        "families/qwen3_moe",
    ] {
        let fixture = Fixture::open(folder);
        let model_bytes: u64 =
            fixture.tensors().names().filter_map(|name| fixture.tensors().meta(name)?.size_bytes()).sum();
        let groups = fixture.config.uniform.heads.num_query_groups;
        for layout in possible(&fixture) {
            // Ranks without a key and value head of their own have a copy of one.
            if layout.tensor > groups {
                continue;
            }
            let counted = Counted { inner: fixture.tensors(), read_bytes: AtomicU64::new(0) };
            logits(&fixture.config, &counted, options(Float::Bf16), layout, Reduction::Tree);
            let read_bytes = counted.read_bytes.into_inner();
            let share = read_bytes as f64 / model_bytes as f64;
            assert!((0.95..=1.05).contains(&share), "{folder} {layout:?}: {read_bytes} of {model_bytes}");
            num_with_whole_experts += usize::from(layout.experts == ExpertSharing::Numbers);
        }
    }
    assert!(num_with_whole_experts >= 3, "{num_with_whole_experts}");
}
