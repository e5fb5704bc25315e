//! A TensorBoard event file in the log folder: `events.out.tfevents.<seconds>.<host>.<process>.0`, as its own writer
//! names it.
//!
//! It holds the numbers of each step, the resolved configuration as text and, for the hparams tab, key by key.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::time::SystemTime;

use hydra_config::Node;
use prost::Message;

use super::framing::tf_record;
use super::tensorboard_proto::{
    Dim, Event, HParamsPluginData, PluginData, ProtoKind, ProtoValue, SessionStartInfo, Summary,
    SummaryMetadata, SummaryValue, TensorProto, TensorShape,
};
use super::{MetricsLogger, RunFacts, Scalar, seconds_since_1970};
use crate::config::exp_manager::TensorBoardPlan;
use crate::node_json::to_json;

/// `DataType.DT_STRING` of `types.proto`.
const DT_STRING: i32 = 7;

/// An event file. Every event is one write, so that what is there can be read at any time.
#[derive(Debug)]
pub(super) struct EventFile<W> {
    out: W,
}

impl EventFile<File> {
    pub(super) const NAME: &'static str = "TensorBoard";

    /// Creates the file and writes the configuration into it.
    pub(super) fn create(plan: &TensorBoardPlan, facts: &RunFacts<'_>) -> io::Result<Self> {
        let name = format!(
            "events.out.tfevents.{:010}.{}.{}.0{}",
            seconds_since_1970(facts.started) as u64,
            facts.machine.host,
            std::process::id(),
            plan.filename_suffix
        );
        Self::start(File::create_new(facts.log_dir.join(name))?, facts)
    }
}

impl<W: Write> EventFile<W> {
    /// Writes the configuration.
    pub(super) fn start(out: W, facts: &RunFacts<'_>) -> io::Result<Self> {
        let mut file = Self { out };
        let wall_time = seconds_since_1970(facts.started);
        let version = Some("brain.Event:2".to_owned());
        file.write(&Event { wall_time, step: 0, file_version: version, summary: None })?;
        let config = vec![config_text(facts.config), hparams(facts.config, wall_time)];
        file.write(&Event {
            wall_time,
            step: 0,
            file_version: None,
            summary: Some(Summary { value: config }),
        })?;
        Ok(file)
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        self.out.write_all(&tf_record(&event.encode_to_vec()))
    }

    #[cfg(test)]
    pub(super) fn into_inner(self) -> W {
        self.out
    }
}

impl<W: Write> MetricsLogger for EventFile<W> {
    fn name(&self) -> &'static str {
        EventFile::NAME
    }

    fn log(&mut self, step: u64, at: SystemTime, scalars: &[Scalar]) -> io::Result<()> {
        let value = |&(tag, value): &Scalar| SummaryValue {
            tag: tag.to_owned(),
            simple_value: Some(value as f32),
            ..SummaryValue::default()
        };
        self.write(&Event {
            wall_time: seconds_since_1970(at),
            step: i64::try_from(step).unwrap_or(i64::MAX),
            file_version: None,
            summary: Some(Summary { value: scalars.iter().map(value).collect() }),
        })
    }

    fn finish(&mut self, _: u8, _: SystemTime) -> io::Result<Option<String>> {
        Ok(None)
    }
}

fn plugin(name: &str, content: Vec<u8>) -> Option<SummaryMetadata> {
    Some(SummaryMetadata { plugin_data: Some(PluginData { plugin_name: name.to_owned(), content }) })
}

/// The configuration for the text tab, which reads Markdown.
fn config_text(config: &Node) -> SummaryValue {
    let text = format!("```yaml\n{}```\n", config.to_yaml());
    let tensor = TensorProto {
        dtype: DT_STRING,
        tensor_shape: Some(TensorShape { dim: vec![Dim { size: 1 }] }),
        string_val: vec![text.into_bytes()],
    };
    SummaryValue {
        tag: "config".to_owned(),
        simple_value: None,
        tensor: Some(tensor),
        metadata: plugin("text", Vec::new()),
    }
}

/// The configuration for the hparams tab.
fn hparams(config: &Node, start_time_secs: f64) -> SummaryValue {
    let mut hparams = BTreeMap::new();
    for path in config.leaf_paths() {
        let kind = match config.get(&path) {
            None | Some(Node::Map(_)) => continue,
            Some(Node::Bool(value)) => ProtoKind::Bool(*value),
            Some(Node::Int(value)) => ProtoKind::Number(*value as f64),
            Some(Node::Float(value)) => ProtoKind::Number(*value),
            Some(Node::Str(text)) => ProtoKind::Text(text.clone()),
            Some(other @ (Node::Null | Node::List(_))) => ProtoKind::Text(to_json(other).to_string()),
        };
        hparams.insert(path, ProtoValue { kind: Some(kind) });
    }
    let data = HParamsPluginData {
        version: 0,
        session_start_info: Some(SessionStartInfo { hparams, start_time_secs }),
    };
    SummaryValue {
        tag: "_hparams_/session_start_info".to_owned(),
        simple_value: None,
        tensor: None,
        metadata: plugin("hparams", data.encode_to_vec()),
    }
}
