//! Questions with one right answer each, made from a seed.

use serde_json::json;

/// A generator of random numbers that is the same everywhere (SplitMix64, Steele et al. 2014).
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// A question and its answer.
fn question(random: &mut SplitMix) -> (String, i64) {
    let (a, b) = (random.below(20) as i64 + 1, random.below(10) as i64 + 1);
    match random.below(3) {
        0 => (format!("{a} + {b}"), a + b),
        1 => (format!("{} - {b}", a + b), a),
        _ => (format!("{} times {b}", a.min(10)), a.min(10) * b),
    }
}

/// The records, one a line. Two answered questions before show what an answer looks like.
pub(super) fn lines(num: u32, seed: u64) -> String {
    let mut random = SplitMix(seed);
    let record = |nth: u32| {
        let (question, answer) = question(&mut random);
        let turn = |from: &str, value: &str| json!({"from": from, "value": value});
        let turns = [
            turn("user", "What is 2 + 6?"),
            turn("assistant", "8"),
            turn("user", "What is 3 times 5?"),
            turn("assistant", "15"),
            turn("user", &format!("What is {question}?")),
            turn("assistant", ""),
        ];
        let record = json!({
            "id": nth,
            "answer": answer,
            "system": "You answer questions with a number.",
            "mask": "user",
            "conversations": turns,
        });
        format!("{record}\n")
    };
    (0..num).map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_questions_with_right_answers() {
        assert_eq!(lines(50, 7), lines(50, 7));
        assert_ne!(lines(50, 7), lines(50, 8));
        for line in lines(200, 1).lines() {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let asked = record["conversations"][4]["value"].as_str().unwrap();
            let words: Vec<&str> = asked.trim_end_matches('?').split(' ').collect();
            let [_, _, a, operation, b] = words[..] else { panic!("{asked}") };
            let (a, b): (i64, i64) = (a.parse().unwrap(), b.parse().unwrap());
            let expect = match operation {
                "+" => a + b,
                "-" => a - b,
                _ => a * b,
            };
            assert_eq!(record["answer"], expect, "{asked}");
        }
    }
}
