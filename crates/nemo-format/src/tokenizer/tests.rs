use super::*;

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A GGUF file with a vocabulary and no tensors.
struct Fixture {
    keys: u64,
    body: Vec<u8>,
}

impl Fixture {
    fn new(model: &str) -> Self {
        let fixture = Self { keys: 0, body: Vec::new() };
        fixture.text("tokenizer.ggml.model", model).text("general.name", "Tiny")
    }

    fn key(&mut self, key: &str, value_type: u32) {
        self.keys += 1;
        string(&mut self.body, key);
        self.body.extend_from_slice(&value_type.to_le_bytes());
    }

    fn text(mut self, key: &str, text: &str) -> Self {
        self.key(key, 8);
        string(&mut self.body, text);
        self
    }

    fn id(mut self, key: &str, id: u32) -> Self {
        self.key(key, 4);
        self.body.extend_from_slice(&id.to_le_bytes());
        self
    }

    fn texts(mut self, key: &str, texts: &[&str]) -> Self {
        self.key(key, 9);
        self.body.extend_from_slice(&8_u32.to_le_bytes());
        self.body.extend_from_slice(&(texts.len() as u64).to_le_bytes());
        for text in texts {
            string(&mut self.body, text);
        }
        self
    }

    fn kinds(mut self, kinds: &[i32]) -> Self {
        self.key("tokenizer.ggml.token_type", 9);
        self.body.extend_from_slice(&5_u32.to_le_bytes());
        self.body.extend_from_slice(&(kinds.len() as u64).to_le_bytes());
        for kind in kinds {
            self.body.extend_from_slice(&kind.to_le_bytes());
        }
        self
    }

    fn build(&self) -> Result<TokenizerPart, FormatError> {
        let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend_from_slice(&self.keys.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        std::fs::write(&path, bytes).unwrap();
        from_gguf(&GgufFile::open(&path).unwrap())
    }

    fn error(&self) -> String {
        let text = self.build().unwrap_err().to_string();
        let (_, after) = text.rsplit_once(std::path::MAIN_SEPARATOR).unwrap();
        format!("…{after}")
    }
}

fn bpe(pre: &str) -> Fixture {
    Fixture::new("gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "ab", "<tool>"])
        .kinds(&[3, 1, 1, 1, 4])
        .texts("tokenizer.ggml.merges", &["a b"])
        .id("tokenizer.ggml.eos_token_id", 0)
        .text("tokenizer.chat_template", "{{ x }}\n")
}

#[test]
fn byte_level_bpe_becomes_a_tokenizer_json() {
    let part = bpe("smollm").build().unwrap();
    insta::assert_snapshot!(part.section.to_yaml(), @r#"
    library: huggingface
    type: Tiny
    model: nemo:88b931d946ea20f1c0992fd7a2b879df_tokenizer.json
    vocab_file: null
    merge_file: null
    use_fast: true
    special_tokens:
      eos_token: <|end|>
    chat_template: '{{ x }}

      '
    "#);
    let json: serde_json::Value = serde_json::from_slice(&part.artifacts[0].bytes).unwrap();
    insta::assert_snapshot!("smollm_tokenizer", serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn damaged_vocabularies_are_named() {
    insta::assert_snapshot!(bpe("klingon").build().unwrap_err().to_string().split(" in ").next().unwrap(), @"tokenizer.ggml.pre `klingon`");
    insta::assert_snapshot!(bpe("gpt-2").id("tokenizer.ggml.bos_token_id", 5).error(), @"…tiny.gguf` is not a model configuration: metadata key `tokenizer.ggml.bos_token_id` is 5, the vocabulary has 5 tokens");
    let merge = |merge: &str| {
        Fixture::new("gpt2")
            .text("tokenizer.ggml.pre", "gpt-2")
            .texts("tokenizer.ggml.tokens", &["a", "b", "ab"])
            .texts("tokenizer.ggml.merges", &[merge])
    };
    assert!(merge("a b").build().is_ok());
    insta::assert_snapshot!(merge("b a").error(), @r#"…tiny.gguf` is not a model configuration: metadata key `tokenizer.ggml.merges` has the merge "b a", which the tokens do not bear out"#);
    insta::assert_snapshot!(merge("").error(), @r#"…tiny.gguf` is not a model configuration: metadata key `tokenizer.ggml.merges` has the merge "", which the tokens do not bear out"#);
    insta::assert_snapshot!(Fixture::new("gpt2").text("tokenizer.ggml.pre", "gpt-2").texts("tokenizer.ggml.tokens", &["a", "a"]).error(), @r#"…tiny.gguf` is not a model configuration: metadata key `tokenizer.ggml.tokens` has the token "a" twice"#);
    let kinds = merge("a b").kinds(&[1, 1]);
    insta::assert_snapshot!(kinds.error(), @"…tiny.gguf` is not a model configuration: metadata key `tokenizer.ggml.token_type` has 2 entries for 3 tokens");
}

#[test]
fn every_listed_pre_tokenizer_is_known() {
    let listed = pre_tokenizer::SUPPORTED.split('`').skip(1).step_by(2);
    let mut count = 0;
    for name in listed {
        assert!(pre_tokenizer::by_name(name).is_some(), "{name}");
        count += 1;
    }
    assert_eq!(count, 9);
}

#[test]
fn a_sentencepiece_proto_has_the_pieces_of_the_original() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama_bf16.gguf");
    let original = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/hf_llama/tokenizer.model");
    let part = from_gguf(&GgufFile::open(Path::new(golden)).unwrap()).unwrap();
    let original = std::fs::read(original).unwrap();
    let (ours, theirs) = (pieces(&part.artifacts[0].bytes), pieces(&original));
    assert_eq!(ours.len(), 420);
    assert_eq!(ours, theirs);
}

/// Text, score and kind of every piece of a model proto, the kind's default filled in.
fn pieces(mut proto: &[u8]) -> Vec<(Vec<u8>, Vec<u8>, u64)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (&byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (taken, rest) = bytes.split_at(len);
        *bytes = rest;
        taken
    }
    let mut out = Vec::new();
    while !proto.is_empty() {
        let tag = varint(&mut proto);
        let len = varint(&mut proto) as usize;
        let mut message = take(&mut proto, len);
        if tag != 0x0a {
            continue;
        }
        let mut piece = (Vec::new(), Vec::new(), 1);
        while !message.is_empty() {
            match varint(&mut message) {
                0x0a => {
                    let len = varint(&mut message) as usize;
                    piece.0 = take(&mut message, len).to_vec();
                }
                0x15 => piece.1 = take(&mut message, 4).to_vec(),
                _ => piece.2 = varint(&mut message),
            }
        }
        out.push(piece);
    }
    out
}
