//! The queue's storage: a directory per destination and signal, records appended to segments, marks set in place.
//!
//! Why not an embedded store or log: the need is append, read once, complete out of order (several requests are in
//! flight), forget, with damage cut out and *counted in resets*. Weighed:
//! - queue-file 2.0, the nearest (kept, checksums, crash-safe): elements leave from the front only, a damaged one is an
//!   error that hides what follows it, the file doubles without a bound, no lock between processes.
//! - redb 4 (a B-tree) and fjall 3 (an LSM tree), both well kept: a damaged page or block takes an unknown number of
//!   entries with it, and what redb commits without fsync (`Durability::None`) a killed process loses, though the
//!   page cache would have kept it.
//! - okaywal and commitlog forget a prefix only; yaque has no checksums.
//!
//! So this module and its three helpers are the collector's own.
//!
//! A killed process loses nothing that was written: it is in the page cache. A crashed machine loses at most what was not
//! synced; from the checkpoint file, written first, the next start knows how many resets that were, and how many the
//! collector held that were not stored yet.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;

use crate::{
    config::settings::FsyncPolicy,
    export::{
        checkpoint::{Checkpoint, MAX_SPAN},
        lock::StorageDirectory,
        log_throttle::LogThrottle,
        segment::{self, Body, HEADER_LEN, Header, Mark},
    },
};

const CHECKPOINT: &str = "position";
const SEGMENT_ENDING: &str = ".log";
const MAX_SEGMENT: u64 = 8 << 20;
const MIN_SEGMENT: u64 = 64 << 10;
/// A full directory has at least this many segments: space is freed a segment at a time.
const MIN_SEGMENTS: u64 = 8;

/// Storage that cannot be used, or that did not take a batch.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The directory cannot be made, read or written.
    #[error(
        "sending_queue.storage {path}: {what}: {error}; give a directory on a local disk that this user can write; in a \
         container mount a volume there"
    )]
    Directory {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        error: io::Error,
    },
    /// Something that the collector did not put there, or that others may write.
    #[error("sending_queue.storage {path} {why}")]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What it is, and what to do.
        why: String,
    },
    /// Another collector has it.
    #[error("sending_queue.storage {path}: in use by another collector (process {owner}); give each its own directory")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process id, as far as it is known.
        owner: String,
    },
    /// `storage.max_size` is reached.
    #[error("sending_queue.storage {path}: holds {limit} bytes, its limit; raise sending_queue.storage.max_size")]
    Limit {
        /// The directory.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The message is not what was written.
    #[error("sending_queue.storage {path}: a record is damaged")]
    Damaged {
        /// The directory.
        path: PathBuf,
    },
}

impl StorageError {
    /// What was tried of a directory, for the error that it may fail with.
    pub(crate) fn at(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Directory { path: path.to_owned(), what, error }
    }
}

/// The storage of one queue.
pub(crate) struct Storage {
    directory: StorageDirectory,
    path: Arc<Path>,
    limit: u64,
    segment_size: u64,
    fsync: FsyncPolicy,
    segments: VecDeque<Segment>,
    /// The next record begins a new segment.
    roll: bool,
    checkpoint_file: Arc<File>,
    checkpoint: Checkpoint,
    /// Changed since the last sync.
    unsynced: bool,
    throttle: LogThrottle,
}

struct Segment {
    name: String,
    file: Arc<File>,
    length: u64,
    /// Records without an outcome.
    pending: usize,
    start: u64,
    end: u64,
}

/// Where a stored batch is.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    directory: Arc<Path>,
    file: Arc<File>,
    offset: u64,
    header: Header,
}

/// A batch found at the start.
pub(crate) struct Found {
    pub(crate) resets: u32,
    /// A request was made of it before: the backend may have it.
    pub(crate) sent: bool,
    pub(crate) slot: Slot,
}

/// Storage as it was found.
pub(crate) struct RecoveredStorage {
    pub(crate) storage: Storage,
    pub(crate) found: Vec<Found>,
    /// Resets in damaged records.
    pub(crate) corrupt: u64,
    /// Resets that were written and never reached the disk.
    pub(crate) unsynced: u64,
    /// Resets that had not come here when the collector was killed, as of its last note.
    pub(crate) unstored: u64,
}

/// What an earlier run left, and what is missing of it.
#[derive(Default)]
struct RecoveryLosses {
    found: Vec<Found>,
    corrupt: u64,
    unsynced: u64,
    gaps: Vec<(u64, u64)>,
    end_is_foreign: bool,
}

