//! SFT records, prompts, tokenizers and the plan of steps. No libtorch.

mod chat;
mod chat_template;
mod error;
mod jsonl;
pub mod plan;
mod prepare;
mod record;
pub mod tokenizer;

pub use chat::{ChatPromptTokens, PromptNote};
pub use chat_template::ChatTemplate;
pub use error::DataError;
pub use jsonl::{JsonlReader, RawLine, parse_object};
pub use plan::{BatchSizes, DpWorld, DropLast, LimitTrainBatches, StepPlan, plan_steps};
pub use prepare::{
    BadRecord, LengthLimits, OnBadRecord, PreparedPrompt, PromptBuilder, PromptSet, load_prompts,
};
pub use record::{ChatRecord, DEFAULT_MASK, LabelLayout, MessagesRecord, Record, RecordError, Turn};
pub use tokenizer::{SpecialTokens, StreamDecoder, Tokenizer, TokenizerSpec, open_tokenizer};
