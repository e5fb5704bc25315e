//! Lines of `score`: what comes in as token ids, and what goes out.

use data::{Json, JsonObject, parse_object};
use sampling::TopToken;

use super::of_job::PromptKind;
use crate::config::cli::ScoreArgs;
use crate::exit::Failure;
use crate::model::checkpoint::OpenTokenizer;
use crate::output::python_json::ObjectWriter;

/// How lines become token ids.
pub(super) struct Scoring<'a> {
    opened: &'a OpenTokenizer,
    prompts: PromptKind,
    bos: Option<u32>,
    most_tokens: usize,
    num_top: u32,
}

/// A line as token ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TokenizedLine {
    /// The record's in a line of generations, otherwise how many lines came before.
    pub(super) index: u64,
    pub(super) prompt: Vec<u32>,
    pub(super) responses: Vec<Vec<u32>>,
}

impl<'a> Scoring<'a> {
    /// `most_tokens`: the longest sequence that the model takes.
    pub(super) fn new(
        arguments: &ScoreArgs,
        opened: &'a OpenTokenizer,
        most_tokens: usize,
    ) -> Result<Self, Failure> {
        let prompts = PromptKind::new(arguments)?;
        let bos = match prompts.add_bos {
            Some(true) => Some(opened.tokenizer.special().bos.ok_or(data::DataError::NoBosToken)?),
            Some(false) | None => None,
        };
        if arguments.top_logprobs > sampling::MAX_TOP_LOGPROBS {
            return Err(Failure::usage(format!(
                "`--top-logprobs` must be at most {}",
                sampling::MAX_TOP_LOGPROBS
            )));
        }
        let num_top = arguments.top_logprobs;
        Ok(Self { opened, prompts, bos, most_tokens, num_top })
    }

    /// Reads a line with `prompt` and `responses`, or `response`, and `token_ids` of the responses where there are any.
    /// `num_before`: lines that came before it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn tokenized(&self, bytes: &[u8], num_before: u64) -> Result<TokenizedLine, String> {
        let line = parse_object(bytes).map_err(|error| error.to_string())?;
        let index = index_of(&line)?.unwrap_or(num_before);
        let prompt = match line.get("prompt") {
            Some(Json::String(prompt)) => prompt,
            // A row with an error.
            Some(Json::Null) if line.get("responses") == Some(&Json::Array(Vec::new())) => {
                return Ok(TokenizedLine { index, ..TokenizedLine::default() });
            }
            Some(other) => return Err(format!("`prompt` is {other}, it must be a string")),
            None => return Err("it has no `prompt`".to_owned()),
        };
        let texts = texts_of(&line)?;
        if line.get("logprobs").is_some_and(|given| *given != Json::Null) || self.prompts.is_of_job {
            self.check_prompt(prompt)?;
        }
        let prompt_ids = self.prompt(prompt)?;
        let responses = match line.get("token_ids") {
            Some(Json::Array(lists)) if lists.len() == texts.len() => {
                lists.iter().map(|list| self.ids(list)).collect::<Result<Vec<_>, _>>()?
            }
            Some(Json::Null) | None => texts
                .iter()
                .map(|text| self.response(prompt, &prompt_ids, text))
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => {
                return Err(format!("`token_ids` must be {} lists, as there are responses", texts.len()));
            }
        };
        for response in &responses {
            let num_tokens = prompt_ids.len() + response.len();
            if num_tokens > self.most_tokens {
                return Err(format!(
                    "prompt and response have {num_tokens} tokens, the model takes {}",
                    self.most_tokens
                ));
            }
        }
        Ok(TokenizedLine { index, prompt: prompt_ids, responses })
    }

    /// Refuses a prompt of a job whose tokens depend on what nobody has said.
    fn check_prompt(&self, text: &str) -> Result<(), String> {
        let tokenizer = &self.opened.tokenizer;
        if self.prompts.add_bos.is_none() && tokenizer.special().bos.is_some() {
            return Err(
                "it is of a job, and nothing says whether that one put the tokenizer's BOS before its prompts: give \
                 `--add-bos` or `--add-bos=false`"
                    .to_owned(),
            );
        }
        if self.prompts.is_templated.is_some() {
            return Ok(());
        }
        let num = |ids: Result<Vec<u32>, data::DataError>| ids.map_err(|error| error.to_string());
        let (text_ids, rendered) = (num(tokenizer.encode(text))?, num(tokenizer.encode_rendered(text))?);
        if text_ids == rendered {
            return Ok(());
        }
        Err(format!(
            "it is of a job, and its prompt has {} tokens where a chat template rendered it (`messages` records) and {} \
             otherwise: give `--templated` or `--templated=false`",
            rendered.len(),
            text_ids.len()
        ))
    }

    fn prompt(&self, text: &str) -> Result<Vec<u32>, String> {
        let tokenizer = &self.opened.tokenizer;
        let ids = match self.prompts.is_templated {
            Some(true) => tokenizer.encode_rendered(text),
            Some(false) | None => tokenizer.encode(text),
        };
        let mut ids = ids.map_err(|error| error.to_string())?;
        if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if ids.is_empty() { Err("the prompt has no tokens".to_owned()) } else { Ok(ids) }
    }

    /// The tokens of a response behind its prompt, whose own tokens must stay as they are.
    fn response(&self, prompt: &str, prompt_ids: &[u32], text: &str) -> Result<Vec<u32>, String> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let both = self.prompt(&format!("{prompt}{text}"))?;
        let ids = both.strip_prefix(prompt_ids).ok_or(
            "prompt and response together have other tokens than one after the other: give `token_ids` of the responses",
        )?;
        Ok(ids.to_vec())
    }

    fn ids(&self, list: &Json) -> Result<Vec<u32>, String> {
        let vocab_size = self.opened.tokenizer.vocab_size();
        let Json::Array(items) = list else {
            return Err(format!("`token_ids` has {list} in place of a list"));
        };
        let id = |item: &Json| match item {
            Json::Number(text) => text.parse().ok().filter(|&id: &u32| (id as usize) < vocab_size),
            _ => None,
        };
        let of_item = |item: &Json| {
            id(item).ok_or_else(|| format!("`token_ids` has {item}, ids are below {vocab_size}"))
        };
        items.iter().map(of_item).collect()
    }
}