impl Storage {
    /// Opens or creates the directory `below` in the configured `root`, and takes it for this process alone.
    pub(crate) fn open(
        root: &Path,
        below: &Path,
        limit: u64,
        fsync: FsyncPolicy,
    ) -> Result<RecoveredStorage, StorageError> {
        let directory = StorageDirectory::take(root, below)?;
        let path: Arc<Path> = directory.path().into();
        let at = |what| StorageError::at(&path, what);
        let checkpoint_file = directory.open(CHECKPOINT)?;
        let known = Checkpoint::read(&checkpoint_file).map_err(at("its checkpoint file cannot be read"))?;
        let mut storage = Self {
            directory,
            path: path.clone(),
            limit,
            segment_size: (limit / MIN_SEGMENTS).clamp(MIN_SEGMENT, MAX_SEGMENT),
            fsync,
            segments: VecDeque::new(),
            roll: true,
            checkpoint_file: Arc::new(checkpoint_file),
            checkpoint: Checkpoint { floor: known.map_or(0, |known| known.floor), ..Checkpoint::default() },
            unsynced: false,
            throttle: LogThrottle::default(),
        };
        let losses = storage.read_segments(known)?;
        storage.checkpoint.write(&storage.checkpoint_file).map_err(at("cannot be written"))?;
        let noted = storage.note_gaps(&losses.gaps).and_then(|()| storage.remove_finished());
        storage.log_failure(noted);
        let unstored = known.map_or(0, |known| known.unstored);
        Ok(RecoveredStorage {
            storage,
            found: losses.found,
            corrupt: losses.corrupt,
            unsynced: losses.unsynced,
            unstored,
        })
    }

    /// Appends a batch. What fails leaves the storage as it was.
    pub(crate) fn append(&mut self, resets: u32, message: &[u8]) -> Result<Slot, StorageError> {
        let record = (HEADER_LEN + message.len()) as u64;
        if self.bytes() + record > self.limit && self.segments.back().is_some_and(|newest| newest.pending == 0) {
            self.roll = true;
        }
        self.make_segment(record).map_err(StorageError::at(&self.path, "a segment cannot be made"))?;
        if self.bytes() + record > self.limit {
            return Err(StorageError::Limit { path: self.path.to_path_buf(), limit: self.limit });
        }
        let header = Header::of(self.checkpoint.enqueued, resets, message);
        let mut written = self.write(&header, message);
        if written.is_err() && self.segments.back().is_some_and(|newest| newest.pending == 0 && newest.length > 0) {
            // The disk may be full of finished records: they are removed, and the write is retried once.
            self.roll = true;
            written = self.make_segment(record).and_then(|()| self.write(&header, message));
        }
        written.map_err(StorageError::at(&self.path, "cannot be written"))
    }

    /// Notes how many resets the collector holds that are not stored.
    pub(crate) fn note_unstored(&mut self, unstored: u64) {
        if self.checkpoint.unstored != unstored {
            self.checkpoint.unstored = unstored;
            let written = self.checkpoint.write(&self.checkpoint_file);
            self.unsynced = true;
            self.log_failure(written);
        }
    }

