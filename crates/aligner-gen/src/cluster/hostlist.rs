//! The first host of a list as Slurm writes it: `gpu[001-004,007],login1`.

/// The first host, or `None` when the list is empty or its first range is not closed.
pub(crate) fn first_host(list: &str) -> Option<String> {
    let list = list.trim();
    let end = list.find([',', '[']).unwrap_or(list.len());
    let (name, rest) = list.split_at(end);
    let Some(ranges) = rest.strip_prefix('[') else { return (!name.is_empty()).then(|| name.to_owned()) };
    let (ranges, rest) = ranges.split_once(']')?;
    let first = ranges.split([',', '-']).next().filter(|first| !first.is_empty())?;
    // More of the name, or more ranges, may follow: `rack[1-2]n[3-4]`.
    let suffix = match rest.split(',').next() {
        Some("") | None => String::new(),
        Some(_) => first_host(rest)?,
    };
    Some(format!("{name}{first}{suffix}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_slurm() {
        let check = |list: &str, expect: Option<&str>| {
            assert_eq!(first_host(list).as_deref(), expect, "{list}");
        };
        check("n1", Some("n1"));
        check("n1,n2", Some("n1"));
        check("n[1-2]", Some("n1"));
        check("gpu[001-004,007],login1", Some("gpu001"));
        check("gpu[7,9]", Some("gpu7"));
        check("a-b[3]-ib,x", Some("a-b3-ib"));
        check("rack[1-2]n[30-40],x", Some("rack1n30"));
        check("10.0.0.[5-6]", Some("10.0.0.5"));
        check("n[1-2],", Some("n1"));
        check("", None);
        check("n[1-2", None);
        check("n[]", None);
    }

    proptest! {
        #[test]
        fn no_list_panics(list in "[a-c0-9,\\[\\]-]{0,20}") {
            let _ = first_host(&list);
        }
    }
}
