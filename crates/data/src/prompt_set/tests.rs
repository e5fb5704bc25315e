//! Files to prompts, and what is left out on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::chat::ChatPromptTokens;
use crate::test_tokenizer::ByteTokenizer;
use crate::tokenizer::{SpecialTokens, Tokenizer};

fn builder() -> PromptBuilder {
    PromptBuilder::new(Arc::new(ByteTokenizer::default()), ChatPromptTokens::default())
}

fn load(text: &str, limits: &LengthLimits, on_bad: OnBadRecord) -> Result<PromptSet, DataError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    load_prompts(&path, builder(), limits, on_bad)
}

fn all(set: &PromptSet) -> Vec<PreparedPrompt> {
    let load = |position| {
        let prompt = set.load(position).unwrap();
        let PreparedPrompt { index, text, metadata, .. } = prompt.clone();
        let num_tokens = prompt.ids.len();
        let expect = PromptText { index, text, metadata, num_tokens, ..PromptText::default() };
        assert_eq!(set.text(position).unwrap(), expect);
        prompt
    };
    (0..set.len()).map(load).collect()
}

fn line(question: &str) -> String {
    format!(
        "{{\"system\": \"\", \"id\": 1, \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}]}}\n"
    )
}

#[test]
fn bad_and_long_records_keep_the_numbering() {
    let text = [line("a"), "nonsense\n".into(), line(&"b".repeat(100)), line("c")].concat();
    let limits = LengthLimits { max_input_len: Some(100), ..LengthLimits::of_prompt(4096) };
    let set = load(&text, &limits, OnBadRecord::Skip).unwrap();
    assert_eq!(set.num_read, 4);
    let prompts = all(&set);
    assert_eq!(
        prompts.iter().map(|prompt| (prompt.line, prompt.index)).collect::<Vec<_>>(),
        [(1, 0), (4, 3)]
    );
    assert!(prompts[1].text.contains("User\nc\n") && prompts[1].sample_idx == 3, "{prompts:?}");
    assert_eq!(set.too_long, [(3, 160)]);
    assert_eq!(set.bad.iter().map(|bad| bad.place.as_str()).collect::<Vec<_>>(), ["2"]);
    assert_eq!((set.num_bad, set.num_noted, set.note.as_ref().map(|note| note.0)), (1, 2, Some(1)));
    assert_eq!(prompts[0].metadata.len(), 2);
    assert_eq!([0, 1, 2, 3, u64::MAX].map(|idx| set.position_of(idx)), [Some(0), None, None, Some(1), None]);
    assert_eq!((set.num_tokens(1), set.line(1), set.line(2)), (Some(prompts[1].ids.len()), Some(4), None));
    assert!(set.load(2).is_err());
}

#[test]
fn records_that_are_kept_have_their_places_and_say_why() {
    let text = [line("a"), "nonsense\n".into(), line(&"b".repeat(100)), "{}\n".into(), line("c")].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    let keep = OnUnusable { bad: OnBadRecord::Keep, too_long: OnOverlength::Keep };
    let set = load_prompts(&path, builder(), &LengthLimits::of_prompt(100), keep).unwrap();
    assert_eq!((set.len(), set.num_unusable(), set.num_bad), (5, 3, 2));
    let of_all = |of: &dyn Fn(usize) -> bool| (0..5).filter(|&position| of(position)).collect::<Vec<_>>();
    assert_eq!(of_all(&|position| set.is_unusable(position)), [1, 2, 3]);
    assert_eq!(of_all(&|position| set.num_tokens(position).is_none()), [1, 2, 3]);
    assert_eq!(of_all(&|position| set.outlook(position).is_some()), [0, 4]);
    assert_eq!((set.sample_idx(2), set.position_of(2)), (Some(2), Some(2)));
    let errors: Vec<Option<String>> = (0..5).map(|position| set.text(position).unwrap().error).collect();
    assert_eq!((&errors[0], &errors[4]), (&None, &None));
    let said = |position: usize| errors[position].as_deref().unwrap();
    insta::assert_snapshot!(said(1), @"not JSON at column 1: expected a value, found `nonsense`");
    insta::assert_snapshot!(said(2), @"160 tokens are more than `model.data.train_ds.max_seq_length=100` allows");
    assert!(said(3).starts_with("it has neither `conversations` nor `messages`"), "{}", said(3));
    assert!(set.text(1).unwrap().text.is_empty() && set.text(2).unwrap().text.contains("bbb"));
}

