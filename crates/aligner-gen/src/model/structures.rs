//! Structures over the tokens of a checkpoint's tokenizer: what `crates/structure` follows, for the samplers.

use std::sync::{Arc, OnceLock};

use data::Tokenizer;
use sampling::{Structures, TextFollower};
use structure::{Compiler, Matcher, StructureError};

/// Made when it is first needed: most jobs have no structures.
pub(crate) struct TokenStructures {
    vocab_size: usize,
    /// The bytes of every token.
    texts: Box<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>,
    compiler: OnceLock<Result<Compiler, StructureError>>,
}

impl TokenStructures {
    pub(crate) fn new(tokenizer: Arc<dyn Tokenizer>) -> Self {
        let vocab_size = tokenizer.vocab_size();
        Self::of_texts(vocab_size, move || token_texts(tokenizer.as_ref()))
    }

    /// The same without a tokenizer.
    pub(crate) fn of_texts(
        vocab_size: usize,
        texts: impl Fn() -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        Self { vocab_size, texts: Box::new(texts), compiler: OnceLock::new() }
    }

    fn compiler(&self) -> Result<&Compiler, StructureError> {
        let made = self.compiler.get_or_init(|| Compiler::new((self.texts)()));
        made.as_ref().map_err(StructureError::clone)
    }

    /// Whether `text` is a structure that can be used.
    pub(crate) fn check(&self, text: &str) -> Result<(), StructureError> {
        self.compiler()?.check(text)
    }

    /// Whether the text of these tokens is all that its structure asks for.
    pub(crate) fn is_whole(&self, text: &str, token_ids: &[u32]) -> bool {
        let whole = || {
            let mut matcher = self.compiler()?.begin(text)?;
            token_ids.iter().try_for_each(|&id| matcher.push(id))?;
            matcher.allowed(&mut vec![0; self.vocab_size.div_ceil(32)])
        };
        whole().unwrap_or(false)
    }
}

impl Structures for TokenStructures {
    fn begin(&self, structure: &str) -> Result<Box<dyn TextFollower>, String> {
        let begun = self.compiler().and_then(|compiler| compiler.begin(structure));
        Ok(Box::new(Following(begun.map_err(|error| error.to_string())?)))
    }
}

struct Following(Matcher);

impl TextFollower for Following {
    fn allowed(&mut self, bits: &mut [u32]) -> Result<bool, String> {
        self.0.allowed(bits).map_err(|error| error.to_string())
    }

    fn push(&mut self, token: u32) -> Result<(), String> {
        self.0.push(token).map_err(|error| error.to_string())
    }
}

/// The bytes of every token that is text; none of those that stand for more than their text, and of the unknown one, which
/// stands for any.
fn token_texts(tokenizer: &dyn Tokenizer) -> Vec<Vec<u8>> {
    let unknown = tokenizer.special().unk;
    let text = |id: u32| match tokenizer.is_special(id) || Some(id) == unknown {
        true => Vec::new(),
        false => tokenizer.token_bytes(id).unwrap_or_default(),
    };
    (0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX)).map(text).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use data::{TokenizerSpec, open_tokenizer};

    use super::*;

    fn open(spec: &TokenizerSpec) -> Arc<dyn Tokenizer> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers");
        open_tokenizer(spec, &|name: &str| Ok(std::fs::read(folder.join(name))?)).unwrap().into()
    }

    fn tokenizers() -> [Arc<dyn Tokenizer>; 3] {
        let text = |text: &str| Some(text.to_owned());
        let byte_fallback = TokenizerSpec {
            library: text("sentencepiece"),
            model: text("llama_bpe.model"),
            ..TokenizerSpec::default()
        };
        let fast = TokenizerSpec {
            library: text("huggingface"),
            kind: text("hf_llama"),
            ..TokenizerSpec::default()
        };
        let byte_level = TokenizerSpec {
            library: text("megatron"),
            kind: text("GPT2BPETokenizer"),
            vocab_file: text("gpt2_bpe/vocab.json"),
            merge_file: text("gpt2_bpe/merges.txt"),
            ..TokenizerSpec::default()
        };
        [byte_fallback, fast, byte_level].map(|spec| open(&spec))
    }

    /// Any text that JSON can hold is reached by the tokens that the tokenizer makes of it.
    #[test]
    fn every_tokenizers_own_tokens_spell_a_text() {
        let text = "{\"a\": \"na\u{ef}ve \u{65e5}\u{672c}\u{8a9e} \u{1f600}\\n  x\", \"b\": [1.5e3, null]}";
        for tokenizer in tokenizers() {
            let structures = TokenStructures::new(Arc::clone(&tokenizer));
            let ids = tokenizer.encode(text).unwrap();
            let spelled: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
            // SentencePiece puts a space before a text.
            let is_same = String::from_utf8(spelled).unwrap().trim_start() == text;
            assert!(is_same, "{ids:?}");
            let schema =
                r#"{"grammar": "start: \" \" object | object\nobject: %json {\"type\": \"object\"}"}"#;
            let mut matcher = structures.compiler().unwrap().begin(schema).unwrap();
            let wrong = ids.iter().find_map(|&id| Some((id, matcher.push(id).err()?)));
            assert!(structures.is_whole(schema, &ids), "{wrong:?} of {ids:?}");
            assert!(!structures.is_whole(schema, &ids[..ids.len() - 1]));
        }
    }

    #[test]
    fn special_tokens_are_no_text() {
        for tokenizer in tokenizers() {
            let (texts, mut num_special) = (token_texts(tokenizer.as_ref()), 0);
            for (id, text) in (0..).zip(&texts) {
                if tokenizer.is_special(id) {
                    assert!(text.is_empty(), "{id}");
                    num_special += 1;
                }
            }
            assert!(num_special > 0 && texts.len() == tokenizer.vocab_size());
        }
    }
}
