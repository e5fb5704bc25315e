//! Texts that are drawn at random among the tokens that a structure allows.
#![expect(clippy::unwrap_used, reason = "clippy knows test functions, not the helpers beside them")]

use std::time::{Duration, Instant};

use structure::{Compiler, Matcher};

/// All bytes, and texts of several bytes that cross the borders of what a grammar names.
fn vocabulary() -> Vec<Vec<u8>> {
    let words = [
        "\": \"", "\",", "{\"", "\"}", " yes", "yes", "no", "null", "true", "\u{e9}", "12", "}}", "ab", "e+",
    ];
    let bytes = (0..=255_u8).map(|byte| vec![byte]);
    // A special token has no bytes.
    [vec![]].into_iter().chain(bytes).chain(words.iter().map(|word| word.as_bytes().to_vec())).collect()
}

/// A generator of numbers without pretensions.
struct Draws(u64);

impl Draws {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn allowed(matcher: &mut Matcher, num_tokens: usize) -> (Vec<u32>, bool) {
    let mut bits = vec![u32::MAX; num_tokens.div_ceil(32)];
    let may_end = matcher.allowed(&mut bits).unwrap();
    let is_set = |id: &u32| bits[*id as usize / 32] >> (id % 32) & 1 == 1;
    (((0..bits.len() as u32 * 32).filter(is_set)).collect(), may_end)
}

/// Draws tokens until the text ends; `None` where it is longer than `most`.
fn draw(compiler: &Compiler, text: &str, draws: &mut Draws, most: usize) -> Option<String> {
    let tokens = vocabulary();
    let mut matcher = compiler.begin(text).unwrap();
    let mut drawn: Vec<u8> = Vec::new();
    for _ in 0..most {
        let (ids, may_end) = allowed(&mut matcher, tokens.len());
        assert!(ids.iter().all(|&id| !tokens[id as usize].is_empty()), "a token without bytes in {ids:?}");
        let choice = draws.below(ids.len() + usize::from(may_end));
        match ids.get(choice) {
            None => return Some(String::from_utf8(drawn).unwrap()),
            Some(&id) => {
                drawn.extend(&tokens[id as usize]);
                matcher.push(id).unwrap();
            }
        }
    }
    None
}

fn all(text: &str, check: impl Fn(&str) -> bool) {
    let compiler = Compiler::new(vocabulary()).unwrap();
    let mut num_ended = 0;
    for seed in 0..40 {
        if let Some(drawn) = draw(&compiler, text, &mut Draws(seed), 200) {
            assert!(check(&drawn), "{text}: {drawn:?}");
            num_ended += 1;
        }
    }
    assert!(num_ended > 10, "{text}: only {num_ended} texts ended");
}

#[test]
fn choices_and_regular_expressions_are_matched_as_a_whole() {
    all(r#"{"choice": ["yes", "yes and no", "a/b", "\u00e9[.*]\n", "(x|y)"]}"#, |drawn| {
        ["yes", "yes and no", "a/b", "\u{e9}[.*]\n", "(x|y)"].contains(&drawn)
    });
    let signs: Vec<String> =
        (b'!'..=b'~').filter(u8::is_ascii_punctuation).map(|sign| format!("a{}b", sign as char)).collect();
    all(&format!("{{\"choice\": {signs:?}}}"), |drawn| signs.iter().any(|sign| sign == drawn));
    all(r#"{"regex": "[0-9]{2,4}(-[ab]+)?"}"#, |drawn| {
        let (digits, letters) = drawn.split_once('-').unwrap_or((drawn, "a"));
        (2..=4).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && !letters.is_empty()
            && letters.bytes().all(|byte| b"ab".contains(&byte))
    });
}

#[test]
fn json_fits_its_schema() {
    let schema = r##"{"json": {"type": "object", "properties": {
        "answer": {"enum": ["yes", "no"]}, "score": {"type": "integer", "minimum": 0, "maximum": 12},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2}},
        "required": ["answer", "score", "tags"], "additionalProperties": false,
        "$defs": {"tag": {"type": "string", "maxLength": 3}}}, "disable_any_whitespace": true}"##;
    all(schema, |drawn| {
        let value: serde_json::Value = serde_json::from_str(drawn).unwrap();
        let tags = value["tags"].as_array().unwrap();
        value.as_object().unwrap().len() == 3
            && ["yes", "no"].contains(&value["answer"].as_str().unwrap())
            && (0..=12).contains(&value["score"].as_i64().unwrap())
            && (1..=2).contains(&tags.len())
            && tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 3)
            && !drawn.contains(['\n', '\t'])
    });
}