#[test]
fn prompts_are_cut_at_their_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, line("a") + &line(&"b".repeat(100))).unwrap();
    let limits = LengthLimits::of_prompt(100);
    let set = load_prompts(&path, builder().with_max_tokens(100), &limits, OnBadRecord::Refuse).unwrap();
    let prompts = all(&set);
    assert_eq!((set.num_cut, set.first_cut, set.too_long.len()), (1, Some((2, 160)), 0));
    assert_eq!((prompts[1].ids.len(), prompts[0].ids.len() < 100), (100, true));
    assert!(prompts[1].text.ends_with("<extra_id_1>Assistant\n") && prompts[1].text.starts_with("bbb"));
}

#[test]
fn several_files_are_counted_through() {
    let folder = tempfile::tempdir().unwrap();
    let paths =
        [("a.jsonl", line("a") + "\n"), ("b.jsonl", line("b") + "x\n" + &line("c"))].map(|(name, text)| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        });
    let set =
        load_all_prompts(&paths, builder(), &LengthLimits::default(), OnBadRecord::Skip, &|| {}).unwrap();
    let indices: Vec<u64> = all(&set).iter().map(|prompt| prompt.index).collect();
    assert_eq!(indices, [0, 1, 3]);
    let shown = |text: String| text.replace(&folder.path().display().to_string(), "");
    assert_eq!(shown(set.place(4)), "3 of `/b.jsonl`");
    assert_eq!(shown(set.bad[0].place.clone()), "2 of `/b.jsonl`");
    let single = load_prompts(&paths[0], builder(), &LengthLimits::default(), OnBadRecord::Skip).unwrap();
    assert!(single.fingerprint != set.fingerprint && single.place(1) == "1");
    let refused = load_all_prompts(&paths, builder(), &LengthLimits::default(), OnBadRecord::Refuse, &|| {});
    insta::assert_snapshot!(shown(refused.err().unwrap().to_string()), @r"
    1 of 4 records of `/a.jsonl`, `/b.jsonl` cannot be used:
      line 2 of `/b.jsonl`: not JSON at column 1: expected a value, found `x`
    ");
    std::fs::write(&paths[1], line("d")).unwrap();
    let error = shown(set.load(2).unwrap_err().to_string());
    assert!(error.contains("data file `/b.jsonl` was changed") && error.contains("line 3 is"), "{error}");
}

