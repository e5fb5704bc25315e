//! GPT-OSS: what its experts are made of, and what is refused of them.

use super::families::folder;
use super::*;

const SCALES: &str = "model.layers.1.mlp.experts.down_proj_scales";

fn refusal(folder: &Path) -> String {
    let target = tempfile::tempdir().unwrap();
    let error = convert_checkpoint(folder, &target.path().join("out.nemo"), &ConvertOptions::default());
    error.unwrap_err().to_string().replace(&folder.display().to_string(), "FOLDER")
}

/// A copy of the folder in MXFP4, with other bytes of its weights.
fn with_weights(change: impl FnOnce(&mut Vec<u8>, &serde_json::Value, usize)) -> tempfile::TempDir {
    let copy = copy_of(&folder("gpt_oss_mxfp4"));
    let path = copy.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    change(&mut bytes, &header, 8 + header_len);
    fs::write(&path, bytes).unwrap();
    copy
}

#[test]
fn experts_that_are_not_understood_are_refused_by_name() {
    // An exponent that stands for no number, and one that makes some larger than bf16 holds.
    let with_exponent = |exponent: u8| {
        let copy = with_weights(|bytes, header, start| {
            let offsets = &header[SCALES]["data_offsets"];
            let of = |idx: usize| start + offsets[idx].as_u64().unwrap() as usize;
            bytes[of(0)..of(1)].fill(exponent);
        });
        refusal(copy.path())
    };
    let mut said = vec![with_exponent(255), with_exponent(254)];
    // The names in the header are as long as before.
    let renamed = with_weights(|bytes, _, start| {
        let header = String::from_utf8(bytes[8..start].to_vec()).unwrap();
        let header = header.replace(SCALES, &SCALES.replace("_scales", "_factor"));
        bytes[8..start].copy_from_slice(header.as_bytes());
    });
    said.push(refusal(renamed.path()));
    let with_config = |edit: &dyn Fn(&mut serde_json::Value)| {
        let copy = copy_of(&folder("gpt_oss_mxfp4"));
        edit_config(copy.path(), edit);
        refusal(copy.path())
    };
    said.push(with_config(&|config| config["quantization_config"] = serde_json::Value::Null));
    said.push(with_config(&|config| config["swiglu_limit"] = 8.0.into()));
    said.push(with_config(&|config| config["model_type"] = "mixtral".into()));
    insta::assert_snapshot!(said.join("\n"));
}

/// Numbers of any rows and columns are those of the whole.
#[test]
fn parts_of_experts_are_parts_of_the_whole() {
    for name in ["gpt_oss", "gpt_oss_mxfp4"] {
        let folder = folder(name);
        let config = HfConfig::open(&folder).unwrap();
        let HfWeights { source, .. } = open_weights(&folder, None).unwrap();
        let (source, note) = unstacked(&config, source).unwrap();
        assert_eq!(note.is_some(), name == "gpt_oss_mxfp4");
        let mut num_experts = 0;
        for tensor in source.names().filter(|tensor| tensor.contains("mlp.experts.")) {
            let meta = source.meta(tensor).unwrap();
            let (whole, elem_bytes) = (source.read_whole(tensor).unwrap(), meta.dtype.size_bytes());
            let columns = meta.shape.get(1).copied().unwrap_or(1);
            let (rows, across) = (1..meta.shape[0] - 2, if columns > 1 { 3..columns - 5 } else { 0..1 });
            let mut ranges = vec![rows.clone(), across.clone()];
            ranges.truncate(meta.shape.len());
            let mut part =
                vec![0; ((rows.end - rows.start) * (across.end - across.start)) as usize * elem_bytes];
            source.read(tensor, &Region { ranges }, &mut part).unwrap();
            let expected: Vec<u8> = rows
                .flat_map(|row| row * columns + across.start..row * columns + across.end)
                .flat_map(|elem| whole[elem as usize * elem_bytes..][..elem_bytes].to_vec())
                .collect();
            assert_eq!(part, expected, "{name}: {tensor}");
            num_experts += 1;
        }
        // Three matrices and three biases of four experts in two layers.
        assert_eq!(num_experts, 48);
    }
}
