//! `aligner-gen tokenize`: lines to ids and back with a checkpoint's tokenizer.

use std::io::{BufRead, Write};

use anyhow::Context;
use data::Tokenizer;
use nemo_format::Checkpoint;

use crate::config::cli::TokenizeArgs;
use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::model::checkpoint::OpenTokenizer;

/// Works line by line, each answered as soon as it is there.
pub(crate) fn run(
    arguments: &TokenizeArgs,
    input: impl BufRead,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&arguments.checkpoint)?;
    let tokenizer = OpenTokenizer::open(&checkpoint, checkpoint.model_config())?.tokenizer;
    for (number, line) in (1_u64..).zip(input.lines()) {
        let line = line.context("cannot read stdin")?;
        let answer = if arguments.decode {
            decode(tokenizer.as_ref(), &line)
        } else {
            encode(tokenizer.as_ref(), &line)
        };
        let answer = answer.with_context(|| format!("line {number}")).exit_with(ExitStatus::Data)?;
        writeln!(out, "{answer}").and_then(|()| out.flush()).context("cannot write to stdout")?;
    }
    Ok(())
}

fn encode(tokenizer: &dyn Tokenizer, line: &str) -> anyhow::Result<String> {
    Ok(serde_json::to_string(&tokenizer.encode(line)?)?)
}

fn decode(tokenizer: &dyn Tokenizer, line: &str) -> anyhow::Result<String> {
    let ids: Vec<u32> = serde_json::from_str(line).context("not a JSON list of token ids")?;
    Ok(tokenizer.decode(&ids)?)
}