/// The `index` of a line of generations.
fn index_of(line: &JsonObject) -> Result<Option<u64>, String> {
    match line.get("index") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::Number(text)) if text.parse::<u64>().is_ok() => Ok(text.parse().ok()),
        Some(other) => Err(format!("`index` is {other}, it must be a whole number from 0 on")),
    }
}

fn texts_of(line: &JsonObject) -> Result<Vec<&str>, String> {
    match (line.get("responses"), line.get("response")) {
        (Some(Json::Array(items)), None) => items
            .iter()
            .map(|item| match item {
                Json::String(text) => Ok(text.as_str()),
                other => Err(format!("`responses` has {other} in place of a text")),
            })
            .collect(),
        (None, Some(Json::String(text))) => Ok(vec![text]),
        (Some(_), Some(_)) => Err("it has both `response` and `responses`".to_owned()),
        (Some(other), None) => Err(format!("`responses` is {other}, it must be a list of texts")),
        (None, Some(other)) => Err(format!("`response` is {other}, it must be a text")),
        (None, None) => Err("it has no `responses`".to_owned()),
    }
}

/// What a line of the output says.
#[derive(Clone, Debug)]
pub(super) struct ScoredLine {
    index: u64,
    num_prompt_tokens: usize,
    token_ids: Vec<Vec<u32>>,
    logprobs: Vec<Vec<f32>>,
    top: Vec<Vec<Vec<TopToken>>>,
}

impl ScoredLine {
    pub(super) fn new(line: &TokenizedLine) -> Self {
        let num_responses = line.responses.len();
        Self {
            index: line.index,
            num_prompt_tokens: line.prompt.len(),
            token_ids: line.responses.clone(),
            logprobs: vec![Vec::new(); num_responses],
            top: vec![Vec::new(); num_responses],
        }
    }

    pub(super) fn take(&mut self, response: usize, logprobs: Vec<f32>, top: Vec<Vec<TopToken>>) {
        self.logprobs[response] = logprobs;
        self.top[response] = top;
    }

    /// The line with its newline. Sums are taken in float64, from the first token on.
    pub(super) fn to_json(&self, scoring: &Scoring<'_>) -> Result<Vec<u8>, Failure> {
        let sums: Vec<f64> =
            self.logprobs.iter().map(|logprobs| logprobs.iter().copied().map(f64::from).sum()).collect();
        let mean =
            |(sum, logprobs): (&f64, &Vec<f32>)| (!logprobs.is_empty()).then(|| sum / logprobs.len() as f64);
        let means: Vec<Option<f64>> = sums.iter().zip(&self.logprobs).map(mean).collect();
        let mut out = Vec::new();
        let write = |out: &mut Vec<u8>| -> serde_json::Result<()> {
            let mut line = ObjectWriter::begin(out);
            line.entry("index", &self.index)?;
            line.entry("num_prompt_tokens", &self.num_prompt_tokens)?;
            line.entry("token_ids", &self.token_ids)?;
            line.entry("logprobs", &self.logprobs)?;
            line.entry("sums", &sums)?;
            line.entry("means", &means)?;
            if scoring.num_top > 0 {
                let pairs = |top: &Vec<TopToken>| -> Vec<(u32, f32)> {
                    top.iter().map(|top| (top.token, top.logprob)).collect()
                };
                let places: Vec<Vec<Vec<(u32, f32)>>> =
                    self.top.iter().map(|response| response.iter().map(pairs).collect()).collect();
                line.entry("top_logprobs", &places)?;
            }
            line.end();
            Ok(())
        };
        write(&mut out).map_err(anyhow::Error::from)?;
        out.push(b'\n');
        Ok(out)
    }
}
