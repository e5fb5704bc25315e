//! Everything that can be wrong with input data or a tokenizer.

use std::error::Error;
use std::path::PathBuf;

/// An error in input data or a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A token id that the tokenizer does not have.
    #[error("token id {id} is not in the tokenizer's vocabulary of {vocab_size}")]
    UnknownTokenId {
        /// The id.
        id: u32,
        /// How many ids there are.
        vocab_size: usize,
    },
    /// A tokenizer that this program does not read.
    #[error(
        "tokenizer library `{library}` with type `{kind}` is not supported: the checkpoint's `tokenizer.library` must be \
         `sentencepiece`, `huggingface`, `tiktoken`, or `megatron` with type `GPTSentencePieceTokenizer` or \
         `GPT2BPETokenizer`"
    )]
    UnsupportedTokenizer {
        /// `tokenizer.library`.
        library: String,
        /// `tokenizer.type`.
        kind: String,
    },
    /// A Hugging Face name whose files are not in the checkpoint. Nothing is downloaded.
    #[error(
        "the checkpoint has no tokenizer files of `{name}`: put them in with `aligner-gen convert-checkpoint --input \
         CHECKPOINT --output NEW.nemo --tokenizer FOLDER`, or name the folder with `++model.tokenizer.type=FOLDER`"
    )]
    NoHuggingFaceFiles {
        /// `tokenizer.type`.
        name: String,
    },
    /// A key of the `tokenizer:` section that the library needs.
    #[error("tokenizer library `{library}` needs the key `tokenizer.{key}`")]
    MissingTokenizerKey {
        /// `tokenizer.library`.
        library: String,
        /// The absent key.
        key: &'static str,
    },
    /// A tokenizer setting that contradicts the rest.
    #[error("tokenizer key `{key}`: {reason}")]
    BadTokenizerSetting {
        /// The key, below `tokenizer.`.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A tokenizer file that cannot be read.
    #[error("cannot read the tokenizer file `{reference}`")]
    ReadTokenizerFile {
        /// The reference as the checkpoint writes it.
        reference: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A tokenizer file with the wrong content.
    #[error("tokenizer file `{reference}` is damaged: {reason}")]
    BadTokenizerFile {
        /// The reference as the checkpoint writes it.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// A failure inside the `tokenizers` library.
    #[error("the tokenizer cannot {action} this input")]
    Tokenizers {
        /// `encode` or `decode`.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A prompt template that cannot be used.
    #[error("`model.data.train_ds.prompt_template` is `{template}`: {reason}")]
    BadPromptTemplate {
        /// The template as typed.
        template: String,
        /// What is wrong.
        reason: String,
    },
    /// A field to cut that the template does not have.
    #[error("`model.data.train_ds.truncation_field` names `{field}`, it may name {expected}")]
    UnknownTruncationField {
        /// The name given.
        field: String,
        /// The names there are.
        expected: String,
    },
    /// BOS is asked for, and the tokenizer has none.
    #[error(
        "BOS is to be put before the prompts, but the tokenizer has no BOS token; in the shell write \
         model.generation.sampling_params.add_BOS=false model.data.train_ds.add_bos=false"
    )]
    NoBosToken,
    /// A data file of a format that is not read.
    #[error("data file `{path}` is not JSONL: `{extension}` datasets are not supported, give a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file in SFT format", path = .path.display())]
    UnsupportedDataFile {
        /// The file.
        path: PathBuf,
        /// Its extension, with the dot.
        extension: &'static str,
    },
    /// Two columns of one name: a record has one value for it.
    #[error("`{path}` has two columns `{column}`: rename or leave out one of them", path = .path.display())]
    SameParquetColumn {
        /// The file.
        path: PathBuf,
        /// Their name.
        column: String,
    },
    /// A Parquet file that is compressed in a way that is not read.
    #[error("`{path}` is compressed with {codec}, which is not read: write it with snappy, gzip, zstd or uncompressed", path = .path.display())]
    ParquetCodec {
        /// The file.
        path: PathBuf,
        /// How.
        codec: &'static str,
    },
    /// A column of a Parquet file that no record can hold.
    #[error("column `{column}` of `{path}` holds {found}, which records do not: leave it out, or write it as text or numbers", path = .path.display())]
    ParquetColumn {
        /// The file.
        path: PathBuf,
        /// The column, with what it is in.
        column: String,
        /// What it holds.
        found: &'static str,
    },
    /// A data file that cannot be opened.
    #[error("cannot open the data file `{path}`", path = .path.display())]
    OpenDataFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A data file that cannot be read to its end.
    #[error("cannot read the data file `{path}` after line {line}: it is damaged or cut off", path = .path.display())]
    ReadDataFile {
        /// The file.
        path: PathBuf,
        /// The last whole line, from 1.
        line: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No room to keep the lines of a packed data file.
    #[error(
        "the lines of `{path}` cannot be kept unpacked in `{folder}`: set TMPDIR to a folder with room, or unpack the file",
        path = .path.display(),
        folder = .folder.display()
    )]
    KeepLines {
        /// The data file.
        path: PathBuf,
        /// The folder for temporary files.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A data file that has changed since the run started.
    #[error(
        "data file `{path}` was changed while the run used it: line {line} is not what it was; put the file back and run \
         the same command again",
        path = .path.display()
    )]
    ChangedDataFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },
    /// A line beyond every limit.
    #[error("line {line} of `{path}` has 4 GiB or more", path = .path.display())]
    LineTooLarge {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
    },
    /// More records than samples can be drawn from.
    #[error("`model.data.sample=true` draws from at most 4,294,967,295 records, there are {num_records}")]
    TooManyRecords {
        /// How many there are.
        num_records: usize,
    },
    /// Unusable records in a run that does not skip them.
    #[error("{num_bad} of {num_read} records of `{path}` cannot be used:\n{listed}", path = .path.display())]
    BadRecords {
        /// The file.
        path: PathBuf,
        /// How many are bad.
        num_bad: u64,
        /// How many were read.
        num_read: u64,
        /// The first of them, one a line, with line number and reason.
        listed: String,
    },
    /// A template that asks for the date where none is set. Leaving such records out would be no answer.
    #[error(
        "the chat template asks for the date in line {line} of `{}`, and no prompt takes it from the clock: set one, in the \
         shell write ++model.data.date=2026-01-31",
        path.display()
    )]
    NoTemplateDate {
        /// The data.
        path: PathBuf,
        /// The first line that asks, from 1.
        line: u64,
    },
    /// Two requests of one name: their answers could not be told apart.
    #[error("line {line} of `{path}` has the `custom_id` `{custom_id}` of line {first}: each must be another", path = .path.display())]
    SameCustomId {
        /// The data.
        path: PathBuf,
        /// The second line of the name, from 1.
        line: u64,
        /// The first one, over all files.
        first: u64,
        /// The name.
        custom_id: String,
    },
    /// A `messages` record, and a chat template that cannot be used: skipping the record would hide what is wrong.
    #[error(
        "line {line} of `{path}` is a `messages` record, and {reason}",
        path = .path.display()
    )]
    UnusableChatTemplate {
        /// The data file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with the template, in a sentence.
        reason: String,
    },
    /// A column of the output that no record has.
    #[error(
        "`model.generation.output_fields` asks for `{column}`, which is neither a field of this program nor a key of any \
         record of `{path}`; keys of the first record: {known}",
        path = .path.display()
    )]
    NoSuchColumn {
        /// The data file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The keys of the first record.
        known: String,
    },
    /// A date that is none.
    #[error("`model.data.date` must be a day of the calendar as `YYYY-MM-DD`, found `{text}`")]
    BadDate {
        /// What was given.
        text: String,
    },
    /// A file without a record.
    #[error("there is no sample to generate from: `{path}` holds no record", path = .path.display())]
    NoRecords {
        /// The file.
        path: PathBuf,
    },
    /// Records, of which none can be generated from.
    #[error("there is no sample to generate from: {reasons}", reasons = .reasons.join("\n"))]
    NothingLeft {
        /// What became of the records, one reason a line.
        reasons: Vec<String>,
    },
    /// A part of the samples that is less than one.
    #[error(
        "there is no sample to generate from: `trainer.generation.limit_train_batches={fraction}` of {num_samples} samples \
         is less than one; a whole number is a number of steps"
    )]
    LimitedToNone {
        /// The part.
        fraction: f64,
        /// How many samples there are.
        num_samples: usize,
    },
    /// Nothing is left to generate from.
    #[error("there is no sample to generate from")]
    NoSamples,
    /// Dropping the remainder drops everything.
    #[error(
        "all {num_samples} samples are dropped, because they fill no step of `model.global_batch_size` {global}: set \
         `model.data.train_ds.drop_last=false` or a smaller `model.global_batch_size`"
    )]
    AllDropped {
        /// How many samples there are.
        num_samples: usize,
        /// Prompts a step.
        global: usize,
    },
    /// A batch size or number of ranks of 0.
    #[error("`{name}` is 0, it must be at least 1")]
    ZeroBatchSetting {
        /// The setting.
        name: &'static str,
    },
    /// A global batch that cannot be split evenly.
    #[error(
        "`model.global_batch_size` {global} is not a multiple of `model.micro_batch_size` {micro} times {data_parallel} \
         data-parallel ranks: it must be one of {unit}, {twice}, …",
        unit = micro.saturating_mul(*data_parallel), twice = micro.saturating_mul(*data_parallel).saturating_mul(2)
    )]
    IndivisibleBatch {
        /// Prompts a step.
        global: usize,
        /// Prompts a micro batch.
        micro: usize,
        /// Data-parallel ranks.
        data_parallel: usize,
    },
    /// A fraction of the data above everything.
    #[error("`trainer.generation.limit_train_batches` is {value}, a fraction must be at most 1.0")]
    LimitTooLarge {
        /// The value given.
        value: f64,
    },
    /// More or less than one pass over the data.
    #[error("`trainer.generation.max_epochs` is {value}, it must be 1")]
    MaxEpochs {
        /// The value given.
        value: i64,
    },
}
