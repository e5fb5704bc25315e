//! What becomes of the records: which are generated, in which steps, and what is said about the others.

use data::{DataError, DpWorld, OnBadRecord, OnOverlength, OutputSteps, PromptSet, plan_output_steps};

use crate::cluster::topology::Topology;
use crate::config::plan::GenerationPlan;
use crate::exit::Failure;
use crate::table::{thousands, two_columns};

/// How many line numbers of left-out records a message lists.
const MAX_LISTED: usize = 10;

/// The prompts in the order in which they are generated, and their steps. Where nothing is left to generate, what
/// became of the records is shown before the error.
pub(super) fn planned(
    plan: &GenerationPlan,
    prompts: PromptSet,
    topology: Topology,
) -> Result<(PromptSet, OutputSteps), Failure> {
    let num_kept = prompts.len();
    let world = DpWorld { size: topology.num_replicas() as usize };
    let steps = |num_samples: usize| {
        prompts.check_any()?;
        let num_used = plan.limit.num_samples(num_samples, plan.batch.global)?;
        plan_output_steps(num_used, plan.batch, world, plan.drop_last)
    };
    let steps = match steps(plan.num_drawn.unwrap_or(num_kept)) {
        Ok(steps) => steps.with_max_steps(plan.max_steps),
        Err(error) => {
            let (num_dropped, num_past) = match &error {
                DataError::AllDropped { num_samples, .. } => {
                    (*num_samples, num_kept.saturating_sub(*num_samples))
                }
                DataError::LimitedToNone { num_samples, .. } => (0, *num_samples),
                DataError::NothingLeft { .. } | DataError::NoRecords { .. } => (0, 0),
                _ => return Err(error.into()),
            };
            // The error itself lists bad records that leave nothing.
            if !matches!(error, DataError::NothingLeft { .. }) {
                show_bad(&prompts);
            }
            show_too_long(&prompts);
            show_counts(&prompts, num_dropped, num_past as u64, "nothing".to_owned());
            return Err(error.into());
        }
    };
    let prompts = match plan.num_drawn {
        Some(num_drawn) => prompts.draw(num_drawn)?,
        None => prompts,
    };
    Ok((prompts, steps))
}

/// Says which records are bad or too long.
pub(super) fn show_left_out(prompts: &PromptSet) {
    show_bad(prompts);
    show_too_long(prompts);
}

fn show_bad(prompts: &PromptSet) {
    for bad in &prompts.bad {
        let outcome = match prompts.on_unusable.bad {
            OnBadRecord::Keep => "bad",
            OnBadRecord::Refuse | OnBadRecord::Skip => "skipped",
        };
        tracing::warn!("line {} is {outcome}: {}", bad.place, bad.reason);
    }
}

fn show_too_long(prompts: &PromptSet) {
    if !prompts.too_long.is_empty() {
        let lines = prompts.too_long.iter().map(|&(line, num_tokens)| {
            let place = prompts.place(line);
            format!("{place} ({num_tokens} tokens)")
        });
        let outcome = match prompts.on_unusable.too_long {
            OnOverlength::Drop => "left out",
            OnOverlength::Keep => "rows with an error",
        };
        tracing::warn!("over-length prompts are {outcome}: lines {}", list(lines));
    }
    if let Some((line, num_tokens)) = prompts.first_cut {
        tracing::warn!(
            "{} prompts are cut to the limit, the first in line {}, of {num_tokens} tokens",
            thousands(prompts.num_cut),
            prompts.place(line)
        );
    }
}

/// What became of the records.
pub(super) fn show_counts(
    prompts: &PromptSet,
    num_dropped: usize,
    num_past_limits: u64,
    to_generate: String,
) {
    let mut counts = vec![
        ("records read", thousands(prompts.num_read)),
        ("bad", thousands(prompts.num_bad)),
        ("over-length", thousands(prompts.too_long.len() as u64)),
        ("not in a whole batch", thousands(num_dropped as u64)),
        ("past the limits set", thousands(num_past_limits)),
        ("to generate", to_generate),
    ];
    if prompts.num_unusable() > 0 {
        let kept = thousands(prompts.num_unusable() as u64);
        counts.insert(3, ("of these rows with an error", kept));
    }
    let counts = two_columns(&counts);
    tracing::info!("data\n{counts}");
}

/// The first items, and how many more there are.
pub(super) fn list(mut items: impl Iterator<Item = String>) -> String {
    let mut text = items.by_ref().take(MAX_LISTED).collect::<Vec<_>>().join(", ");
    let rest = items.count();
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}
