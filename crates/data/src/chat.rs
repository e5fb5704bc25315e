//! The prompt text of a chat record: everything up to and including the last answer header.
//!
//! Follows `_get_header_conversation_type_mask_role` and `preprocess` of NeMo's `gpt_sft_chat_dataset.py` (v2.0.0),
//! with two differences: the text is cut before it is tokenized, so the answer in the file cannot leak into the
//! prompt, and a conversation that ends with the asking role gets the header of the answering one.

use serde::{Deserialize, Serialize};

use crate::record::{ChatRecord, LabelLayout, Turn};
use crate::record_error::RecordError;

/// The word that the original writes before the system text, whatever the data says.
const SYSTEM_NAME: &str = "System";

/// `model.data.chat_prompt_tokens`: the markers between the parts of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatPromptTokens {
    /// Before the word `System`.
    pub system_turn_start: String,
    /// Before the role of a turn.
    pub turn_start: String,
    /// Before a label.
    pub label_start: String,
    /// After the text of a turn.
    pub end_of_turn: String,
    /// After a role or a label.
    pub end_of_name: String,
}

impl Default for ChatPromptTokens {
    fn default() -> Self {
        Self {
            system_turn_start: "<extra_id_0>".into(),
            turn_start: "<extra_id_1>".into(),
            label_start: "<extra_id_2>".into(),
            end_of_turn: "\n".into(),
            end_of_name: "\n".into(),
        }
    }
}

/// Something about a prompt that the user should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptNote {
    /// The conversation ended with the asking role, so the header of this role was added.
    AnswerHeaderAdded {
        /// The role that answers.
        role: String,
    },
}

impl ChatPromptTokens {
    /// The prompt of one record.
    ///
    /// # Errors
    /// When an answer header must be added and the answering role cannot be determined.
    pub fn prompt_text(&self, record: &ChatRecord) -> Result<(String, Option<PromptNote>), RecordError> {
        let mut text = self.header(record);
        let ends_with_answer = record.conversations.last().is_some_and(|turn| turn.from != record.mask);
        let num_whole_turns = record.conversations.len() - usize::from(ends_with_answer);
        let (whole_turns, answer) = record.conversations.split_at(num_whole_turns);
        for turn in whole_turns {
            self.push_turn(&mut text, turn, record.layout);
        }
        if let Some(answer) = answer.first() {
            self.push_answer_header(&mut text, answer, record.layout);
            return Ok((text, None));
        }
        let role = answering_role(record)?;
        text.extend([&*self.turn_start, &role, &self.end_of_name]);
        Ok((text, Some(PromptNote::AnswerHeaderAdded { role })))
    }

    /// The whole conversation as the original tokenizes it, the answers of the file included.
    pub fn full_text(&self, record: &ChatRecord) -> String {
        let mut text = self.header(record);
        for turn in &record.conversations {
            self.push_turn(&mut text, turn, record.layout);
        }
        if record.conversations.last().is_some_and(|turn| turn.from != record.mask) {
            text.push_str(&self.turn_start);
        }
        text
    }

    fn header(&self, record: &ChatRecord) -> String {
        [&self.system_turn_start, SYSTEM_NAME, &self.end_of_name, &record.system, &self.end_of_turn].concat()
    }

    fn push_turn(&self, text: &mut String, turn: &Turn, layout: Option<LabelLayout>) {
        text.extend([&*self.turn_start, &turn.from, &self.end_of_name]);
        match (layout, &turn.label) {
            (Some(LabelLayout::ValueToText), Some(label)) => {
                text.extend([&*self.label_start, label, &self.end_of_name, &turn.value, &self.end_of_turn]);
            }
            (Some(LabelLayout::TextToValue), Some(label)) => {
                text.extend([&*turn.value, &self.end_of_turn, &self.label_start, label, &self.end_of_name]);
            }
            _ => text.extend([&*turn.value, &self.end_of_turn]),
        }
    }

