//! The table against the types that are read and against the documentation.

use std::collections::BTreeSet;

use model_core::RawModelConfig;
use sampling::RawSamplingParams;
use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::*;
use crate::config::raw::{
    RawChatPromptTokens, RawData, RawExpManager, RawGeneration, RawLengths, RawModel, RawSampling,
    RawSpeculation, RawTrainDs, RawTrainer, RawTrainerGeneration, RawTrtLlm,
};

/// A format that only hears which fields a struct asks for.
struct Listener<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Listener<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = fields;
        Err(Error::custom("heard enough"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields_of<T: DeserializeOwned>(block: &str) -> BTreeSet<String> {
    let mut fields: &[&str] = &[];
    let _ = T::deserialize(Listener(&mut fields));
    assert!(!fields.is_empty(), "`{block}` is not a struct");
    fields.iter().map(|field| format!("{block}.{field}")).collect()
}

#[test]
fn a_key_is_read_when_its_row_says_so() {
    let mut read: BTreeSet<String> = [
        fields_of::<RawTrainer>("trainer"),
        fields_of::<RawTrainerGeneration>("trainer.generation"),
        fields_of::<RawSpeculation>("trainer.generation.speculation"),
        fields_of::<RawTrtLlm>("trainer.generation.trt_llm"),
        fields_of::<RawExpManager>("exp_manager"),
        fields_of::<RawModel>("model"),
        fields_of::<RawModelConfig>("model"),
        fields_of::<RawGeneration>("model.generation"),
        fields_of::<RawSampling>("model.generation.sampling_params"),
        fields_of::<RawSamplingParams>("model.generation.sampling_params"),
        fields_of::<RawLengths>("model.generation.length_params"),
        fields_of::<RawData>("model.data"),
        fields_of::<RawChatPromptTokens>("model.data.chat_prompt_tokens"),
        fields_of::<RawTrainDs>("model.data.train_ds"),
    ]
    .into_iter()
    .flatten()
    .collect();
    // Read before the rest can be resolved, or as a whole.
    let apart = [
        "pretrained_checkpoint.restore_from_path",
        "model.peft.restore_from_path",
        "model.overwrite_base_config",
        "model.tokenizer",
        "model.tensor_model_parallel_size",
        "model.pipeline_model_parallel_size",
        "model.expert_model_parallel_size",
        "model.expert_tensor_parallel_size",
    ];
    read.extend(apart.map(str::to_owned));
    // Blocks whose keys have rows of their own.
    let blocks: Vec<String> =
        read.iter().filter(|key| read.iter().any(|other| is_below(other, key))).cloned().collect();
    read.retain(|key| !blocks.contains(key));
    let rows = all().filter(|row| matches!(row.status, Status::Read | Status::Neutral | Status::Refused));
    let rows: BTreeSet<String> = rows.map(|row| row.path.to_owned()).collect();
    assert_eq!(rows.difference(&read).collect::<Vec<_>>(), Vec::<&String>::new(), "nothing reads these");
    assert_eq!(read.difference(&rows).collect::<Vec<_>>(), Vec::<&String>::new(), "these have no row");
}

#[test]
fn a_key_has_one_row() {
    for row in all().filter(|row| row.status != Status::Closed) {
        assert_eq!(all().filter(|other| other.covers(row.path) && other.status != Status::Closed).count(), 1);
        assert_eq!(row.identity.is_some(), row.status == Status::Read, "{row:?}");
    }
}

/// The keys that stand in a section of the documentation.
fn documented(heading: &str) -> BTreeSet<&'static str> {
    const DOCS: &str = include_str!("../../../../../docs/config.md");
    let (_, rest) = DOCS.split_once(&format!("### {heading}\n")).unwrap();
    let section = rest.split("\n#").next().unwrap();
    section.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_documentation_lists_what_changes_texts() {
    let rows =
        |status| -> BTreeSet<&str> { all().filter(|row| row.status == status).map(|row| row.path).collect() };
    assert_eq!(documented("Keys that decide texts"), rows(Status::Read));
    assert_eq!(documented("Keys that change no text"), rows(Status::Neutral));
}
