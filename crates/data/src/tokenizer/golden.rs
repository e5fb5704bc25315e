//! Twenty thousand generated strings and four thousand lists of ids for each tokenizer, against the Python packages.
//!
//! The generator is that of `tests/golden/generated.py`; the golden files hold its output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::sentencepiece::SentencePieceModel;
use super::{StreamDecoder, TokenizerSpec, open_tokenizer};

const WORDS: &str = "the of and to in is that for with as on was at by from model answer question prompt system user \
    assistant generation checkpoint tokens batch sample output input training response code value function return \
    hello world naïve café Ångström straße größe élan señor Привет мир как дела это тест 日本語 テキスト 中文 文本 \
    한국어 العربية हिन्दी ﬁnal ﬂow ①② Ⅳ ｆｕｌｌ ～ … — “quoted” 1,024 2023 3.14 x=1; fn(x) {a: b} #tag @user";
const LETTERS: &str = "abcdeXYZ 019  <>_\n";
const POOL: &str = "～①②ﬁﬂÅé日本語中文한국어Привет😀👍🏽👨‍👩‍👧\u{200b}\u{a0}\u{3000}\u{2028}\u{feff}\u{301}\u{fe0f}¹½™…—\t\r\u{b}\0\u{1}\u{7f}\
    \u{85}ﷺΣςİıẞ\u{2581}\u{20000}";
const SPECIALS: [&str; 11] = [
    "<extra_id_0>",
    "<extra_id_1>",
    "<s>",
    "</s>",
    "<unk>",
    "<mask>",
    "ab",
    "abc",
    "\u{2581}\u{2581}",
    "  ",
    "<0x41>",
];
const RANGES: [(u64, u64); 4] = [(32, 0x250), (0x2000, 0x3100), (0xF900, 0xFFFF), (0x1F300, 0x1F9FF)];

/// SplitMix64.
struct Generator {
    state: u64,
    words: Vec<&'static str>,
    letters: Vec<char>,
    pool: Vec<char>,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let words = WORDS.split_whitespace().collect();
        Self { state: seed, words, letters: LETTERS.chars().collect(), pool: POOL.chars().collect() }
    }

    fn next(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn text(&mut self) -> String {
        let mut text: Vec<char> = match self.next(10) {
            0..4 => {
                let num_words = 1 + self.next(7);
                let words: Vec<_> =
                    (0..num_words).map(|_| self.next(WORDS.split_whitespace().count())).collect();
                let joined = words.into_iter().map(|idx| self.words[idx]).collect::<Vec<_>>().join(" ");
                joined.chars().skip(self.next(3)).collect()
            }
            4..8 => (0..1 + self.next(29))
                .map(|_| {
                    let is_rare = self.next(10) < 4;
                    let len = if is_rare { self.pool.len() } else { self.letters.len() };
                    let idx = self.next(len);
                    if is_rare { self.pool[idx] } else { self.letters[idx] }
                })
                .collect(),
            _ => (0..1 + self.next(13))
                .map(|_| {
                    let (low, high) = RANGES[self.next(RANGES.len())];
                    char::from_u32((low as usize + self.next((high - low) as usize)) as u32).unwrap()
                })
                .collect(),
        };
        if self.next(4) == 0 {
            let at = self.next(text.len() + 1);
            let special = SPECIALS[self.next(SPECIALS.len())];
            text.splice(at..at, special.chars());
        }
        text.into_iter().collect()
    }

    fn ids(&mut self, vocab_size: usize) -> Vec<u32> {
        (0..self.next(12)).map(|_| self.next(vocab_size) as u32).collect()
    }
}

#[derive(Deserialize)]
struct Golden {
    num_strings: usize,
    num_id_lists: usize,
    block: usize,
    models: BTreeMap<String, Expected>,
    #[serde(default)]
    tiktoken_vocab: Value,
    #[serde(default)]
    slow_config: Value,
}

