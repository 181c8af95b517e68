#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use rand::{Rng, SeedableRng, rngs::StdRng};

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{PermissionsExt, symlink},
};

use super::*;

const LIMIT: u64 = 1 << 20;

fn open(directory: &Path) -> RecoveredStorage {
    Storage::open(directory, Path::new(""), LIMIT, FsyncPolicy::Never).unwrap()
}

fn message(number: u32) -> Vec<u8> {
    (0..400 + number * 7 % 300).map(|at| (at ^ number) as u8).collect()
}

/// A directory with 200 batches of 10 resets, every third one done. Returns the pending numbers.
fn filled(directory: &Path) -> Vec<u32> {
    let mut storage = open(directory).storage;
    let slots: Vec<_> = (0..200).map(|number| storage.append(10, &message(number)).unwrap()).collect();
    for slot in slots.iter().skip(1).step_by(3) {
        storage.mark(slot, Mark::Done);
    }
    (0..200).filter(|number| number % 3 != 1).collect()
}

fn segment_paths(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ending| ending == "log")).collect();
    paths.sort();
    paths
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}

fn messages(opened: &RecoveredStorage) -> Vec<Vec<u8>> {
    opened.found.iter().map(|found| found.slot.read().unwrap().to_vec()).collect()
}

fn resets(opened: &RecoveredStorage) -> u64 {
    opened.found.iter().map(|found| u64::from(found.resets)).sum()
}

#[test]
fn what_was_not_done_is_found_again_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let pending = filled(directory.path());
    for _ in 0..3 {
        let opened = open(directory.path());
        assert_eq!(messages(&opened), pending.iter().map(|number| message(*number)).collect::<Vec<_>>());
        assert_eq!((opened.corrupt, opened.unsynced), (0, 0));
    }
}

#[test]
fn finished_segments_leave_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let mut storage = open(directory.path()).storage;
    for number in 0..5000 {
        let slot = storage.append(10, &message(number)).unwrap();
        storage.mark(&slot, Mark::Done);
        assert!(storage.bytes() <= 2 * LIMIT / MIN_SEGMENTS, "{} bytes", storage.bytes());
    }
    storage.close();
    assert_eq!(storage.bytes(), 0);
    drop(storage);
    let opened = open(directory.path());
    assert_eq!((opened.found.len(), opened.corrupt, opened.unsynced), (0, 0, 0));
}

#[test]
fn the_limit_holds_and_a_refused_batch_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let mut storage = open(directory.path()).storage;
    let mut appended = 0;
    let error = loop {
        match storage.append(10, &message(appended)) {
            Ok(_) => appended += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Limit { .. }), "{error}");
    assert!(storage.bytes() <= LIMIT);
    drop(storage);
    let opened = open(directory.path());
    assert_eq!((opened.found.len() as u32, opened.corrupt, opened.unsynced), (appended, 0, 0));
}

#[test]
fn a_second_collector_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path());
    let Err(error) = Storage::open(directory.path(), Path::new(""), LIMIT, FsyncPolicy::Never) else {
        panic!("both have it")
    };
    assert!(matches!(&error, StorageError::InUse { owner, .. } if *owner == std::process::id().to_string()));
    assert!(error.to_string().contains("in use by another collector"), "{error}");
}

/// One byte changed anywhere: nothing wrong comes out, what is missing is counted, and counted once.
#[test]
fn a_thousand_damaged_directories() {
    let original = tempfile::tempdir().unwrap();
    let pending = filled(original.path());
    let resets_pending = 10 * pending.len() as u64;
    let written: Vec<_> = (0..200).map(message).collect();
    for seed in 0..1000 {
        let mut random = StdRng::seed_from_u64(seed);
        let directory = copy(original.path());
        let mut paths = segment_paths(directory.path());
        paths.push(directory.path().join("position"));
        let path = &paths[random.random_range(0..paths.len())];
        let mut bytes = fs::read(path).unwrap();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= random.random_range(1..=255_u8);
        }
        fs::write(path, bytes).unwrap();

        let first = open(directory.path());
        let found = messages(&first);
        // A mark that was damaged makes a duplicate, so that any message of ours may come.
        assert!(found.iter().all(|message| written.contains(message)), "seed {seed}: a foreign message");
        assert!(found.len() + 3 >= pending.len(), "seed {seed}: {} of {} left", found.len(), pending.len());
        let lost = first.corrupt + first.unsynced;
        assert!(resets(&first) + lost >= resets_pending, "seed {seed}: lost without a count");
        assert!(lost <= 30, "seed {seed}: {lost} counted as lost");
        drop(first);
        let second = open(directory.path());
        assert_eq!(messages(&second), found, "seed {seed}");
        assert_eq!((second.corrupt, second.unsynced), (0, 0), "seed {seed}: counted twice");
    }
}

