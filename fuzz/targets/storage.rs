//! Any bytes as what an earlier run, a crash or a stranger left in the storage directory: recovered without a panic, and
//! what is missing is counted once.
//!
//! The input is a list of parts: raw bytes of a file, or fields that get valid checksums, so that they are looked into.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use reset_collector::export::recover;

const MAX_BYTES: u64 = 1 << 20;
const DONE: u32 = 0x444f_4e45;

pub(crate) fn run(bytes: &[u8]) {
    let directory = Directory::new();
    for (name, contents) in files(bytes) {
        fs::write(directory.0.join(name), contents).expect("the directory can be written");
    }
    let Ok(first) = recover(&directory.0, MAX_BYTES) else { panic!("regular files of ours are never an error") };
    assert!(first.lost < 1 << 60 && first.unstored < 1 << 60, "{first:?}");
    let second = recover(&directory.0, MAX_BYTES).expect("what was recovered can be opened again");
    assert_eq!((second.lost, second.unstored), (0, 0), "counted twice");
    assert_eq!(second.messages, first.messages, "changed by being read");
}

/// The files that the input describes: per part a kind, a length and that many bytes.
fn files(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut segments: Vec<Vec<u8>> = vec![Vec::new()];
    let mut checkpoint = None;
    while let [kind, length, rest @ ..] = bytes {
        let (part, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        let segment = segments.last_mut().expect("never empty");
        match kind % 5 {
            0 => segment.extend(part),
            1 => segment.extend(record(part, kind & 0x80 != 0)),
            2 if segments.len() < 4 => segments.push(Vec::new()),
            3 => checkpoint = Some(part.to_vec()),
            _ => checkpoint = Some(valid_checkpoint(part)),
        }
    }
    let name = |number| format!("{number:020}-0.log");
    let named = segments.into_iter().enumerate().map(|(number, bytes)| (name(number), bytes));
    named.chain(checkpoint.map(|bytes| ("position".to_owned(), bytes))).collect()
}

/// A record with these fields and this message, and valid checksums.
fn record(part: &[u8], done: bool) -> Vec<u8> {
    let mut fields = [0; 12];
    let length = part.len().min(fields.len());
    fields[..length].copy_from_slice(&part[..length]);
    let message = &part[length..];
    let mut bytes = b"RSTq....".to_vec();
    bytes.extend(fields);
    bytes.extend(u32::try_from(message.len()).expect("short").to_le_bytes());
    bytes.extend(crc32fast::hash(message).to_le_bytes());
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(if done { (crc ^ DONE).to_le_bytes() } else { [0; 4] });
    bytes.extend(message);
    bytes
}

fn valid_checkpoint(part: &[u8]) -> Vec<u8> {
    let mut bytes = [0; 32];
    let length = part.len().min(24);
    bytes[8..8 + length].copy_from_slice(&part[..length]);
    bytes[..4].copy_from_slice(b"RSTp");
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes.to_vec()
}

/// A directory in memory where there is one, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("reset-collector-storage-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a directory can be made");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the directory can be removed");
    }
}
