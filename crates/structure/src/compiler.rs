//! Structures into matchers, for the tokens of one vocabulary.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, panic_utils};

use crate::error::first_line;
use crate::{Matcher, Structure, StructureError};

/// Longest text of a structure.
pub const MAX_TEXT_BYTES: usize = 1 << 20;
/// Structures that are kept; where rows have more, they are compiled again.
const MAX_KEPT: usize = 256;

/// Makes matchers. Shared by threads.
pub struct Compiler {
    factory: ParserFactory,
    num_tokens: usize,
    /// By their texts, as they stand before the first token.
    kept: Mutex<HashMap<String, Arc<Mutex<Matcher>>>>,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("num_tokens", &self.num_tokens).finish_non_exhaustive()
    }
}

impl Compiler {
    /// A compiler for these tokens: the bytes of each, and none of one that no text has, such as a special token.
    ///
    /// # Errors
    /// When there are too many, or one of them is too long.
    pub fn new(mut tokens: Vec<Vec<u8>>) -> Result<Self, StructureError> {
        let num_tokens = tokens.len();
        let vocabulary =
            |reason: String| StructureError::Vocabulary { num_tokens, reason: first_line(&reason) };
        // The end of a text is a token of its own here: which tokens end a response is not for a structure to say.
        tokens.push(Vec::new());
        let end = u32::try_from(num_tokens).map_err(|error| vocabulary(error.to_string()))?;
        let factory = panic_utils::catch_unwind(move || {
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &tokens);
            let env: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            ParserFactory::new_simple(&env)
        });
        let mut factory = factory.map_err(|error| vocabulary(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits { verbose_errors: false, ..ParserLimits::default() };
        Ok(Self { factory, num_tokens, kept: Mutex::default() })
    }

    /// How many tokens there are.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Whether `text` is a structure that can be used.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, text: &str) -> Result<(), StructureError> {
        self.prototype(text).map(|_| ())
    }

    /// A matcher for a response whose structure is `text`, before its first token.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn begin(&self, text: &str) -> Result<Matcher, StructureError> {
        let prototype = self.prototype(text)?;
        let prototype = prototype.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(prototype.fork())
    }

    fn prototype(&self, text: &str) -> Result<Arc<Mutex<Matcher>>, StructureError> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept().get(text) {
            return Ok(Arc::clone(known));
        }
        if text.len() > MAX_TEXT_BYTES {
            let reason = format!(
                "a structure has at most {MAX_TEXT_BYTES} bytes of text, this one has {}",
                text.len()
            );
            return Err(StructureError::Spec { reason });
        }
        let made = Arc::new(Mutex::new(self.compile(Structure::parse(text)?)?));
        let mut kept = kept();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(text.to_owned(), Arc::clone(&made));
        Ok(made)
    }

    fn compile(&self, structure: Structure) -> Result<Matcher, StructureError> {
        let kind = structure.kind();
        let refused = |reason: &str| StructureError::Compile { kind, reason: first_line(reason) };
        let grammar = match structure {
            Structure::Json(schema) => TopLevelGrammar::from_json_schema(schema),
            Structure::Regex(regex) => TopLevelGrammar::from_regex(&regex),
            Structure::Choice(texts) => TopLevelGrammar::from_regex(&either(&texts)),
            Structure::Grammar(lark) => TopLevelGrammar::from_lark(lark),
        };
        let factory = std::panic::AssertUnwindSafe(&self.factory);
        let parser = panic_utils::catch_unwind(move || factory.create_parser(grammar));
        let parser = parser.map_err(|error| refused(&format!("{error:#}")))?;
        let mut matcher = Matcher::new(llguidance::Matcher::new(Ok(parser)), self.num_tokens);
        // What the first token needs is computed once for all responses.
        let mut bits = vec![0; self.num_tokens.div_ceil(32)];
        let may_end = matcher.allowed(&mut bits).map_err(|error| refused(&reason_of(error)))?;
        if !may_end && bits.iter().all(|&word| word == 0) {
            return Err(refused("no text of these tokens fits it"));
        }
        Ok(matcher)
    }
}

fn reason_of(error: StructureError) -> String {
    match error {
        StructureError::Follow { reason } => reason,
        other => other.to_string(),
    }
}

/// A regular expression of these texts.
fn either(texts: &[String]) -> String {
    let escaped = texts.iter().map(|text| {
        let mut regex = String::new();
        for char in text.chars() {
            // An escape of any other sign may mean something: `\<` is the start of a word.
            if r"\.+*?()|[]{}^$#&-~/".contains(char) {
                regex.push('\\');
            }
            regex.push(char);
        }
        regex
    });
    format!("({})", escaped.collect::<Vec<_>>().join("|"))
}