/// The machine stopped: the newest segment lost its end, the position did not.
#[test]
fn an_end_that_was_cut_off_is_counted_as_unsynced() {
    let original = tempfile::tempdir().unwrap();
    let pending = filled(original.path()).len() as u64;
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let directory = copy(original.path());
        let newest = segment_paths(directory.path()).pop().unwrap();
        let length = fs::metadata(&newest).unwrap().len();
        OpenOptions::new().write(true).open(&newest).unwrap().set_len(random.random_range(0..length)).unwrap();
        let opened = open(directory.path());
        // What was done and cut off is missed as well: it may be counted twice, never lost.
        assert!(resets(&opened) + opened.corrupt + opened.unsynced >= 10 * pending, "seed {seed}");
        assert!(opened.unsynced > 0, "seed {seed}");
        let mut storage = opened.storage;
        let slot = storage.append(10, b"after the crash").unwrap();
        assert_eq!(slot.read().unwrap(), "after the crash");
        drop(storage);
        let again = open(directory.path());
        assert_eq!((again.corrupt, again.unsynced), (0, 0), "seed {seed}");
        assert_eq!(messages(&again).pop().unwrap(), b"after the crash");
    }
}

#[test]
fn what_had_not_come_to_the_storage_is_counted_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut killed = open(directory.path()).storage;
    killed.append(10, b"stored").unwrap();
    killed.note_unstored(7);
    drop(killed);
    let opened = open(directory.path());
    assert_eq!((resets(&opened), opened.unsynced, opened.unstored), (10, 0, 7));
    drop(opened);
    let mut again = open(directory.path());
    assert_eq!((resets(&again), again.unstored), (10, 0));
    again.storage.note_unstored(5);
    again.storage.close();
    drop(again);
    assert_eq!(open(directory.path()).unstored, 0, "an orderly end has handed over everything");
}

fn refusal(root: &Path) -> String {
    match Storage::open(root, Path::new("destination/logs"), LIMIT, FsyncPolicy::Never) {
        Ok(_) => panic!("{} was opened", root.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_directory_that_others_may_write_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    for below in ["", "destination", "destination/logs"] {
        let root = parent.path().join(below.replace('/', "-"));
        let directory = root.join(below);
        fs::create_dir_all(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let error = refusal(&root);
        assert!(error.contains("can be written by other users: run `chmod go-w"), "{error}");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        Storage::open(&root, Path::new("destination/logs"), LIMIT, FsyncPolicy::Never).unwrap();
    }
}

#[test]
fn a_shared_directory_with_the_sticky_bit_may_hold_storage() {
    let shared = tempfile::tempdir().unwrap();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    Storage::open(shared.path(), Path::new("destination/logs"), LIMIT, FsyncPolicy::Never).unwrap();
    let made = fs::metadata(shared.path().join("destination/logs")).unwrap();
    assert_eq!(made.permissions().mode() & 0o7777, 0o700);
}

#[test]
fn links_and_strange_files_are_refused_and_not_touched() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("precious");
    for name in ["lock", "position", "00000000000000000000-0.log"] {
        for kind in ["symbolic link", "dangling link", "hard link", "fifo", "directory"] {
            fs::write(&target, b"precious").unwrap();
            let root = tempfile::tempdir().unwrap();
            let directory = root.path().join("destination/logs");
            fs::create_dir_all(&directory).unwrap();
            let file = directory.join(name);
            match kind {
                "symbolic link" => symlink(&target, &file).unwrap(),
                "dangling link" => symlink(outside.path().join("made"), &file).unwrap(),
                "hard link" => fs::hard_link(&target, &file).unwrap(),
                "fifo" => {
                    let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o600));
                    rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, mode, 0).unwrap();
                }
                _ => fs::create_dir(&file).unwrap(),
            }
            let error = refusal(root.path());
            assert!(error.contains(name) && error.contains("move it out of the storage directory"), "{kind}: {error}");
            assert_eq!(fs::read(&target).unwrap(), b"precious", "{name} {kind}");
            assert!(!outside.path().join("made").exists(), "{name} {kind}");
            fs::remove_file(&target).unwrap();
        }
    }
}

#[test]
fn a_directory_behind_a_link_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let root = tempfile::tempdir().unwrap();
    symlink(outside.path(), root.path().join("destination")).unwrap();
    let error = refusal(root.path());
    assert!(error.contains("is a symbolic link or not a directory"), "{error}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

/// A sparse file far larger than the memory: read in pieces, its holes skipped.
#[test]
fn holes_are_not_read_whole() {
    let directory = tempfile::tempdir().unwrap();
    let pending = filled(directory.path());
    let last = segment_paths(directory.path()).pop().unwrap();
    let file = OpenOptions::new().write(true).open(&last).unwrap();
    file.set_len(1 << 43).unwrap();
    let header = Header::of(1 << 50, 7, b"far away");
    file.write_all_at(&header.encode(), (1 << 43) - 44).unwrap();
    file.write_all_at(b"far away", (1 << 43) - 8).unwrap();
    let opened = open(directory.path());
    assert_eq!(messages(&opened), pending.iter().map(|number| message(*number)).collect::<Vec<_>>());
    assert_eq!(opened.corrupt, 7, "a counter that cannot be is damage, not 2^50 lost resets");
}
