//! What makes prompts of records: the records' format and the checkpoint's tokenizer put together.

use std::sync::Arc;

use data::PromptBuilder;

use crate::config::plan::{Bos, GenerationPlan};
use crate::config::records::RecordFormat;
use crate::exit::Failure;
use crate::model::checkpoint::OpenTokenizer;

/// What makes prompts of the records with the checkpoint's tokenizer.
pub(crate) fn prompt_builder(
    plan: &GenerationPlan,
    tokenizer: &OpenTokenizer,
) -> Result<PromptBuilder, Failure> {
    let shared = Arc::clone(&tokenizer.tokenizer);
    let mut builder = match &plan.records {
        RecordFormat::Chat(tokens) => PromptBuilder::new(shared, tokens.clone()),
        RecordFormat::PromptResponse { format, .. } => {
            PromptBuilder::prompt_response(shared, format.clone())?
        }
    };
    if let (RecordFormat::Chat(_), Some(template)) = (&plan.records, tokenizer.chat_template(plan.date)) {
        builder = builder.with_template(template);
    }
    if plan.bos == Bos::Add {
        builder = builder.with_bos()?;
    }
    if let Some(key) = &plan.length_hint_key {
        builder = builder.with_length_hints(key.clone());
    }
    Ok(builder.with_metadata(plan.kept_metadata))
}