/// The first rows in full, and a checksum of each block of rows.
#[derive(Deserialize)]
struct Expected {
    seed: u64,
    encode: Vec<(Vec<u32>, Option<String>)>,
    encode_crc32: String,
    decode: Vec<String>,
    decode_crc32: String,
}

fn golden_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn decompress(path: &Path) -> Vec<u8> {
    zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap()
}

/// The trained models, which are packed into one file: name, length, bytes.
fn packed_models() -> BTreeMap<String, Vec<u8>> {
    let packed = decompress(&golden_path("sentencepiece_models.zst"));
    let mut models = BTreeMap::new();
    let mut rest = packed.as_slice();
    while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
        let (name, len) = std::str::from_utf8(&rest[..end]).unwrap().split_once(' ').unwrap();
        let (model, tail) = rest[end + 1..].split_at(len.parse().unwrap());
        models.insert(name.to_owned(), model.to_vec());
        rest = tail;
    }
    models
}

pub(crate) fn packed_model(name: &str) -> Vec<u8> {
    packed_models().remove(name).unwrap()
}

fn checksums(rows: &[String], block: usize) -> Vec<String> {
    rows.chunks(block).map(|rows| format!("{:08x}", crc32fast::hash(rows.concat().as_bytes()))).collect()
}

fn row(ids: &[u32], text: &str) -> String {
    let ids = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    format!("{ids}\u{1f}{text}\n")
}

/// One tokenizer as the golden file sees it.
struct Subject<'a> {
    encode: &'a dyn Fn(&str) -> Vec<u32>,
    decode: &'a dyn Fn(&[u32]) -> String,
    vocab_size: usize,
}

fn check(name: &str, subject: &Subject<'_>, golden: &Golden, strings: &[String]) {
    let expected = &golden.models[name];
    let rows: Vec<String> = strings
        .iter()
        .enumerate()
        .map(|(position, text)| {
            let ids = (subject.encode)(text);
            let decoded = (subject.decode)(&ids);
            if let Some((expected_ids, expected_text)) = expected.encode.get(position) {
                assert_eq!(&ids, expected_ids, "{name} string {position}: {text:?}");
                assert_eq!(&decoded, expected_text.as_ref().unwrap_or(text), "{name} string {position}");
            }
            row(&ids, &decoded)
        })
        .collect();
    let wrong = |actual: Vec<String>, expected: &str| {
        let expected: Vec<&str> = expected.split(' ').collect();
        assert_eq!(actual.len(), expected.len());
        (0..actual.len()).filter(|&block| actual[block] != expected[block]).collect::<Vec<_>>()
    };
    let differing = wrong(checksums(&rows, golden.block), &expected.encode_crc32);
    assert!(differing.is_empty(), "{name}: blocks of strings {differing:?}");
    let mut generator = Generator::new(expected.seed);
    let rows: Vec<String> = (0..golden.num_id_lists)
        .map(|position| {
            let ids = generator.ids(subject.vocab_size);
            let decoded = (subject.decode)(&ids);
            if let Some(expected) = expected.decode.get(position) {
                assert_eq!(&decoded, expected, "{name} list {position}: {ids:?}");
            }
            row(&ids, &decoded)
        })
        .collect();
    let differing = wrong(checksums(&rows, golden.block), &expected.decode_crc32);
    assert!(differing.is_empty(), "{name}: blocks of id lists {differing:?}");
}

fn read_golden(name: &str) -> (Golden, Vec<String>) {
    let golden: Golden = serde_json::from_slice(&decompress(&golden_path(name))).unwrap();
    assert!(golden.num_strings >= 20_000);
    let mut generator = Generator::new(1);
    let strings = (0..golden.num_strings).map(|_| generator.text()).collect();
    (golden, strings)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizers").join(name))
        .unwrap()
}

