//! Faults of the write path: a run that dies before, in or after any operation on the disk, a power cut there, an operation
//! that fails. Whatever happens, the next run ends with the same bytes, and what was reported as saved is there.

mod mem_disk;

use std::path::Path;

use serde_json::json;

use mem_disk::{AfterCut, Fault, MemDisk};

use super::identity::tests::identity;
use super::record::tests::sample;
use super::{
    CompletedStep, ExistingOutput, GenerationSink, JsonlSink, LineLayout, Manifest, OutputError,
    OutputFolder, ResumePoint,
};

const LOG_DIR: &str = "/results";
const JSONL: &str = "/results/generations/generations.jsonl";
const MANIFEST: &str = "/results/generations/manifest.json";
const NUM_STEPS: u64 = 3;

fn step(number: u64) -> CompletedStep {
    let samples = vec![sample(2 * number - 2), sample(2 * number - 1)];
    CompletedStep { step: number, consumed_samples: 2 * number, samples }
}

fn undisturbed() -> Vec<u8> {
    (1..=NUM_STEPS).flat_map(|number| step(number).to_jsonl(&[]).unwrap()).collect()
}

/// A whole run: what is missing is generated, step by step. `saved` counts the steps that were reported as saved.
fn run(disk: &MemDisk, saved: &mut u64) -> Result<(), OutputError> {
    let identity = identity(1, "a");
    let folder =
        OutputFolder::open_on(disk.clone(), Path::new(LOG_DIR), &identity, ExistingOutput::Continue)?;
    assert!(folder.resume.step >= *saved, "step {saved} was saved, step {} is there", folder.resume.step);
    assert_eq!(folder.resume.consumed_samples, 2 * folder.resume.step);
    let first = folder.resume.step + 1;
    let manifest = Manifest {
        program_version: String::new(),
        committed: ResumePoint::default(),
        num_samples: 2 * NUM_STEPS,
        identity: identity.record().unwrap(),
        config: json!({}),
    };
    let mut sink = JsonlSink::open(folder, manifest, LineLayout::Fields(Vec::new()))?;
    for number in first..=NUM_STEPS {
        sink.commit(&step(number))?;
        *saved = number;
    }
    Ok(())
}

