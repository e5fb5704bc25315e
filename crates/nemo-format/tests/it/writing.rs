//! What the writer writes, the reader reads back; the original software reads it too, see
//! `tests/fixtures/scripts/load_with_megatron.py`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nemo_format::{
    Artifact, Checkpoint, DType, FormatError, Overwrite, Region, TensorMeta, TensorSource, WriteOptions,
    write_nemo,
};
use proptest::prelude::*;

use crate::fixtures::{converted, fixture};

pub(crate) struct Memory(pub(crate) BTreeMap<String, (TensorMeta, Vec<u8>)>);

impl TensorSource for Memory {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.0.keys().map(String::as_str))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.0.get(name).map(|(meta, _)| meta)
    }

    fn read(&self, name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        let (meta, bytes) = &self.0[name];
        assert_eq!(*region, Region::whole(&meta.shape));
        dst.copy_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn a_rewritten_checkpoint_holds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let original = Checkpoint::open(&fixture("mcore_llama/llama_bf16_torch_dist_tp2.nemo")).unwrap();
    let artifacts = [Artifact { name: "tokenizer.model".to_owned(), bytes: vec![7; 1000] }];
    let paths = ["a.nemo", "b.nemo"].map(|name| folder.path().join(name));
    for path in &paths {
        write_nemo(
            path,
            original.model_config_text(),
            &artifacts,
            original.tensors(),
            &WriteOptions::default(),
        )
        .unwrap();
    }
    assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap(), "two writes, two files");
    let copy = Checkpoint::open(&paths[0]).unwrap();
    assert_eq!(copy.tensors().names().count(), original.tensors().names().count());
    for name in original.tensors().names() {
        assert_eq!(copy.tensors().meta(name), original.tensors().meta(name));
        let mapped = copy.tensors().mapped_bytes(name).unwrap();
        assert!(mapped == original.tensors().read_whole(name).unwrap(), "{name}");
        assert_eq!(mapped.as_ptr() as usize % 64, 0, "{name} is not aligned");
    }
    assert_eq!(copy.artifact("nemo:tokenizer.model").unwrap(), vec![7; 1000]);
    assert_eq!(copy.artifact(&artifacts[0].member_name()).unwrap(), vec![7; 1000]);
    let stacked = copy.stored_tensors();
    assert!(
        stacked
            .iter()
            .any(|info| info.name == "model.decoder.layers.mlp.linear_fc1.weight" && info.meta.shape[0] == 3)
    );

    let again = write_nemo(&paths[0], "", &[], original.tensors(), &WriteOptions::default());
    assert!(matches!(again, Err(FormatError::OutputExists { .. })));
    let options = WriteOptions { dtype: Some(DType::F32), overwrite: Overwrite::Replace, progress: None };
    write_nemo(&paths[0], "", &[], original.tensors(), &options).unwrap();
    let wide = Checkpoint::open(&paths[0]).unwrap();
    assert_eq!(wide.tensors().meta("model.output_layer.weight").unwrap().dtype, DType::F32);
}

#[test]
fn an_artifact_with_several_hashes_keeps_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}_{}_tokenizer.model", "a".repeat(32), "b".repeat(32));
    let artifact = Artifact { name: name.clone(), bytes: b"abc".to_vec() };
    let path = folder.path().join("x.nemo");
    let source = Memory(BTreeMap::from([(
        "model.w".to_owned(),
        (TensorMeta { dtype: DType::U8, shape: vec![1] }, vec![1]),
    )]));
    let report =
        write_nemo(&path, "a: 1\n", std::slice::from_ref(&artifact), &source, &WriteOptions::default())
            .unwrap();
    assert_eq!(report.artifact_members, [artifact.member_name()]);
    assert!(report.artifact_members[0].len() > 98);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.artifact_names(), [artifact.member_name()]);
    assert_eq!(checkpoint.artifact(&format!("nemo:{name}")).unwrap(), b"abc");
    assert_eq!(report.size_bytes, std::fs::metadata(&path).unwrap().len());
    let plain = folder.path().join("plain");
    std::fs::write(&plain, "").unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions(),
        std::fs::metadata(&plain).unwrap().permissions()
    );
}