#[test]
fn nine_sentencepiece_models_equal_the_library() {
    let (golden, strings) = read_golden("sentencepiece.json.zst");
    let mut models = packed_models();
    for name in ["llama_bpe", "nemo_bpe_extra"] {
        models.insert(name.into(), fixture(&format!("{name}.model")));
    }
    assert!(models.len() == 9 && golden.models.keys().eq(models.keys()));
    for (name, bytes) in &models {
        let model = SentencePieceModel::from_bytes(name, bytes).unwrap();
        let subject = Subject {
            encode: &|text| model.encode(text),
            decode: &|ids| model.decode(ids).unwrap(),
            vocab_size: model.num_pieces(),
        };
        check(name, &subject, &golden, &strings);
    }
}

#[test]
fn the_other_tokenizers_equal_the_python_packages() {
    let (golden, strings) = read_golden("tokenizers.json.zst");
    let open = |spec: Value, legacy: Option<bool>| {
        let spec: TokenizerSpec = serde_json::from_value(spec).unwrap();
        let read = |reference: &str| match reference {
            "vocab.json" => Ok(golden.tiktoken_vocab.to_string().into_bytes()),
            "llama/tokenizer.model" => Ok(fixture("llama_bpe.model")),
            "llama/tokenizer_config.json" => {
                let mut config = golden.slow_config.clone();
                config["legacy"] = json!(legacy);
                Ok(config.to_string().into_bytes())
            }
            reference => match reference.strip_prefix("nemo:") {
                Some(name) => Ok(fixture(name)),
                None => Err("absent".into()),
            },
        };
        open_tokenizer(&spec, &read).unwrap()
    };
    let llama = json!({"library": "huggingface", "type": "llama"});
    let gpt2 = json!({"library": "megatron", "type": "GPT2BPETokenizer", "vocab_file": "nemo:gpt2_bpe/vocab.json",
                      "merge_file": "nemo:gpt2_bpe/merges.txt"});
    let tokenizers = [
        ("tiktoken", open(json!({"library": "tiktoken", "vocab_file": "vocab.json"}), None)),
        ("slow_legacy", open(llama.clone(), Some(true))),
        ("slow_plain", open(llama, Some(false))),
        ("hf_llama", open(json!({"library": "huggingface", "model": "nemo:hf_llama/tokenizer.json"}), None)),
        ("gpt2", open(gpt2, None)),
    ];
    assert_eq!(golden.models.len(), tokenizers.len());
    for (name, tokenizer) in &tokenizers {
        let subject = Subject {
            encode: &|text| tokenizer.encode(text).unwrap(),
            decode: &|ids| tokenizer.decode(ids).unwrap(),
            vocab_size: tokenizer.vocab_size(),
        };
        check(name, &subject, &golden, &strings);
    }
}

/// Texts given out token by token, joined, are the whole text, and none of them splits a character.
#[test]
fn streamed_pieces_join_to_the_whole() {
    let (golden, _) = read_golden("tokenizers.json.zst");
    let read = |reference: &str| match reference.strip_prefix("nemo:") {
        Some(name) => Ok(fixture(name)),
        None => Ok(golden.tiktoken_vocab.to_string().into_bytes()),
    };
    for spec in [
        json!({"library": "tiktoken", "vocab_file": "vocab.json"}),
        json!({"library": "huggingface", "model": "nemo:hf_llama/tokenizer.json"}),
        json!({"library": "sentencepiece", "model": "nemo:nemo_bpe_extra.model", "sentencepiece_legacy": false}),
    ] {
        let tokenizer = open_tokenizer(&serde_json::from_value(spec.clone()).unwrap(), &read).unwrap();
        let mut generator = Generator::new(7);
        for _ in 0..2000 {
            let ids = generator.ids(tokenizer.vocab_size());
            let tokens: Vec<Vec<u8>> = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
            let mut decoder = StreamDecoder::default();
            let mut text: String = tokens.iter().map(|token| decoder.push(token)).collect();
            text.push_str(&decoder.finish());
            assert_eq!(text, String::from_utf8_lossy(&tokens.concat()), "{spec} {ids:?}");
            if spec["library"] == "tiktoken" {
                assert_eq!(text, tokenizer.decode(&ids).unwrap());
            }
        }
    }
}
