//! `aligner-gen logits`: the forward pass alone, to compare a converted checkpoint with its origin.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, anyhow};
use model_core::{Backend, Batch, BlockId, CausalLm, LoadOptions};
use model_spec::{BLOCK_SIZE_TOKENS, blocks_for};
use nemo_format::Checkpoint;
use npyz::WriterBuilder;

use crate::config::cli::{BackendArg, DeviceArg, LogitsArgs};
use crate::env;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::checkpoint::{load_model, model_config};
use crate::model::device;

impl From<BackendArg> for Backend {
    fn from(argument: BackendArg) -> Self {
        match argument {
            BackendArg::Plain => Self::Plain,
            BackendArg::Fused => Self::Fused,
        }
    }
}

impl DeviceArg {
    /// The device, which must be there.
    pub(crate) fn open(self) -> Result<tch::Device, Failure> {
        match self {
            Self::Cpu => Ok(tch::Device::Cpu),
            Self::Cuda => device::first_gpu(),
        }
    }
}

/// Reads ids, writes logits.
pub(crate) fn run(arguments: &LogitsArgs) -> Result<(), Failure> {
    let numerics = arguments.numbers.numerics()?;
    let (ids, [batch, seq]) = read_ids(&arguments.input_ids)?;
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?.with_adapters(&arguments.adapter)?;
    let config = model_config(checkpoint.model_config())?;
    // The way to verify a checkpoint must not compute what no run would.
    config.refuse_longer(seq)?;
    let device = arguments.device.open()?;
    let options = LoadOptions {
        numerics,
        backend: arguments.backend.into(),
        device,
        attention: env::attention_switches(),
        isa: env::isa()?,
    };
    let mut model = load_model(&checkpoint, config, options)?;
    let logits = forward(model.as_mut(), &ids, seq)?;
    let shape = [batch as u64, seq as u64, model.padded_vocab_size() as u64];
    write_logits(&arguments.output, &logits, shape)
        .with_context(|| format!("cannot write `{}`", arguments.output.display()))
        .exit_with(ExitStatus::Failed)
}

/// One sequence at a time: the result of a row does not depend on the others, and memory stays small.
fn forward(model: &mut dyn CausalLm, ids: &[u32], seq: usize) -> Result<Vec<f32>, Failure> {
    let num_blocks = blocks_for(seq, BLOCK_SIZE_TOKENS).max(1);
    let mut cache = model.new_cache(num_blocks)?;
    let table: Vec<BlockId> = (0..num_blocks as BlockId).collect();
    let mut logits = Vec::new();
    for row in ids.chunks(seq.max(1)) {
        let mut batch = Batch::default();
        batch.push(row, 0, row.len() as u32, &table);
        let tensor = model.forward(&batch, &mut cache)?;
        let tensor = tensor.f_to_device(tch::Device::Cpu).and_then(|tensor| tensor.f_contiguous());
        let tensor = tensor.map_err(anyhow::Error::from)?;
        logits.extend_from_slice(torch_ext::view::f32_slice(&tensor, "logits").map_err(anyhow::Error::from)?);
    }
    Ok(logits)
}

fn read_ids(path: &Path) -> Result<(Vec<u32>, [usize; 2]), Failure> {
    let read = || -> anyhow::Result<_> {
        let file = npyz::NpyFile::new(BufReader::new(File::open(path)?))?;
        let &[batch, seq] = file.shape() else {
            return Err(anyhow!("expected int64 of shape [batch, seq], found shape {:?}", file.shape()));
        };
        let ids = file.into_vec::<i64>()?;
        let ids = ids
            .into_iter()
            .map(|id| u32::try_from(id).with_context(|| format!("token id {id} is negative or too large")));
        Ok((ids.collect::<anyhow::Result<Vec<u32>>>()?, [usize::try_from(batch)?, usize::try_from(seq)?]))
    };
    read().with_context(|| format!("cannot read `{}`", path.display())).exit_with(ExitStatus::Data)
}

fn write_logits(path: &Path, logits: &[f32], shape: [u64; 3]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut out).begin_nd()?;
    writer.extend(logits.iter().copied())?;
    writer.finish()?;
    Ok(out.flush()?)
}
