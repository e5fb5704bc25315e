use std::path::Path;

use proptest::prelude::*;

use super::members;
use crate::archive::Archive;

const CONTAINERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/container");

fn names(file: &str) -> Result<Vec<String>, String> {
    Archive::open(&Path::new(CONTAINERS).join(file))
        .map(|archive| archive.names().map(str::to_owned).collect())
        .map_err(|error| error.to_string().replace(CONTAINERS, "…"))
}

#[test]
fn every_flavour_of_tar_is_read() {
    let plain = names("dot_slash_pax.nemo").unwrap();
    assert!(plain.iter().any(|name| name == "model_config.yaml"), "{plain:?}");
    for file in ["dot_slash_gnu.nemo", "no_prefix_ustar.nemo", "top_folder.nemo", "gzip.nemo"] {
        assert_eq!(names(file).unwrap(), plain, "{file}");
    }
    for file in ["long_names_pax.nemo", "long_names_gnu.nemo"] {
        assert!(names(file).unwrap().iter().any(|name| name.len() > 100), "{file}");
    }
}

#[test]
fn what_leaves_the_checkpoint_is_refused() {
    insta::assert_snapshot!(names("reject_absolute.nemo").unwrap_err(), @"member `/tmp/escape_abs.txt` of `…/reject_absolute.nemo`, at byte 8704, is refused: absolute names are not allowed");
    insta::assert_snapshot!(names("reject_parent_dir.nemo").unwrap_err(), @"member `./../escape.txt` of `…/reject_parent_dir.nemo`, at byte 8704, is refused: `..` leaves the checkpoint");
    insta::assert_snapshot!(names("reject_symlink.nemo").unwrap_err(), @"member `./link` of `…/reject_symlink.nemo`, at byte 8704, is refused: links are not allowed");
    insta::assert_snapshot!(names("truncated.nemo").unwrap_err(), @"member `(the first file)` of `…/truncated.nemo`, at byte 2500, is cut off: it needs 512 bytes, 0 are left; copy the file again");
}

/// A header with the right checksum.
fn header(edit: impl FnOnce(&mut tar::Header)) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("model_weights/file").unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(0);
    header.set_mode(0o644);
    edit(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn error(bytes: &[u8]) -> String {
    members(bytes, "t").unwrap_err().to_string()
}

#[test]
fn errors_name_the_member_and_the_place() {
    let kind = |kind| header(|header| header.set_entry_type(kind));
    insta::assert_snapshot!(error(&kind(tar::EntryType::Link)), @"member `model_weights/file` of `t`, at byte 0, is refused: links are not allowed");
    insta::assert_snapshot!(error(&kind(tar::EntryType::Char)), @"member `model_weights/file` of `t`, at byte 0, is refused: only files and folders are allowed");
    insta::assert_snapshot!(error(&kind(tar::EntryType::Fifo)), @"member `model_weights/file` of `t`, at byte 0, is refused: only files and folders are allowed");
    insta::assert_snapshot!(error(&kind(tar::EntryType::GNUSparse)), @"member `model_weights/file` of `t`, at byte 0, is refused: sparse files are not allowed");
    let file = header(|header| header.set_size(1000));
    insta::assert_snapshot!(error(&[&file[..], &[0; 100]].concat()), @"member `model_weights/file` of `t`, at byte 512, is cut off: it needs 1000 bytes, 100 are left; copy the file again");
    insta::assert_snapshot!(error(&[&file[..], &[0; 1024], &file[..300]].concat()), @"member `(the one after model_weights/file)` of `t`, at byte 1536, is cut off: it needs 512 bytes, 300 are left; copy the file again");
    insta::assert_snapshot!(error(&[&file[..], &[0; 1024], &[7; 512]].concat()), @"`t` is damaged at byte 1536: tar header (after `model_weights/file`): its checksum is not a number");
    let mut long = header(|header| {
        header.set_entry_type(tar::EntryType::XHeader);
        header.set_size(1 << 40);
    });
    insta::assert_snapshot!(error(&long), @"member `model_weights/file` of `t`, at byte 0, is refused: a header of this size describes no file");
    long.truncate(257);
    insta::assert_snapshot!(error(&long), @"`t` is damaged at byte 0: it is not a tar archive");
}

#[test]
fn sizes_beyond_octal_are_read() {
    let mut block = header(|header| header.set_size(1 << 40));
    insta::assert_snapshot!(error(&block), @"member `model_weights/file` of `t`, at byte 512, is cut off: it needs 1099511627776 bytes, 0 are left; copy the file again");
    block.extend(header(|_| {}));
    assert!(members(&block, "t").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn damaged_archives_never_panic(at in 0_usize..4096, byte in any::<u8>(), cut in 0_usize..20_000) {
        let mut bytes = std::fs::read(Path::new(CONTAINERS).join("long_names_pax.nemo")).unwrap();
        let index = at % bytes.len();
        bytes[index] = byte;
        bytes.truncate(bytes.len().saturating_sub(cut));
        let _ = members(&bytes, "t");
    }

    #[test]
    fn any_header_fields_never_panic(edits in proptest::collection::vec((0_usize..512, any::<u8>()), 0..12)) {
        let mut bytes = std::fs::read(Path::new(CONTAINERS).join("dot_slash_gnu.nemo")).unwrap();
        for (at, byte) in edits {
            bytes[512 + at] = byte;
        }
        // The right checksum lets the damage through to the fields.
        let sum: u32 = bytes[512..1024].iter().enumerate()
            .map(|(index, &byte)| if (148..156).contains(&index) { 32 } else { u32::from(byte) }).sum();
        bytes[512 + 148..512 + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let _ = members(&bytes, "t");
    }
}