#[test]
fn refusal_lists_the_first_ten() {
    let text = [line("a"), "{}\n".repeat(6), "\n\n".into(), "[]\n{\n".repeat(3), line("a")].concat();
    let error = load(&text, &LengthLimits::default(), OnBadRecord::Refuse).err().unwrap();
    let message = error.to_string();
    let (head, listed) = message.split_once('\n').unwrap();
    assert!(
        head.starts_with("14 of 16 records of `") && head.ends_with("data.jsonl` cannot be used:"),
        "{head}"
    );
    insta::assert_snapshot!(listed, @r#"
line 2: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 3: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 4: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 5: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 6: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 7: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
line 8: the line is blank
line 9: the line is blank
line 10: the line is a list, not an object
line 11: not JSON at column 2: expected a key in double quotes, found the end of the line
and 4 more
"#);
}

#[test]
fn every_token_field_has_its_limit() {
    let record = r#"{"system": "", "conversations": [{"from": "User", "value": "Q"}, {"from": "Assistant", "value": "AAAA"}]}"#;
    let prompt = builder().build(parse_object(record.as_bytes()).unwrap()).unwrap();
    let num_prompt = prompt.ids.len();
    // The answer, the end of its turn, and the start of the next.
    let num_answer = "AAAA\n<extra_id_1>".len();
    for (field, num_tokens) in [
        ("context_ids", num_prompt),
        ("input_ids", num_prompt + num_answer),
        ("answer_ids", num_answer),
        ("mask", num_prompt + num_answer),
    ] {
        let left_out = |limit| {
            let fields = vec![(field.parse().unwrap(), limit)];
            let limits = LengthLimits { fields, max_input_len: None };
            load(record, &limits, OnBadRecord::Refuse).unwrap().too_long
        };
        assert_eq!((left_out(num_tokens), left_out(num_tokens - 1)), (vec![], vec![(1, num_tokens)]));
    }
    insta::assert_snapshot!("context".parse::<TokenField>().unwrap_err(), @"`model.data.train_ds.truncation_field` names `context`, it may name `context_ids`, `input_ids`, `answer_ids` and `mask`, because `model.data.chat=true`");
}

#[test]
fn samples_are_drawn_again_and_again_each_with_numbers_of_its_own() {
    let text: String = ["a", "b", "c"].map(line).concat();
    let set = load(&text, &LengthLimits::default(), OnBadRecord::Refuse).unwrap().draw(7).unwrap();
    let prompts = all(&set);
    // Two blocks of three and one of one, in NeMo's order: every record twice and one of them three times.
    let count = |line| prompts.iter().filter(|prompt| prompt.line == line).count();
    let mut counts = [1, 2, 3].map(count);
    counts.sort_unstable();
    assert_eq!((set.len(), counts), (7, [2, 2, 3]));
    assert!(prompts.iter().zip(0..).all(|(prompt, position)| prompt.sample_idx == position));
    assert!(prompts.iter().all(|prompt| prompt.index + 1 == prompt.line));
    assert_eq!([0, 6, 7].map(|idx| set.position_of(idx)), [Some(0), Some(6), None]);
    let none = load("", &LengthLimits::default(), OnBadRecord::Refuse).unwrap().draw(3);
    assert!(matches!(none, Err(DataError::NoSamples)));
}

#[test]
fn when_nothing_is_left_every_cause_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let told = |text: &str, limits: &LengthLimits| {
        std::fs::write(&path, text).unwrap();
        let set = load_prompts(&path, builder(), limits, OnBadRecord::Skip).unwrap();
        let error = set.check_any().unwrap_err().to_string();
        error.replace(&path.display().to_string(), "data.jsonl")
    };
    insta::assert_snapshot!(told("\n", &LengthLimits::default()), @"there is no sample to generate from: `data.jsonl` holds no record");
    insta::assert_snapshot!(told("{}\n[]\n", &LengthLimits::of_prompt(9)), @r#"
    there is no sample to generate from: 2 of 2 records of `data.jsonl` are bad:
      line 1: it has neither `conversations` nor `messages`; for prompt-response records, with their keys for `input` and `output`, in the shell write model.data.chat=false 'model.data.train_ds.prompt_template="{input} {output}"'
      line 2: the line is a list, not an object
    "#);
    let long = line(&"a".repeat(60)) + &line("b");
    insta::assert_snapshot!(told(&long, &LengthLimits::of_prompt(9)), @"there is no sample to generate from: 2 of 2 records of `data.jsonl` are longer than `model.data.train_ds.max_seq_length=9` allows; the shortest of them has 61 tokens");
    let limits = LengthLimits { max_input_len: Some(8), ..LengthLimits::of_prompt(9) };
    insta::assert_snapshot!(told(&(long + "7\n"), &limits), @"
    there is no sample to generate from: 1 of 3 records of `data.jsonl` are bad:
      line 3: the line is a number, not an object
    2 of 3 records of `data.jsonl` are longer than `model.data.train_ds.max_seq_length=9` or `trainer.generation.trt_llm.max_input_len=8` allows; the shortest of them has 61 tokens
    ");
    let many = load(&"x\n".repeat(30), &LengthLimits::default(), OnBadRecord::Skip).unwrap();
    assert!(many.check_any().unwrap_err().to_string().ends_with("\n  and 20 more"));
}

#[test]
fn a_template_that_cannot_be_used_is_never_skipped() {
    let text = line("a") + "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, text).unwrap();
    let builder =
        builder().with_template(crate::ChatTemplate::new([("default", "{% no %}")], Vec::new(), None));
    let error = load_prompts(&path, builder, &LengthLimits::default(), OnBadRecord::Skip).err().unwrap();
    let told = error.to_string().replace(&path.display().to_string(), "data.jsonl");
    insta::assert_snapshot!(told, @"line 2 of `data.jsonl` is a `messages` record, and the tokenizer's chat template is not valid: Encountered unknown tag 'no'. (line 1 of the template)");
}

#[test]
fn what_is_known_of_the_work_comes_from_the_record_and_the_file() {
    let record = |hint: &str, question: &str| {
        format!(
            "{{\"system\": \"{}\", \"tokens\": {hint}, \"conversations\": [{{\"from\": \"User\", \"value\": \"{question}\"}}]}}\n",
            "s".repeat(40)
        )
    };
    let text = [record("12", "a"), line("b"), record("null", "c"), record("0", "a")].concat();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, &text).unwrap();
    let read = |builder| load_prompts(&path, builder, &LengthLimits::default(), OnBadRecord::Refuse).unwrap();
    let set = read(builder().with_length_hints("tokens".to_owned()));
    let outlooks: Vec<_> = (0..4).map(|position| set.outlook(position).unwrap()).collect();
    assert_eq!(
        outlooks.iter().map(|outlook| outlook.length_hint).collect::<Vec<_>>(),
        [Some(12), None, None, Some(0)]
    );
    assert_eq!(
        outlooks.iter().map(|outlook| outlook.same_as).collect::<Vec<_>>(),
        [Some(0), None, None, Some(0)]
    );
    let prefixes: Vec<_> = outlooks.iter().map(|outlook| outlook.prefix).collect();
    assert!(
        prefixes[0].is_some() && prefixes[0] == prefixes[2] && prefixes[0] == prefixes[3],
        "{prefixes:?}"
    );
    assert_ne!(prefixes[0], prefixes[1]);
    assert!((0..4).all(|position| set.num_tokens(position) == Some(outlooks[position].num_tokens)));
    assert_eq!(set.outlook(4), None);
    // Where samples are drawn, a record comes again.
    let drawn = set.draw(8).unwrap();
    for position in 0..8 {
        let outlook = drawn.outlook(position).unwrap();
        assert!(outlook.same_as.is_some());
        let again =
            (0..8).find(|&other| other != position && drawn.line(other) == drawn.line(position)).unwrap();
        assert_eq!(drawn.outlook(again), Some(outlook));
    }
    assert!((0..4).all(|position| read(builder()).outlook(position).unwrap().length_hint.is_none()));
}

/// Counts the texts that it is given.
#[derive(Default)]
struct Counting {
    inner: ByteTokenizer,
    num_texts: AtomicUsize,
}

impl Tokenizer for Counting {
    fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        self.num_texts.fetch_add(1, Ordering::Relaxed);
        self.inner.encode(text)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, DataError> {
        self.inner.decode(ids)
    }

    fn token_bytes(&self, id: u32) -> Result<Vec<u8>, DataError> {
        self.inner.token_bytes(id)
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn special(&self) -> &SpecialTokens {
        self.inner.special()
    }
}

#[test]
fn a_record_is_tokenized_to_be_measured_and_to_be_generated() {
    let tokenizer = Arc::new(Counting::default());
    let shared: Arc<dyn Tokenizer> = tokenizer.clone();
    let builder = PromptBuilder::new(shared, ChatPromptTokens::default());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data.jsonl");
    std::fs::write(&path, [line("a"), line("b"), line("c")].concat()).unwrap();
    let set = load_prompts(&path, builder, &LengthLimits::default(), OnBadRecord::Refuse).unwrap();
    assert_eq!(tokenizer.num_texts.load(Ordering::Relaxed), 3);
    let prompts: Vec<_> = (0..3).map(|position| set.load(position).unwrap()).collect();
    assert_eq!(tokenizer.num_texts.load(Ordering::Relaxed), 6);
    for (position, prompt) in prompts.into_iter().enumerate() {
        assert_eq!(set.text(position).unwrap().text, prompt.text);
    }
    assert_eq!(tokenizer.num_texts.load(Ordering::Relaxed), 6);
    assert_eq!(set.fingerprint, blake3::hash(&std::fs::read(&path).unwrap()).to_hex().as_str());
}

#[test]
fn a_custom_id_names_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let line = |id: &str| {
        format!(
            "{{\"custom_id\": \"{id}\", \"body\": {{\"messages\": [{{\"role\": \"user\", \"content\": \"a\"}}]}}}}\n"
        )
    };
    let paths = ["a", "b"].map(|name| folder.path().join(name));
    std::fs::write(&paths[0], line("x") + &line("y")).unwrap();
    std::fs::write(&paths[1], line("z") + &line("y").replace("content", "bad")).unwrap();
    let load = |paths: &[PathBuf]| {
        let template = crate::ChatTemplate::new([("default", "x")], Vec::new(), None);
        let builder = builder().with_openai_batch(Some(1)).with_template(template);
        load_all_prompts(paths, builder, &LengthLimits::default(), OnBadRecord::Skip, &|| {}).err()
    };
    assert!(load(&paths[..1]).is_none());
    let error = load(&paths).unwrap().to_string().replace(&folder.path().display().to_string(), "[DIR]");
    insta::assert_snapshot!(error, @"line 2 of `[DIR]/b` has the `custom_id` `y` of line 2: each must be another");
}