fn finish(disk: &MemDisk, mut saved: u64, what: &str) {
    run(disk, &mut saved).unwrap_or_else(|error| panic!("{what}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(text(&disk.read(JSONL)), text(&undisturbed()), "{what}");
}

/// How many operations a run makes.
fn num_operations() -> usize {
    let disk = MemDisk::default();
    finish(&disk, 0, "undisturbed");
    disk.num_operations()
}

#[test]
fn a_run_that_dies_at_any_operation_goes_on_with_the_same_bytes() {
    let num_operations = num_operations();
    assert!(num_operations > 20, "the run makes {num_operations} operations");
    for operation in 0..num_operations {
        for parts in [0, 1, 2, 3] {
            let disk = MemDisk::with_fault(operation, Fault::Dies { parts_of_three: parts });
            let mut saved = 0;
            run(&disk, &mut saved).unwrap_err();
            finish(
                &disk.after_kill(),
                saved,
                &format!("killed at operation {operation}, {parts}/3 of it done"),
            );
        }
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_saved() {
    for operation in 0..num_operations() {
        for parts in [0, 2, 3] {
            for after in AfterCut::ALL {
                let disk = MemDisk::with_fault(operation, Fault::Dies { parts_of_three: parts });
                let mut saved = 0;
                run(&disk, &mut saved).unwrap_err();
                let what = format!("power cut at operation {operation}, {parts}/3 of it done, {after:?}");
                finish(&disk.after_power_cut(after), saved, &what);
            }
        }
    }
}

#[test]
fn a_second_death_while_repairing_the_first_is_repaired_too() {
    for first in 0..num_operations() {
        for second in 0..num_operations() {
            let disk = MemDisk::with_fault(first, Fault::Dies { parts_of_three: 2 });
            let mut saved = 0;
            run(&disk, &mut saved).unwrap_err();
            let disk = disk.after_kill().and_fault(second, Fault::Dies { parts_of_three: 1 });
            if run(&disk, &mut saved).is_err() {
                finish(&disk.after_kill(), saved, &format!("killed at {first} and then at {second}"));
            }
        }
    }
}

/// A full disk, a file system that went read-only, one that fails to sync: the run says so, and the next one goes on.
#[test]
fn any_operation_that_fails_is_told_and_survived() {
    use rustix::io::Errno;
    for (errno, words) in [
        (Errno::NOSPC, "No space left on device"),
        (Errno::ROFS, "Read-only file system"),
        (Errno::IO, "Input/output error"),
    ] {
        for operation in 0..num_operations() {
            let disk = MemDisk::with_fault(operation, Fault::Fails(errno.raw_os_error()));
            let mut saved = 0;
            // Only the copy of an unfinished step may fail unnoticed, and a fresh run has none.
            let error = run(&disk, &mut saved).unwrap_err();
            let sentence = format!("{:#}", anyhow::Error::new(error));
            assert!(sentence.starts_with("cannot ") && sentence.contains("`/results"), "{sentence}");
            assert!(sentence.contains(words), "{sentence}");
            if let Some(rest) = sentence.strip_prefix("cannot write step ") {
                let told = format!("; the {} samples before it are saved", 2 * saved);
                assert!(rest.contains(&told), "{sentence}");
            }
            finish(&disk.after_kill(), saved, &format!("operation {operation} failed with {words}"));
        }
    }
}

#[test]
fn the_last_step_cut_off_at_any_byte_is_written_again() {
    let whole = undisturbed();
    let two_steps: usize = (1..NUM_STEPS).map(|number| step(number).to_jsonl(&[]).unwrap().len()).sum();
    // Killed after the lines of step 3 and before its manifest: the manifest says two steps.
    let at_manifest = (0..num_operations()).find_map(|operation| {
        let disk = MemDisk::with_fault(operation, Fault::Dies { parts_of_three: 0 });
        let mut saved = 0;
        run(&disk, &mut saved).unwrap_err();
        (saved == 2 && disk.read(JSONL) == whole).then(|| disk.after_kill())
    });
    let disk = at_manifest.unwrap();
    for len in two_steps..=whole.len() {
        let torn = disk.copy();
        torn.write(JSONL, &whole[..len]);
        finish(&torn, 2, &format!("cut to {len} bytes"));
    }
    // A file without a manifest, cut anywhere at all.
    for len in 0..=whole.len() {
        let torn = MemDisk::default();
        torn.write(JSONL, &whole[..len]);
        finish(&torn, 0, &format!("no manifest, cut to {len} bytes"));
    }
}

#[test]
fn a_damaged_manifest_is_never_believed() {
    let disk = MemDisk::default();
    finish(&disk, 0, "undisturbed");
    let manifest = disk.read(MANIFEST);
    let check = |bytes: &[u8], what: &str| {
        let damaged = disk.copy();
        damaged.write(MANIFEST, bytes);
        let error = run(&damaged, &mut 0).err().unwrap_or_else(|| panic!("{what} was not noticed"));
        assert!(error.to_string().contains("manifest"), "{what}: {error}");
        assert_eq!(damaged.read(JSONL), undisturbed(), "{what}: a refused run changes nothing");
    };
    // The newline at the end is no loss.
    for len in 0..manifest.len() - 1 {
        check(&manifest[..len], &format!("cut to {len} bytes"));
        for bit in 0..8 {
            let mut flipped = manifest.clone();
            flipped[len] ^= 1 << bit;
            check(&flipped, &format!("bit {bit} of byte {len}"));
        }
    }
    let missing = disk.copy();
    missing.remove(MANIFEST);
    finish(&missing, 3, "manifest removed");
}