    /// Marks a batch. A mark that fails makes a duplicate after a restart, never a loss.
    pub(crate) fn mark(&mut self, slot: &Slot, mark: Mark) {
        let (at, value) = slot.header.mark(mark);
        let mut marked = slot.file.write_all_at(&value, slot.offset + at);
        self.unsynced = true;
        if mark == Mark::Done {
            if let Some(segment) = self.segments.iter_mut().find(|segment| Arc::ptr_eq(&segment.file, &slot.file)) {
                segment.pending = segment.pending.saturating_sub(1);
            }
            marked = marked.and(self.remove_finished());
        }
        self.log_failure(marked);
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.length).sum()
    }

    /// The files changed since the last call; the caller syncs them without the queue's lock.
    pub(crate) fn take_unsynced(&mut self) -> Vec<Arc<File>> {
        if !std::mem::take(&mut self.unsynced) {
            return Vec::new();
        }
        // Older segments may lack marks only: duplicates after a crash.
        let newest = self.segments.iter().rev().take(2).map(|segment| &segment.file);
        newest.chain([&self.checkpoint_file]).cloned().collect()
    }

    /// At the end: removes finished segments and syncs the rest.
    pub(crate) fn close(&mut self) {
        self.roll = true;
        // The pipeline has ended: every reset is stored or has an outcome.
        self.checkpoint.unstored = 0;
        let mut closed = self.checkpoint.write(&self.checkpoint_file).and_then(|()| self.remove_finished());
        if self.fsync != FsyncPolicy::Never {
            let mut files = self.segments.iter().map(|segment| &segment.file).chain([&self.checkpoint_file]);
            closed = closed.and(files.try_for_each(|file| file.sync_data()));
        }
        self.log_failure(closed);
    }

    /// Logs a failure that costs at most duplicates after a crash.
    pub(crate) fn log_failure(&self, result: io::Result<()>) {
        if let Err(error) = result
            && self.throttle.due("storage_write_failed", Instant::now()).is_some()
        {
            tracing::warn!(event = "storage_write_failed", path = %self.path.display(), %error, "cannot write to storage");
        }
    }

    /// Reads what an earlier run left and counts what is missing.
    fn read_segments(&mut self, known: Option<Checkpoint>) -> Result<RecoveryLosses, StorageError> {
        let path = self.path.clone();
        let failed = |what| StorageError::at(&path, what);
        let mut losses = RecoveryLosses::default();
        let mut scanned = Vec::new();
        for name in self.directory.names(SEGMENT_ENDING).map_err(failed("cannot be listed"))? {
            let file = Arc::new(self.directory.open_existing(&name)?);
            let (records, foreign) = segment::scan(&*file).map_err(failed("a segment cannot be read"))?;
            losses.end_is_foreign = foreign;
            let length = file.metadata().map_err(failed("a segment cannot be read"))?.len();
            scanned.push((Segment { name, file, length, pending: 0, start: u64::MAX, end: 0 }, records));
        }
        let complete = |record: &&segment::Found| record.body != Body::Torn;
        let first = scanned.iter().flat_map(|(_, records)| records).filter(complete).map(|it| it.header.start).min();
        // Without a checkpoint the counting begins at the first record.
        self.checkpoint.floor = known.map_or(first.unwrap_or(0), |known| known.floor);
        let mut ranges = Vec::new();
        for (mut segment, records) in scanned {
            for record in records.iter().filter(complete).filter(|it| it.header.end() > self.checkpoint.floor) {
                let header = record.header;
                let is_possible = header.end() - self.checkpoint.floor <= MAX_SPAN;
                if is_possible {
                    ranges.push((header.start, header.end()));
                    (segment.start, segment.end) = (segment.start.min(header.start), segment.end.max(header.end()));
                }
                match (record.done, record.body) {
                    (true, _) => {}
                    (false, Body::Whole) if is_possible => {
                        segment.pending += 1;
                        let slot = self.slot(&segment.file, record.offset, header);
                        losses.found.push(Found { resets: header.resets, sent: record.sent, slot });
                    }
                    (false, _) => {
                        losses.corrupt += u64::from(header.resets);
                        // Counted once: the next start does not count it again.
                        let (at, value) = header.mark(Mark::Done);
                        let marked = segment.file.write_all_at(&value, record.offset + at);
                        marked.map_err(failed("a segment cannot be written"))?;
                    }
                }
            }
            self.segments.push_back(segment);
        }
        losses.found.sort_by_key(|found| found.slot.header.start);
        ranges.sort_unstable();
        let last = ranges.iter().map(|(_, end)| *end).max().unwrap_or(0);
        self.checkpoint.enqueued = known.map_or(0, |known| known.enqueued).max(last).max(self.checkpoint.floor);
        losses.gaps = gaps(&ranges, self.checkpoint.floor, self.checkpoint.enqueued);
        for (start, end) in &losses.gaps {
            // Missing at the very end: cut off by a crash, unless there are bytes of no record.
            let cut_off = *end == self.checkpoint.enqueued && !losses.end_is_foreign;
            *(if cut_off { &mut losses.unsynced } else { &mut losses.corrupt }) += end - start;
        }
        Ok(losses)
    }

    /// Writes down which resets are known to be missing, so that the next start does not count them again.
    fn note_gaps(&mut self, gaps: &[(u64, u64)]) -> io::Result<()> {
        for (start, end) in gaps {
            let mut start = *start;
            while start < *end {
                let resets = u32::try_from(end - start).unwrap_or(u32::MAX);
                let header = Header::of(start, resets, &[]);
                let mut record = header.encode();
                let (at, value) = header.mark(Mark::Done);
                record[at as usize..][..value.len()].copy_from_slice(&value);
                self.make_segment(record.len() as u64)?;
                if let Some(newest) = self.segments.back_mut() {
                    newest.file.write_all_at(&record, newest.length)?;
                    newest.length += record.len() as u64;
                }
                start = header.end();
            }
        }
        Ok(())
    }

    fn slot(&self, file: &Arc<File>, offset: u64, header: Header) -> Slot {
        Slot { directory: self.path.clone(), file: file.clone(), offset, header }
    }

    fn make_segment(&mut self, record: u64) -> io::Result<()> {
        if !self.roll && self.segments.back().is_some_and(|newest| newest.length + record <= self.segment_size) {
            return Ok(());
        }
        if !self.roll && self.segments.back().is_some_and(|newest| newest.length == 0) {
            return Ok(());
        }
        let (name, file) = self.new_file()?;
        if self.fsync != FsyncPolicy::Never {
            self.directory.sync()?;
        }
        let start = self.checkpoint.enqueued;
        self.segments.push_back(Segment { name, file, length: 0, pending: 0, start, end: start });
        self.roll = false;
        self.remove_finished()
    }

    fn new_file(&self) -> io::Result<(String, Arc<File>)> {
        for attempt in 0_u32.. {
            // The same start twice: the first one's records were cut off by a crash.
            let name = format!("{:020}-{attempt}{SEGMENT_ENDING}", self.checkpoint.enqueued);
            match self.directory.create_new(&name) {
                Ok(file) => return Ok((name, Arc::new(file))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    fn write(&mut self, header: &Header, message: &[u8]) -> io::Result<Slot> {
        let Some(segment) = self.segments.back_mut() else { return Err(io::Error::other("no segment")) };
        let (file, offset) = (segment.file.clone(), segment.length);
        // The checkpoint goes first: what a crash then cuts off is missed at the next start.
        self.checkpoint.enqueued = header.end();
        let written = self
            .checkpoint
            .write(&self.checkpoint_file)
            .and_then(|()| file.write_all_at(&header.encode(), offset))
            .and_then(|()| file.write_all_at(message, offset + HEADER_LEN as u64));
        if let Err(error) = written {
            self.checkpoint.enqueued = header.start;
            // Half a record at the end of a segment would hide what comes after it.
            self.roll = file.set_len(offset).is_err();
            return Err(self.checkpoint.write(&self.checkpoint_file).err().unwrap_or(error));
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.length += (HEADER_LEN + message.len()) as u64;
            segment.pending += 1;
            segment.end = header.end();
        }
        self.unsynced = true;
        if self.fsync == FsyncPolicy::Always {
            let synced = file.sync_data().and_then(|()| self.checkpoint_file.sync_data());
            self.log_failure(synced);
        }
        Ok(self.slot(&file, offset, *header))
    }

    /// Removes segments from the front whose records all have an outcome. The floor is synced before they are removed:
    /// else their resets would count as missing.
    fn remove_finished(&mut self) -> io::Result<()> {
        let newest_stays = usize::from(!self.roll);
        while self.segments.len() > newest_stays && self.segments.front().is_some_and(|segment| segment.pending == 0) {
            // The floor must not pass what another one holds, should their records not be in order.
            let held = self.segments.iter().filter(|other| other.pending > 0).map(|other| other.start).min();
            let end = self.segments.front().map_or(0, |segment| segment.end);
            if held.is_some_and(|held| held < end) {
                break;
            }
            let Some(segment) = self.segments.pop_front() else { break };
            self.checkpoint.floor = self.checkpoint.floor.max(end);
            self.checkpoint.write(&self.checkpoint_file)?;
            if self.fsync != FsyncPolicy::Never {
                self.checkpoint_file.sync_data()?;
            }
            self.directory.remove(&segment.name)?;
        }
        Ok(())
    }
}

impl Slot {
    /// Bytes of the message.
    pub(crate) fn length(&self) -> usize {
        self.header.length as usize
    }

    /// The message, checked.
    pub(crate) fn read(&self) -> Result<Bytes, StorageError> {
        let mut message = vec![0; self.header.length as usize];
        let read = self.file.read_exact_at(&mut message, self.offset + HEADER_LEN as u64);
        match read {
            Ok(()) if crc32fast::hash(&message) == self.header.body_crc => Ok(message.into()),
            Ok(()) => Err(StorageError::Damaged { path: self.directory.to_path_buf() }),
            Err(error) => Err(StorageError::at(&self.directory, "cannot be read")(error)),
        }
    }
}

/// What of `from..to` no range covers; ranges sorted by their start.
fn gaps(ranges: &[(u64, u64)], from: u64, to: u64) -> Vec<(u64, u64)> {
    let mut gaps = Vec::new();
    let mut covered = from;
    for (start, end) in ranges.iter().copied().chain([(to, to)]) {
        if start > covered {
            gaps.push((covered, start));
        }
        covered = covered.max(end);
    }
    gaps
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
