//! SFT records, prompts, tokenizers and the plan of steps. No libtorch.

mod chat;
mod chat_template;
mod columns;
mod error;
mod file_hash;
mod json;
mod jsonl;
mod length_hint;
mod likeness;
mod limits;
mod line_store;
mod messages;
mod openai_batch;
pub mod parquet_in;
mod parquet_out;
pub mod plan;
mod prepare;
mod prompt_response;
mod prompt_set;
mod record;
mod record_error;
mod record_keys;
mod row_params;
mod sample_order;
mod shown;
#[cfg(test)]
mod test_tokenizer;
pub mod tokenizer;

pub use chat::{ChatPromptTokens, PromptNote};
pub use chat_template::ChatTemplate;
pub use error::DataError;
pub use jinja::Date;
pub use json::{Json, JsonObject};
pub use jsonl::{JsonlReader, RawLine, parse_object};
pub use limits::{LengthLimits, TokenField};
pub use line_store::LineSpan;
pub use messages::MessagesRecord;
pub use parquet_out::write_parquet;
pub use plan::{BatchSizes, DpWorld, DropLast, LimitTrainBatches, OutputSteps, plan_output_steps};
pub use prepare::{
    BuiltPrompt, InputOfSample, KeptInput, KeptMetadata, PreparedPrompt, PromptBuilder, StructureCheck,
};
pub use prompt_response::{AddedTokens, PromptResponseFormat, PromptTemplate, TruncationMethod};
pub use prompt_set::{
    OnBadRecord, OnOverlength, OnUnusable, PromptOutlook, PromptSet, PromptText, RowDemand, load_all_prompts,
    load_prompts,
};
pub use record::{ChatRecord, DEFAULT_MASK, LabelLayout, Record, Turn};
pub use record_error::RecordError;
pub use row_params::{MAX_ROW_END_STRINGS, RowParams};
pub use tokenizer::{
    SpecialTokens, StreamDecoder, Tokenizer, TokenizerSpec, check_tokenizer, open_tokenizer,
};
