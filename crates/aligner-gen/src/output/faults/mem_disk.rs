//! A disk in memory that forgets what was not synced, and on which any operation can be the last.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::OutputError;
use super::super::disk::Disk;

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The process dies in it. A write is done in part; anything else is done with three of three parts, else not.
    Dies { parts_of_three: usize },
    /// It fails with this error number, without an effect; the process goes on.
    Fails(i32),
}

/// What is left of the unsynced after the power came back.
#[derive(Clone, Copy, Debug)]
pub(super) enum AfterCut {
    /// All of it.
    Everything,
    /// None of it.
    Nothing,
    /// The names, but not the bytes.
    NamesOnly,
    /// The bytes of files whose names were durable, but no new name.
    BytesOnly,
    /// The length of each file, filled with zeros.
    Zeros,
    /// Half of each file's new bytes.
    Half,
}

impl AfterCut {
    pub(super) const ALL: [Self; 6] =
        [Self::Everything, Self::Nothing, Self::NamesOnly, Self::BytesOnly, Self::Zeros, Self::Half];
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    num_operations: usize,
    fault: Option<(usize, Fault)>,
    is_dead: bool,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(super) struct MemDisk(Arc<Mutex<State>>);

impl MemDisk {
    pub(super) fn with_fault(operation: usize, fault: Fault) -> Self {
        Self::default().and_fault(operation, fault)
    }

    pub(super) fn and_fault(self, operation: usize, fault: Fault) -> Self {
        self.0.lock().unwrap().fault = Some((operation, fault));
        self
    }

    pub(super) fn num_operations(&self) -> usize {
        self.0.lock().unwrap().num_operations
    }

    fn of(state: State) -> Self {
        Self(Arc::new(Mutex::new(State { num_operations: 0, fault: None, is_dead: false, ..state })))
    }

    /// A disk of its own with the same files.
    pub(super) fn copy(&self) -> Self {
        Self::of(self.0.lock().unwrap().clone())
    }

    /// The process is gone, the system still has everything.
    pub(super) fn after_kill(&self) -> Self {
        self.copy()
    }

    pub(super) fn after_power_cut(&self, after: AfterCut) -> Self {
        let mut state = self.0.lock().unwrap().clone();
        if matches!(after, AfterCut::Nothing | AfterCut::BytesOnly) {
            state.names = state.synced_names.clone();
        }
        for inode in &mut state.inodes {
            let Inode { bytes, synced } = inode;
            let left = match after {
                AfterCut::Everything | AfterCut::BytesOnly => bytes.clone(),
                AfterCut::Nothing | AfterCut::NamesOnly => synced.clone(),
                AfterCut::Zeros => {
                    let mut zeros = synced.clone();
                    zeros.resize(bytes.len(), 0);
                    zeros
                }
                AfterCut::Half if bytes.len() > synced.len() => {
                    bytes[..synced.len() + (bytes.len() - synced.len()) / 2].to_vec()
                }
                AfterCut::Half => bytes.clone(),
            };
            *inode = Inode { synced: left.clone(), bytes: left };
        }
        state.synced_names = state.names.clone();
        Self::of(state)
    }

    pub(super) fn read(&self, path: &str) -> Vec<u8> {
        let state = self.0.lock().unwrap();
        state.names.get(Path::new(path)).map(|&inode| state.inodes[inode].bytes.clone()).unwrap_or_default()
    }

    pub(super) fn write(&self, path: &str, bytes: &[u8]) {
        let mut state = self.0.lock().unwrap();
        let inode = state.inodes.len();
        state.inodes.push(Inode { bytes: bytes.to_vec(), synced: bytes.to_vec() });
        state.names.insert(path.into(), inode);
        state.synced_names.insert(path.into(), inode);
    }

    pub(super) fn remove(&self, path: &str) {
        let mut state = self.0.lock().unwrap();
        state.names.remove(Path::new(path));
        state.synced_names.remove(Path::new(path));
    }

    /// One operation: does it, fails or dies. `effect` is told how many thirds of it are done.
    fn operate<T>(&self, effect: impl FnOnce(&mut State, usize) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        let died = || io::Error::other("died");
        if state.is_dead {
            return Err(died());
        }
        let number = state.num_operations;
        state.num_operations += 1;
        match state.fault {
            Some((operation, Fault::Fails(errno))) if operation == number => {
                Err(io::Error::from_raw_os_error(errno))
            }
            Some((operation, Fault::Dies { parts_of_three })) if operation == number => {
                let _ = effect(&mut state, parts_of_three);
                state.is_dead = true;
                Err(died())
            }
            _ => effect(&mut state, 3),
        }
    }

    fn whole<T: Default>(&self, effect: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.operate(|state, parts| if parts == 3 { effect(state) } else { Ok(T::default()) })
    }
}

impl Disk for MemDisk {
    type File = usize;
    type Lock = ();

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        self.whole(|_| Ok(()))
    }

    fn lock(&self, _folder: &Path) -> Result<(), OutputError> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.lock().unwrap().names.contains_key(path)
    }

    fn reader(&self, path: &Path, from_bytes: u64) -> io::Result<Option<Box<dyn Read>>> {
        self.whole(|state| {
            let Some(&inode) = state.names.get(path) else { return Ok(None) };
            let bytes = state.inodes[inode].bytes.get(from_bytes as usize..).unwrap_or_default().to_vec();
            Ok(Some(Box::new(Cursor::new(bytes)) as Box<dyn Read>))
        })
    }

    fn open(&self, path: &Path) -> io::Result<usize> {
        self.whole(|state| {
            let State { inodes, names, .. } = state;
            Ok(*names.entry(path.to_owned()).or_insert_with(|| {
                inodes.push(Inode::default());
                inodes.len() - 1
            }))
        })
    }

    fn len_bytes(&self, file: &usize) -> io::Result<u64> {
        self.whole(|state| Ok(state.inodes[*file].bytes.len() as u64))
    }

    fn write_all_at(&self, file: &usize, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.operate(|state, parts| {
            let stored = &mut state.inodes[*file].bytes;
            let written = &bytes[..bytes.len() * parts / 3];
            let end = offset_bytes as usize + written.len();
            stored.resize(stored.len().max(end), 0);
            stored[offset_bytes as usize..end].copy_from_slice(written);
            Ok(())
        })
    }

    fn set_len(&self, file: &usize, len_bytes: u64) -> io::Result<()> {
        self.whole(|state| {
            state.inodes[*file].bytes.resize(len_bytes as usize, 0);
            Ok(())
        })
    }

    fn sync(&self, file: &usize) -> io::Result<()> {
        self.whole(|state| {
            let inode = &mut state.inodes[*file];
            inode.synced = inode.bytes.clone();
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.whole(|state| {
            let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            state.names.insert(to.to_owned(), inode);
            Ok(())
        })
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.whole(|state| {
            let within = |path: &Path| path.parent() == Some(folder);
            state.synced_names.retain(|path, _| !within(path));
            let names = state.names.iter().filter(|(path, _)| within(path));
            state.synced_names.extend(names.map(|(path, &inode)| (path.clone(), inode)));
            Ok(())
        })
    }
}
