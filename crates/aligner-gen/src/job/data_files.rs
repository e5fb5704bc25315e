//! `model.data.train_ds.file_path`: the files that are meant by paths, patterns and `-`.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::exit::{ExitStatus, Failure, ResultExt};
use crate::output::{ExistingOutput, SPOOL, is_same_file};

/// The path of a pipe.
const PIPE: &str = "-";
/// What came out of the pipe, in the log folder, until its records were read.
const UNCHECKED: &str = "stdin.unchecked.jsonl";
/// How files of gzip, zstd and Parquet begin.
const PACKED: [&[u8]; 3] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"];
const KEY: &str = "model.data.train_ds.file_path";

/// The files in the order in which they are read: those of a pattern by name. A pipe stays what it is.
///
/// # Errors
/// When a pattern matches nothing, or a file is named twice.
pub(crate) fn expanded(typed: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut files: Vec<PathBuf> = Vec::new();
    for path in typed {
        let text = path.to_string_lossy();
        let found = match has_wildcard(&text) && !path.exists() {
            false => vec![path.clone()],
            true if text.contains("**") => {
                return Err(Failure::usage(format!(
                    "`{KEY}`: `{text}` has `**`; a `*` stands for a part of one name"
                )));
            }
            true => matching(path)
                .with_context(|| format!("cannot look for the files of `{text}`"))
                .exit_with(ExitStatus::Data)?,
        };
        if found.is_empty() {
            return Err(anyhow!("`{KEY}`: no file matches `{text}`")).exit_with(ExitStatus::Data);
        }
        for file in found {
            if let Some(same) = files.iter().find(|known| **known == file || is_same_file(known, &file)) {
                let by =
                    if *same == file { String::new() } else { format!(", once as `{}`", same.display()) };
                return Err(Failure::usage(format!("`{KEY}` names `{}` twice{by}", file.display())));
            }
            files.push(file);
        }
    }
    if files.len() > 1 && files.iter().any(|file| is_pipe(file)) {
        return Err(Failure::usage(format!(
            "`{KEY}`: `-` stands for all data, so there can be no other files"
        )));
    }
    Ok(files)
}

/// Whether the data come out of a pipe.
pub(crate) fn is_pipe(file: &Path) -> bool {
    file == Path::new(PIPE)
}

/// Takes what comes out of the pipe into the log folder and gives the file, which [`keep`] makes the job's once its records
/// were read. What an earlier run kept is used again when the pipe is empty or gives the same.
///
/// # Errors
/// When there is neither, or the pipe gives something else than the run was begun with.
pub(crate) fn taken(log_dir: &Path, existing: ExistingOutput) -> Result<PathBuf, Failure> {
    let input = io::stdin();
    let is_known = existing == ExistingOutput::Continue && log_dir.join(SPOOL).is_file();
    if input.is_terminal() {
        return match is_known {
            true => Ok(log_dir.join(SPOOL)),
            false => Err(Failure::usage(format!(
                "`{KEY}=-` reads the prompts from a pipe, and there is none: write PROGRAM | aligner-gen …, or name a file"
            ))),
        };
    }
    take(&mut input.lock(), log_dir, is_known)
}

/// What a launcher took for its ranks, which have no pipe of their own.
pub(crate) fn taken_by_launcher(log_dir: &Path) -> PathBuf {
    let unchecked = log_dir.join(UNCHECKED);
    if unchecked.is_file() { unchecked } else { log_dir.join(SPOOL) }
}

/// Makes a file that was taken the one that the job is resumed with. With other files nothing is done.
///
/// # Errors
/// When it cannot be renamed.
pub(crate) fn keep(log_dir: &Path, files: &mut [PathBuf]) -> Result<(), Failure> {
    let unchecked = log_dir.join(UNCHECKED);
    for file in files.iter_mut().filter(|file| **file == unchecked) {
        let spool = log_dir.join(SPOOL);
        let renamed = fs::rename(&unchecked, &spool).and_then(|()| File::open(log_dir)?.sync_all());
        renamed.with_context(|| cannot_keep(&spool))?;
        *file = spool;
    }
    Ok(())
}

fn cannot_keep(spool: &Path) -> String {
    format!("cannot keep the prompts of the pipe in `{}`", spool.display())
}

