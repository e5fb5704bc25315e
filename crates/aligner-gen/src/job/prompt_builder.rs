//! What makes prompts of records: the records' format and the checkpoint's tokenizer put together.

use std::sync::Arc;

use data::PromptBuilder;

use crate::config::plan::{Bos, GenerationPlan, LineFormat, RowParamsMode};
use crate::config::records::{self, RecordFormat};
use crate::exit::Failure;
use crate::model::checkpoint::OpenTokenizer;
use crate::model::structures::TokenStructures;

/// What makes prompts of the records with the checkpoint's tokenizer.
pub(crate) fn prompt_builder(
    plan: &GenerationPlan,
    tokenizer: &OpenTokenizer,
    structures: &Arc<TokenStructures>,
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
    builder = match (plan.line_format, plan.row_params) {
        // A request is for one answer unless it says otherwise; the best one is chosen of as many as the job makes.
        (LineFormat::OpenAiBatch, _) => builder.with_openai_batch(plan.checks.best_of.is_none().then_some(1)),
        (LineFormat::Sft, RowParamsMode::Read) => builder.with_row_params(),
        (LineFormat::Sft, RowParamsMode::Ignore) => builder,
    };
    if plan.row_params == RowParamsMode::Read {
        let structures = Arc::clone(structures);
        let check = move |text: &str| structures.check(text).map_err(|error| error.to_string());
        builder = builder.with_structure_check(Arc::new(check));
    }
    if let Some(max_tokens) = plan.cut_to {
        builder = builder.with_max_tokens(max_tokens);
    }
    let input = records::kept_input(&plan.output_fields, plan.line_format);
    Ok(builder.with_metadata(plan.kept_metadata).with_input(input))
}
