//! Arguments as they are typed in a shell: what a message suggests is pasted there.

/// Characters without a special meaning in any shell, anywhere in a word.
const PLAIN: &str = "_-./:=+,@%";

/// The argument as one word of a POSIX shell, in single quotes where it needs them.
pub fn shell_word(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || PLAIN.contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    // In a shell, a single quote inside single quotes is written outside of them.
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_read_more_into_them() {
        for (argument, word) in [
            ("model.seed=5", "model.seed=5"),
            ("++a/b@c=x,y", "++a/b@c=x,y"),
            ("a=[1,2]", "'a=[1,2]'"),
            ("a=\"<x>\"", "'a=\"<x>\"'"),
            ("a=it's", r"'a=it'\''s'"),
            ("~a", "'~a'"),
            ("", "''"),
            ("a=\u{e9}", "'a=\u{e9}'"),
        ] {
            assert_eq!(shell_word(argument), word);
        }
    }
}