#[test]
fn grammars_are_followed() {
    all(r#"{"grammar": "start: \"(\" start \")\" | \"yes\""}"#, |drawn| {
        let depth = drawn.find("yes").unwrap();
        drawn == format!("{}yes{}", "(".repeat(depth), ")".repeat(depth))
    });
}

#[test]
fn a_matcher_depends_on_its_own_tokens_alone() {
    let text = r#"{"regex": "(yes|no|12)+"}"#;
    let compiler = Compiler::new(vocabulary()).unwrap();
    let whole = draw(&compiler, text, &mut Draws(3), 50);
    for seed in 10..20 {
        draw(&compiler, text, &mut Draws(seed), 50);
    }
    assert_eq!(draw(&compiler, text, &mut Draws(3), 50), whole);
}

#[test]
fn what_cannot_be_used_is_told() {
    let compiler = Compiler::new(vocabulary()).unwrap();
    let refused = |text: &str| compiler.check(text).unwrap_err().to_string();
    insta::assert_snapshot!(refused(r#"{"json": {"type": "strin"}}"#), @"the JSON schema cannot be used: Invalid type: strin");
    insta::assert_snapshot!(refused(r##"{"json": {"$ref": "#/nowhere"}}"##), @"the JSON schema cannot be used: Reference segment 'nowhere' not found in '#/nowhere'");
    insta::assert_snapshot!(refused(r#"{"json": false}"#), @"the JSON schema cannot be used: Unsatisfiable schema: schema is false");
    insta::assert_snapshot!(refused(r#"{"json": {"type": "object", "dependentSchemas": {"a": {}}}}"#), @r#"the JSON schema cannot be used: Unimplemented keys: ["dependentSchemas"]"#);
    insta::assert_snapshot!(refused(r#"{"regex": "a("}"#), @"the regular expression cannot be used: unclosed group");
    insta::assert_snapshot!(refused(r#"{"regex": "(?=a)b"}"#), @"the regular expression cannot be used: look-around, including look-ahead and look-behind, is not supported");
    insta::assert_snapshot!(refused(r#"{"regex": "(?P<x>a)\\1"}"#), @"the regular expression cannot be used: backreferences are not supported");
    insta::assert_snapshot!(refused(r#"{"grammar": "start: nothing"}"#), @r#"the grammar cannot be used: at 1(8): unknown name: "nothing""#);
    insta::assert_snapshot!(refused(r#"{"grammar": ""}"#), @"the grammar cannot be used: no start rule found");
    let long = format!(r#"{{"regex": "{}"}}"#, "a".repeat(1 << 20));
    insta::assert_snapshot!(refused(&long), @"a structure has at most 1048576 bytes of text, this one has 1048589");
}

#[test]
fn a_hostile_structure_ends_soon() {
    let compiler = Compiler::new(vocabulary()).unwrap();
    let nested = |depth: usize| {
        let mut schema = r#"{"type": "null"}"#.to_owned();
        for _ in 0..depth {
            schema = format!(r#"{{"type": "array", "items": {schema}}}"#);
        }
        format!(r#"{{"json": {schema}}}"#)
    };
    let wide: Vec<String> =
        (0..20_000).map(|n| format!(r#""p{n}": {{"type": "string", "pattern": "^a{n}+$"}}"#)).collect();
    let hostile = [
        r#"{"regex": "((a{1,1000}){1,1000}){1,1000}"}"#.to_owned(),
        r#"{"regex": "(a|b|ab|ba|aab)*c{500}(a|b)*[ab]{800}x"}"#.to_owned(),
        r#"{"regex": "(.*a.*b.*c.*d.*e.*f.*g.*){30}"}"#.to_owned(),
        r#"{"grammar": "start: start start | \"a\" | start start start | "}"#.to_owned(),
        format!(r#"{{"json": {{"type": "object", "properties": {{{}}}}}}}"#, wide.join(", ")),
        nested(60),
        nested(3000),
    ];
    for text in hostile {
        let started = Instant::now();
        if let Ok(mut matcher) = compiler.begin(&text) {
            let tokens = vocabulary();
            let mut bits = vec![0; tokens.len().div_ceil(32)];
            let mut draws = Draws(7);
            // Each step is an answer or an error, and none takes long.
            for _ in 0..50 {
                if matcher.allowed(&mut bits).is_err() {
                    break;
                }
                let set: Vec<u32> = (0..tokens.len() as u32)
                    .filter(|id| bits[*id as usize / 32] >> (id % 32) & 1 == 1)
                    .collect();
                if set.is_empty() || matcher.push(set[draws.below(set.len())]).is_err() {
                    break;
                }
            }
        }
        let elapsed = started.elapsed();
        assert!(elapsed < Duration::from_secs(20), "{elapsed:?}: {}", &text[..text.len().min(80)]);
    }
}
