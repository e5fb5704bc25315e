//! The parts of `wandb_internal.proto` (wandb 0.31) that an offline run holds, with their field numbers.

/// `wandb_internal.Record`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Record {
    /// Counted from 1.
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(oneof = "RecordType", tags = "2, 3, 17, 18, 21, 26")]
    pub(super) record_type: Option<RecordType>,
}

/// `Record.record_type`.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum RecordType {
    #[prost(message, tag = "2")]
    History(HistoryRecord),
    #[prost(message, tag = "3")]
    Summary(SummaryRecord),
    #[prost(message, tag = "17")]
    Run(RunRecord),
    #[prost(message, tag = "18")]
    Exit(RunExitRecord),
    #[prost(message, tag = "21")]
    Header(HeaderRecord),
    #[prost(message, tag = "26")]
    Environment(EnvironmentRecord),
}

/// `wandb_internal.HeaderRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HeaderRecord {
    #[prost(message, optional, tag = "1")]
    pub(super) version_info: Option<VersionInfo>,
}

/// `wandb_internal.VersionInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct VersionInfo {
    #[prost(string, tag = "1")]
    pub(super) producer: String,
    /// The oldest `wandb` that may read the file.
    #[prost(string, tag = "2")]
    pub(super) min_consumer: String,
}

/// `wandb_internal.RunRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RunRecord {
    #[prost(string, tag = "1")]
    pub(super) run_id: String,
    #[prost(string, tag = "2")]
    pub(super) entity: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<ConfigRecord>,
    #[prost(string, tag = "6")]
    pub(super) run_group: String,
    #[prost(string, tag = "7")]
    pub(super) job_type: String,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(string, tag = "9")]
    pub(super) notes: String,
    #[prost(string, repeated, tag = "10")]
    pub(super) tags: Vec<String>,
    #[prost(string, tag = "13")]
    pub(super) host: String,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Timestamp>,
}

/// `wandb_internal.ConfigRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ConfigRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// `wandb_internal.SummaryRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SummaryRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

/// `wandb_internal.HistoryRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HistoryRecord {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<HistoryStep>,
}

/// `wandb_internal.HistoryStep`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct HistoryStep {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

/// `ConfigItem`, `SummaryItem` and `HistoryItem`, which are alike in the fields used here: either `key` or
/// `nested_key`, and the value as JSON.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) nested_key: Vec<String>,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

/// `wandb_internal.RunExitRecord`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct RunExitRecord {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    /// Seconds.
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}

/// `wandb_internal.EnvironmentRecord`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct EnvironmentRecord {
    #[prost(string, tag = "1")]
    pub(super) os: String,
    #[prost(message, optional, tag = "3")]
    pub(super) started_at: Option<Timestamp>,
    #[prost(string, repeated, tag = "5")]
    pub(super) args: Vec<String>,
    #[prost(string, tag = "6")]
    pub(super) program: String,
    #[prost(string, tag = "11")]
    pub(super) root: String,
    #[prost(string, tag = "12")]
    pub(super) host: String,
    #[prost(uint32, tag = "17")]
    pub(super) cpu_count_logical: u32,
    #[prost(string, tag = "199")]
    pub(super) writer_id: String,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}