#[test]
fn a_folder_and_its_archive_are_the_same_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("mcore_llama/llama_fp32_torch_dist.nemo");
    tar::Archive::new(std::fs::File::open(&path).unwrap()).unpack(folder.path()).unwrap();
    let (packed, unpacked) = (Checkpoint::open(&path).unwrap(), Checkpoint::open(folder.path()).unwrap());
    assert_eq!(packed.fingerprint(), unpacked.fingerprint());
    assert_eq!(unpacked.format(), "Megatron-Core folder, torch_dist");
    let name = "model.output_layer.weight";
    assert!(packed.tensors().read_whole(name).unwrap() == unpacked.tensors().read_whole(name).unwrap());
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let meta = TensorMeta { dtype: DType::I64, shape: vec![2] };
    let source = Memory(BTreeMap::from([
        ("model.decoder.layers.0.w".to_owned(), (meta.clone(), vec![0; 16])),
        ("model.decoder.layers.2.w".to_owned(), (meta, vec![0; 16])),
    ]));
    let path = folder.path().join("x.nemo");
    let error = write_nemo(&path, "", &[], &source, &WriteOptions::default()).unwrap_err();
    insta::assert_snapshot!(error, @"tensor `model.decoder.layers.w` is inconsistent: its layers or experts are not the same shape and type, numbered from 0");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The keys of one layer, or of all where they are stacked, with their shapes.
fn stored_experts(family: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = converted(&fixture(&format!("families/{family}")), folder.path());
    let is_shown = |name: &str| name.contains("mlp") && !name.contains("layers.2.");
    let shown = checkpoint.stored_tensors().iter().filter(|stored| is_shown(&stored.name));
    shown.map(|stored| format!("{} {:?}", stored.name, stored.meta.shape)).collect::<Vec<_>>().join("\n")
}

