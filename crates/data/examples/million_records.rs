//! Reads, checks, tokenizes and plans a data file and says how long that took and how much memory.
//!
//! Run: `million_records DATA.jsonl TOKENIZER`, where TOKENIZER is a `tokenizer.json` or a SentencePiece `.model`.
//! `million_records.py` beside this file makes such files and compares with the Python package.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use data::{
    BatchSizes, ChatPromptTokens, DpWorld, DropLast, KeptMetadata, LengthLimits, OnBadRecord, PromptBuilder,
    TokenizerSpec, load_prompts, open_tokenizer, plan_output_steps,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [data, tokenizer] = arguments.as_slice() else {
        return Err("usage: million_records DATA.jsonl TOKENIZER".into());
    };
    let is_json = tokenizer.extension().is_some_and(|extension| extension == "json");
    let spec = TokenizerSpec {
        library: Some(if is_json { "huggingface" } else { "sentencepiece" }.into()),
        model: Some(tokenizer.display().to_string()),
        sentencepiece_legacy: Some(false),
        ..TokenizerSpec::default()
    };
    let tokenizer = open_tokenizer(&spec, &|path| Ok(std::fs::read(path)?))?;
    let builder = PromptBuilder::new(Arc::from(tokenizer), ChatPromptTokens::default())
        .with_metadata(KeptMetadata::Nothing);
    let started = Instant::now();
    let prompts = load_prompts(data, builder, &LengthLimits::of_prompt(4096), OnBadRecord::Refuse)?;
    let batch = BatchSizes { global: 64, micro: 1 };
    let plan = plan_output_steps(prompts.len(), batch, DpWorld { size: 1 }, DropLast::Auto)?;
    let seconds = started.elapsed().as_secs_f64();
    let num_tokens: usize = (0..prompts.len()).filter_map(|position| prompts.num_tokens(position)).sum();
    let num_bytes = std::fs::metadata(data)?.len();
    println!(
        "{{\"records\": {}, \"tokens\": {num_tokens}, \"steps\": {}, \"file_bytes\": {num_bytes}, \"seconds\": {seconds:.3}, \"peak_bytes\": {}}}",
        prompts.num_read,
        plan.num_steps(),
        peak_bytes().unwrap_or(0)
    );
    Ok(())
}

/// The most memory this process ever had, as Linux counts it.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