fn take(input: &mut dyn Read, log_dir: &Path, is_known: bool) -> Result<PathBuf, Failure> {
    let (spool, unchecked) = (log_dir.join(SPOOL), log_dir.join(UNCHECKED));
    let cannot_keep = || cannot_keep(&spool);
    fs::create_dir_all(log_dir).with_context(cannot_keep)?;
    let mut copy = tempfile::NamedTempFile::new_in(log_dir).with_context(cannot_keep)?;
    let num_bytes = io::copy(input, &mut copy).with_context(cannot_keep)?;
    if is_known {
        if num_bytes > 0 && !is_same(copy.path(), &spool).with_context(cannot_keep)? {
            return Err(anyhow!(
                "the pipe gives other prompts than `{}`, with which this run was begun: give the same or none, use another \
                 `exp_manager.explicit_log_dir`, or start afresh with `++exp_manager.resume_if_exists=false`",
                spool.display()
            ))
            .exit_with(ExitStatus::Usage);
        }
        // What another run took and could not use.
        if unchecked.is_file() {
            fs::remove_file(&unchecked).with_context(cannot_keep)?;
        }
        return Ok(spool);
    }
    if num_bytes == 0 {
        return Err(anyhow!("`{KEY}=-`: the pipe is empty")).exit_with(ExitStatus::Data);
    }
    let mut begin = [0; 4];
    let is_packed = copy.as_file().read_exact_at(&mut begin, 0).is_ok()
        && PACKED.iter().any(|magic| begin.starts_with(magic));
    if is_packed {
        return Err(anyhow!("`{KEY}=-`: the pipe gives a packed file; only lines come out of a pipe, so unpack it before, or name the file"))
            .exit_with(ExitStatus::Data);
    }
    copy.flush().and_then(|()| copy.as_file().sync_data()).with_context(cannot_keep)?;
    copy.persist(&unchecked).with_context(cannot_keep)?;
    Ok(unchecked)
}

fn is_same(a: &Path, b: &Path) -> io::Result<bool> {
    let hash = |path: &Path| -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut File::open(path)?, &mut hasher)?;
        Ok(hasher.finalize())
    };
    Ok(hash(a)? == hash(b)?)
}

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files that a pattern matches, by name.
fn matching(pattern: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        match component {
            Component::Normal(name) if has_wildcard(&name.to_string_lossy()) => {
                let pattern: Vec<char> = name.to_string_lossy().chars().collect();
                let mut next = Vec::new();
                for folder in found.iter().filter(|folder| folder.as_os_str().is_empty() || folder.is_dir()) {
                    let listed = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
                    for entry in fs::read_dir(listed)? {
                        let name = entry?.file_name();
                        let chars: Vec<char> = name.to_string_lossy().chars().collect();
                        // Hidden files are not meant by a `*`, as in a shell.
                        let is_hidden = chars.first() == Some(&'.') && pattern.first() != Some(&'.');
                        if !is_hidden && matches(&pattern, &chars) {
                            next.push(folder.join(name));
                        }
                    }
                }
                found = next;
            }
            other => found.iter_mut().for_each(|path| path.push(other)),
        }
    }
    found.retain(|path| path.is_file());
    found.sort();
    Ok(found)
}

/// Whether a name is what a pattern with `*`, `?` and `[…]` describes.
fn matches(pattern: &[char], name: &[char]) -> bool {
    match pattern {
        [] => name.is_empty(),
        ['*', rest @ ..] => (0..=name.len()).any(|start| matches(rest, &name[start..])),
        ['?', rest @ ..] => !name.is_empty() && matches(rest, &name[1..]),
        ['[', rest @ ..] => match (rest.iter().skip(1).position(|&c| c == ']'), name) {
            (Some(end), [c, left @ ..]) => is_in(&rest[..=end], *c) && matches(&rest[end + 2..], left),
            (Some(_), []) => false,
            (None, _) => name.first() == Some(&'[') && matches(rest, &name[1..]),
        },
        [c, rest @ ..] => name.first() == Some(c) && matches(rest, &name[1..]),
    }
}