    /// The part of an answering turn that is given: up to the text, or up to the label where the label is asked for.
    fn push_answer_header(&self, text: &mut String, turn: &Turn, layout: Option<LabelLayout>) {
        text.extend([&*self.turn_start, &turn.from, &self.end_of_name]);
        match (layout, &turn.label) {
            (Some(LabelLayout::ValueToText), Some(label)) => {
                text.extend([&*self.label_start, label, &self.end_of_name]);
            }
            (Some(LabelLayout::TextToValue), Some(_)) => {
                text.extend([&*turn.value, &self.end_of_turn, &self.label_start]);
            }
            _ => {}
        }
    }
}

/// Who answers: the other role of the conversation, or the counterpart of the asking role's own name.
fn answering_role(record: &ChatRecord) -> Result<String, RecordError> {
    if let Some(turn) = record.conversations.iter().rev().find(|turn| turn.from != record.mask) {
        return Ok(turn.from.clone());
    }
    let counterparts =
        [("User", "Assistant"), ("user", "assistant"), ("Assistant", "User"), ("assistant", "user")];
    let found = counterparts.into_iter().find(|(asking, _)| record.mask.contains(asking));
    let (asking, answering) =
        found.ok_or_else(|| RecordError::NoAnsweringRole { mask: record.mask.clone() })?;
    Ok(record.mask.replacen(asking, answering, 1))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::Record;

    fn prompt(tokens: &ChatPromptTokens, record: Value) -> Result<(String, Option<PromptNote>), RecordError> {
        let Record::Chat(record) = Record::from_object(crate::json::tests::object(record))? else {
            unreachable!()
        };
        tokens.prompt_text(&record)
    }

    fn check(record: Value, expected: &str) {
        let (text, _) = prompt(&ChatPromptTokens::default(), record).unwrap();
        assert_eq!(text.replace('\n', "⏎"), expected);
    }

    fn turns(turns: &[(&str, &str)]) -> Value {
        turns.iter().map(|(from, value)| json!({"from": from, "value": value})).collect()
    }

    fn labelled(kind: &str) -> Value {
        json!({"system": "SYS", "type": kind, "conversations": [
            {"from": "User", "value": "Q1"}, {"from": "Assistant", "value": "A1", "label": "quality:4"}]})
    }

    const TWO: [(&str, &str); 2] = [("User", "Q1"), ("Assistant", "A1")];
    const THREE: [(&str, &str); 3] = [("User", "Q1"), ("Assistant", "A1"), ("User", "Q2")];

    #[test]
    fn default_tokens() {
        let start = "<extra_id_0>System⏎SYS⏎<extra_id_1>User⏎Q1⏎<extra_id_1>Assistant⏎";
        check(json!({"system": "SYS", "conversations": turns(&TWO)}), start);
        let record = crate::json::tests::object(json!({"system": "SYS", "conversations": turns(&TWO)}));
        let Ok(Record::Chat(record)) = Record::from_object(record) else { unreachable!() };
        let full = ChatPromptTokens::default().full_text(&record).replace('\n', "⏎");
        assert_eq!(full, format!("{start}A1⏎<extra_id_1>"));
        check(labelled("VALUE_TO_TEXT"), &format!("{start}<extra_id_2>quality:4⏎"));
        check(labelled("TEXT_TO_VALUE"), &format!("{start}A1⏎<extra_id_2>"));
        check(json!({"system": "SYS", "type": "TEXT_TO_VALUE", "conversations": turns(&TWO)}), start);
        check(
            json!({"system": "SYS", "conversations": turns(&THREE)}),
            &format!("{start}A1⏎<extra_id_1>User⏎Q2⏎<extra_id_1>Assistant⏎"),
        );
        check(
            json!({"system": "SYS", "conversations": turns(&[("Assistant", "A0"), ("User", "Q1"), ("Assistant", "A1")])}),
            "<extra_id_0>System⏎SYS⏎<extra_id_1>Assistant⏎A0⏎<extra_id_1>User⏎Q1⏎<extra_id_1>Assistant⏎",
        );
        check(
            json!({"system": "SYS", "mask": "Assistant", "conversations": turns(&THREE)}),
            &format!("{start}A1⏎<extra_id_1>User⏎"),
        );
        let four = [("User", "Q1"), ("Assistant", "A1"), ("User", "Q2"), ("Assistant", "A2")];
        check(
            json!({"system": "", "conversations": turns(&four)}),
            "<extra_id_0>System⏎⏎<extra_id_1>User⏎Q1⏎<extra_id_1>Assistant⏎A1⏎<extra_id_1>User⏎Q2⏎<extra_id_1>Assistant⏎",
        );
    }

    #[test]
    fn labels_inside_the_conversation() {
        let record = |kind| {
            json!({"system": "", "type": kind, "conversations": [
                {"from": "User", "value": "Q1", "label": null}, {"from": "Assistant", "value": "A1", "label": "x"},
                {"from": "User", "value": "Q2"}, {"from": "Assistant", "value": "A2", "label": "y"}]})
        };
        let start = "<extra_id_0>System⏎⏎<extra_id_1>User⏎Q1⏎<extra_id_1>Assistant⏎";
        let middle = "<extra_id_1>User⏎Q2⏎<extra_id_1>Assistant⏎";
        check(record(json!("VALUE_TO_TEXT")), &format!("{start}<extra_id_2>x⏎A1⏎{middle}<extra_id_2>y⏎"));
        check(record(json!("TEXT_TO_VALUE")), &format!("{start}A1⏎<extra_id_2>x⏎{middle}A2⏎<extra_id_2>"));
        check(record(json!(null)), &format!("{start}A1⏎{middle}"));
    }

    #[test]
    fn llama3_tokens() {
        let tokens = ChatPromptTokens {
            system_turn_start: "<|begin_of_text|>".into(),
            turn_start: String::new(),
            end_of_turn: "<|eot_id|>".into(),
            end_of_name: "\n\n".into(),
            ..ChatPromptTokens::default()
        };
        let user = "<|start_header_id|>user<|end_header_id|>";
        let assistant = "<|start_header_id|>assistant<|end_header_id|>";
        let all = [(user, "Q1"), (assistant, "A1"), (user, "Q2"), (assistant, "A2")];
        let check = |num_turns: usize, system: &str, expected: String| {
            let record = json!({"system": system, "mask": user, "conversations": turns(&all[..num_turns])});
            assert_eq!(prompt(&tokens, record).unwrap().0, expected);
        };
        let one = |system: &str| {
            format!("<|begin_of_text|>System\n\n{system}<|eot_id|>{user}\n\nQ1<|eot_id|>{assistant}\n\n")
        };
        check(1, "SYS", one("SYS"));
        check(2, "SYS", one("SYS"));
        let three = format!("{}A1<|eot_id|>{user}\n\nQ2<|eot_id|>{assistant}\n\n", one(""));
        check(3, "", three.clone());
        check(4, "", three);
    }

    #[test]
    fn an_added_header_is_noted() {
        let note = |record| prompt(&ChatPromptTokens::default(), record).map(|(_, note)| note);
        let added = |role: &str| Ok(Some(PromptNote::AnswerHeaderAdded { role: role.into() }));
        assert_eq!(note(json!({"system": "", "conversations": turns(&TWO)})), Ok(None));
        assert_eq!(note(json!({"system": "", "conversations": turns(&THREE)})), added("Assistant"));
        assert_eq!(note(json!({"system": "", "conversations": turns(&[("User", "Q")])})), added("Assistant"));
        let error =
            note(json!({"system": "", "mask": "Bob", "conversations": turns(&[("Bob", "Q")])})).unwrap_err();
        insta::assert_snapshot!(error, @"only the `mask` role `Bob` speaks, and the answering role cannot be determined: add a turn of the answering role");
    }
}
