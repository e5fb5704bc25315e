//! Families whose layers have windows, with texts far longer than these: in a cache that gives back what the windows have
//! passed, the tokens of one that keeps all, and prompts in parts with the bits of whole ones.

use std::path::Path;

use hydra_config::Node;
use model_core::{BLOCK_SIZE_TOKENS, Backend, Batch, BlockId, CausalLm};
use model_spec::{Float, KvTables, blocks_for};
use tch::{Device, Kind, Tensor};

use crate::answers::{self, Load, prompt};
use crate::{AnyError, Model};

const LONGEST: usize = 640;
/// How many tokens a token sees beside itself: no whole number of blocks.
const WINDOW: i64 = 99;
/// Where prompts are cut, as far as every device may.
const CUTS: [usize; 3] = [128, 384, 512];
const PROMPT_LEN: usize = 601;
const NEIGHBOUR_LEN: usize = 77;

/// None for a family without windows.
///
/// # Errors
/// When a bit or a token differs.
pub(crate) fn check(folder: &Path, model: &Model, device: Device) -> Result<Option<String>, AnyError> {
    let has_local = model
        .spec()
        .layers
        .iter()
        .any(|layer| layer.attention.as_ref().is_some_and(|attention| attention.local_tokens.is_some()));
    let mut section = Model::section(folder)?;
    let everywhere = section.get("huggingface.sliding_window").and_then(Node::as_i64);
    let num_seen = match (has_local, everywhere) {
        (true, _) => {
            section.set("window_size", Node::List(vec![Node::Int(WINDOW), Node::Int(0)]));
            WINDOW + 1
        }
        (false, Some(tokens)) => tokens,
        (false, None) => return Ok(None),
    };
    for key in ["encoder_seq_length", "max_position_embeddings"] {
        section.set(key, Node::Int(LONGEST as i64));
    }
    let long = Model::with(&section)?;
    let tables = long.spec().kv_tables(LONGEST);
    if tables.num_windowed == 0 {
        return Err("its windows save no memory".into());
    }
    let num_cuts = cuts(&long, device, tables)?;
    // Some responses wait for room, and prompts come in parts.
    let load = Load { max_prompt: 450.0, max_new: 150, tables, num_blocks: 90 * tables.len() };
    let facts = answers::check(&long, device, load)?;
    Ok(Some(format!("with a window of {num_seen}: prompts cut at {num_cuts} places, {facts}")))
}

/// Logits after every token of a prompt, whole and cut, bit by bit. Of what a window has passed the table says blocks of
/// another sequence.
fn cuts(model: &Model, device: Device, tables: KvTables) -> Result<usize, AnyError> {
    let mut loaded = model.load(device, Backend::Fused, Float::Bf16)?;
    let Some(cut_tokens) = loaded.prompt_cut_tokens() else { return Err("its prompts are not cut".into()) };
    if device != Device::Cpu {
        // So that small parts take the path that they take in an engine.
        loaded.reserve_decode(64, blocks_for(PROMPT_LEN, BLOCK_SIZE_TOKENS))?;
    }
    let tokens = prompt(3, PROMPT_LEN);
    let whole = in_parts(loaded.as_mut(), &tokens, &[], KvTables::ONE)?;
    for cut in CUTS.into_iter().filter(|cut| cut.is_multiple_of(cut_tokens)) {
        let parts = in_parts(loaded.as_mut(), &tokens, &[cut], tables)?;
        if !same_bits(&parts, &whole)? {
            return Err(format!("a prompt cut at {cut} has other bits than whole").into());
        }
    }
    let parts = in_parts(loaded.as_mut(), &tokens, &CUTS, tables)?;
    if same_bits(&parts, &whole)? {
        Ok(CUTS.len())
    } else {
        Err("a prompt in four parts has other bits".into())
    }
}

fn in_parts(
    model: &mut dyn CausalLm,
    tokens: &[u32],
    cuts: &[usize],
    tables: KvTables,
) -> Result<Tensor, AnyError> {
    let columns = |num_tokens: usize| blocks_for(num_tokens, BLOCK_SIZE_TOKENS);
    let num_neighbours = columns(NEIGHBOUR_LEN) * tables.len();
    let num_own = columns(tokens.len()) * tables.len();
    let mut cache = model.new_cache_in(num_neighbours + num_own, tables)?;
    let blocks = |range: std::ops::Range<usize>| range.map(|block| block as BlockId).collect::<Vec<_>>();
    let neighbour = blocks(0..num_neighbours);
    let mut logits = Vec::new();
    let ends = cuts.iter().copied().chain([tokens.len()]);
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    for (start, end) in starts.zip(ends) {
        let mut table = blocks(num_neighbours..num_neighbours + num_own);
        for column in table.chunks_mut(tables.len()).take(tables.num_passed(start, BLOCK_SIZE_TOKENS)) {
            column[tables.num_full..].fill(0);
        }
        let mut batch = Batch::default();
        batch.push(&prompt(4, NEIGHBOUR_LEN), 0, 0, &neighbour);
        batch.push(&tokens[start..end], start as u32, (end - start) as u32, &table);
        logits.push(model.forward(&batch, &mut cache)?);
    }
    Ok(Tensor::f_cat(&logits, 0)?)
}

fn same_bits(a: &Tensor, b: &Tensor) -> Result<bool, AnyError> {
    Ok(a.f_view_dtype(Kind::Int)?.f_equal(&b.f_view_dtype(Kind::Int)?)?)
}