#[test]
fn experts_are_stacked_as_in_megatron_core() {
    insta::assert_snapshot!(stored_experts("qwen2_moe"), @r"
model.decoder.layers.pre_mlp_layernorm.weight [2, 32]
model.decoder.layers.mlp.router.weight [2, 5, 32]
model.decoder.layers.mlp.shared_experts.linear_fc1.weight [2, 80, 32]
model.decoder.layers.mlp.shared_experts.linear_fc2.weight [2, 32, 40]
model.decoder.layers.mlp.shared_experts.gate_weight [2, 1, 32]
model.decoder.layers.mlp.experts.experts.linear_fc1.weight [2, 5, 48, 32]
model.decoder.layers.mlp.experts.experts.linear_fc2.weight [2, 5, 32, 24]
");
    insta::assert_snapshot!(stored_experts("qwen3_moe"), @r"
model.decoder.layers.0.pre_mlp_layernorm.weight [32]
model.decoder.layers.0.mlp.router.weight [6, 32]
model.decoder.layers.0.mlp.experts.experts.linear_fc1.weight [6, 48, 32]
model.decoder.layers.0.mlp.experts.experts.linear_fc2.weight [6, 32, 24]
model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight [32]
model.decoder.layers.1.mlp.linear_fc1.weight [128, 32]
model.decoder.layers.1.mlp.linear_fc2.weight [32, 64]
");
}

#[test]
fn axes_of_layers_and_experts_are_there() {
    let error = |name: &str, shape: Vec<u64>| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.nemo");
        let num_bytes = shape.iter().product::<u64>() as usize * 4;
        let meta = TensorMeta { dtype: DType::F32, shape };
        let source = Memory(BTreeMap::from([(name.to_owned(), (meta, vec![0; num_bytes]))]));
        write_nemo(&path, "num_layers: 2", &[], &source, &WriteOptions::default()).unwrap();
        let opened = Checkpoint::open(&path).map(|checkpoint| checkpoint.tensors().names().count());
        opened.map_err(|error| error.to_string())
    };
    let stacked = "model.decoder.layers.mlp.experts.experts.linear_fc2.weight";
    insta::assert_snapshot!(error(stacked, vec![]).unwrap_err(), @"tensor `model.decoder.layers.mlp.experts.experts.linear_fc2.weight` is inconsistent: a stacked tensor has no layer axis");
    insta::assert_snapshot!(error(stacked, vec![2]).unwrap_err(), @"tensor `model.decoder.layers.mlp.experts.experts.linear_fc2.weight` is inconsistent: a stacked tensor has no expert axis");
    assert_eq!(error(stacked, vec![2, 3]), Ok(6));
    assert_eq!(error(stacked, vec![2, 0]), Ok(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_shapes_survive(shapes in proptest::collection::vec((proptest::collection::vec(0_u64..5, 0..4), 1_u64..4), 1..5)) {
        let mut tensors = BTreeMap::new();
        for (index, (shape, num_layers)) in shapes.iter().enumerate() {
            let meta = TensorMeta { dtype: DType::F32, shape: shape.clone() };
            for layer in 0..*num_layers {
                let bytes: Vec<u8> = (0..meta.size_bytes().unwrap()).map(|i| (i * 7 + layer) as u8).collect();
                tensors.insert(format!("model.decoder.layers.{layer}.t{index}"), (meta.clone(), bytes.clone()));
                tensors.insert(format!("model.t{index}"), (meta.clone(), bytes));
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.nemo");
        let source = Memory(tensors);
        write_nemo(&path, "a: 1\n", &[], &source, &WriteOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        prop_assert_eq!(checkpoint.tensors().names().count(), source.0.len());
        for (name, (meta, bytes)) in &source.0 {
            prop_assert_eq!(checkpoint.tensors().meta(name), Some(meta));
            prop_assert_eq!(&checkpoint.tensors().read_whole(name).unwrap(), bytes);
        }
    }
}

/// A tensor of many chunks of 8 MiB, whose reading fails or takes long after the first.
struct Endless {
    meta: TensorMeta,
    after_first: fn() -> Result<(), FormatError>,
}

const ENDLESS: &str = "model.endless";

impl Endless {
    fn new(after_first: fn() -> Result<(), FormatError>) -> Self {
        Self { meta: TensorMeta { dtype: DType::U8, shape: vec![64, 1 << 20] }, after_first }
    }
}

impl TensorSource for Endless {
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(std::iter::once(ENDLESS))
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        (name == ENDLESS).then_some(&self.meta)
    }

    fn read(&self, _name: &str, region: &Region, dst: &mut [u8]) -> Result<(), FormatError> {
        dst.fill(1);
        if region.ranges[0].start > 0 { (self.after_first)() } else { Ok(()) }
    }
}

#[test]
fn an_error_in_the_middle_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let source = Endless::new(|| Err(FormatError::MissingTensor { name: "gone".to_owned() }));
    let target = folder.path().join("out.nemo");
    let error = write_nemo(&target, "a: 1\n", &[], &source, &WriteOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "the checkpoint has no tensor `gone`");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Long enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs itself once more as the process that is killed.
#[test]
fn a_killed_write_leaves_nothing_under_the_final_name() {
    const TARGET: &str = "NEMO_FORMAT_TEST_TARGET";
    const SELF: &str = "writing::a_killed_write_leaves_nothing_under_the_final_name";
    if let Some(target) = std::env::var_os(TARGET) {
        let source = Endless::new(|| {
            std::thread::sleep(PATIENCE);
            Ok(())
        });
        write_nemo(target.as_ref(), "a: 1\n", &[], &source, &WriteOptions::default()).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("out.nemo");
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SELF])
        .env(TARGET, &target)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let written_bytes = || -> u64 {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().metadata().map_or(0, |metadata| metadata.len())).sum()
    };
    let started = Instant::now();
    while written_bytes() < 8 << 20 {
        assert!(child.try_wait().unwrap().is_none(), "the write ended of itself");
        assert!(started.elapsed() < PATIENCE, "{} bytes are written", written_bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!target.exists());
    let options = WriteOptions::default();
    write_nemo(&target, "a: 1\n", &[], &Endless::new(|| Ok(())), &options).unwrap();
}