/// Whether a character is one of a class such as `a-z`, or with `!` before them none of it.
fn is_in(class: &[char], c: char) -> bool {
    let (is_negated, class) = match class {
        ['!' | '^', rest @ ..] if !rest.is_empty() => (true, rest),
        class => (false, class),
    };
    let mut rest = class;
    let mut is_found = false;
    while let [first, after @ ..] = rest {
        (is_found, rest) = match after {
            ['-', last, after @ ..] => (is_found || (*first..=*last).contains(&c), after),
            after => (is_found || *first == c, after),
        };
    }
    is_found != is_negated
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_in_a_shell() {
        let check = |pattern: &str, name: &str, expect: bool| {
            let chars = |text: &str| text.chars().collect::<Vec<char>>();
            assert_eq!(matches(&chars(pattern), &chars(name)), expect, "{pattern} {name}");
        };
        check("*.jsonl", "a.jsonl", true);
        check("*.jsonl", "a.jsonl.gz", false);
        check("a*b*c", "axxbyyc", true);
        check("a*b*c", "axxbyy", false);
        check("part-??.jsonl", "part-07.jsonl", true);
        check("part-??.jsonl", "part-7.jsonl", false);
        check("[a-c]x", "bx", true);
        check("[!a-c]x", "bx", false);
        check("[a", "[a", true);
        check("", "a", false);
    }

    #[test]
    fn files_are_found_by_name_and_once() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.jsonl", "a.jsonl", ".c.jsonl", "d.txt", "[x].jsonl"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("e.jsonl")).unwrap();
        let typed = |names: &[&str]| names.iter().map(|name| folder.path().join(name)).collect::<Vec<_>>();
        assert_eq!(expanded(&typed(&["[a-z].jsonl"])).unwrap(), typed(&["a.jsonl", "b.jsonl"]));
        assert_eq!(expanded(&typed(&["d.txt", "a*"])).unwrap(), typed(&["d.txt", "a.jsonl"]));
        assert_eq!(expanded(&typed(&["[x].jsonl"])).unwrap(), typed(&["[x].jsonl"]));
        let refused = |names: &[&str]| {
            let text = expanded(&typed(names)).unwrap_err().sentence();
            text.replace(&folder.path().display().to_string(), "/data")
        };
        insta::assert_snapshot!(refused(&["z*"]), @"`model.data.train_ds.file_path`: no file matches `/data/z*`");
        insta::assert_snapshot!(refused(&["a.jsonl", "*.jsonl"]), @"`model.data.train_ds.file_path` names `/data/a.jsonl` twice");
        insta::assert_snapshot!(refused(&["**/a"]), @"`model.data.train_ds.file_path`: `/data/**/a` has `**`; a `*` stands for a part of one name");
        let error = expanded(&["-".into(), "a".into()]).unwrap_err().sentence();
        insta::assert_snapshot!(error, @"`model.data.train_ds.file_path`: `-` stands for all data, so there can be no other files");
    }

    #[test]
    fn a_file_by_two_names_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [a, link] = ["a", "link"].map(|name| folder.path().join(name));
        fs::write(&a, "{}\n").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let by_parent = folder.path().join("../").join(folder.path().file_name().unwrap()).join("a");
        for other in [link, by_parent, a.clone()] {
            let error = expanded(&[a.clone(), other]).unwrap_err();
            assert!(error.status == ExitStatus::Usage && error.sentence().contains("` twice"), "{error:?}");
        }
    }

    #[test]
    fn what_a_pipe_gave_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let log_dir = folder.path().join("results");
        let spool = log_dir.join(SPOOL);
        let taken = take(&mut &b"{}\n"[..], &log_dir, false).unwrap();
        assert!(!spool.exists() && taken_by_launcher(&log_dir) == taken);
        let mut files = [taken.clone()];
        keep(&log_dir, &mut files).unwrap();
        assert_eq!(files, std::slice::from_ref(&spool));
        assert_eq!((fs::read(&spool).unwrap(), taken.exists()), (b"{}\n".to_vec(), false));
        assert_eq!(take(&mut &b""[..], &log_dir, true).unwrap(), spool);
        assert_eq!(take(&mut &b"{}\n"[..], &log_dir, true).unwrap(), spool);
        keep(&log_dir, &mut files).unwrap();
        assert_eq!(files, std::slice::from_ref(&spool));
        let error = take(&mut &b"[]\n"[..], &log_dir, true).unwrap_err();
        assert!(
            error.status == ExitStatus::Usage && error.sentence().contains("other prompts than"),
            "{error:?}"
        );
        assert_eq!(fs::read(&spool).unwrap(), b"{}\n");
        // What could not be used changes nothing, and is not used later.
        let error = take(&mut &b""[..], &log_dir, false).unwrap_err();
        assert!(error.status == ExitStatus::Data && error.sentence().contains("is empty"), "{error:?}");
        let error = take(&mut &b"\x1f\x8b\x08\x00"[..], &log_dir, false).unwrap_err();
        assert!(error.status == ExitStatus::Data && error.sentence().contains("packed file"), "{error:?}");
        take(&mut &b"bad\n"[..], &log_dir, false).unwrap();
        assert_eq!(fs::read(&spool).unwrap(), b"{}\n");
        take(&mut &b""[..], &log_dir, true).unwrap();
        assert_eq!(taken_by_launcher(&log_dir), spool);
    }
}
