//! Why a reset was lost: the closed list of reasons, and what helps against each.

/// Defines the closed list of drop reasons once: variant, word, what an operator can do about it.
macro_rules! drop_reasons {
    ($($item:ident $word:literal $meaning:literal,)+) => {
        /// Why a reset was lost (`reason` of `reset_collector_dropped_resets_total`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $meaning] $item,)+ }
        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$item,)+];
            /// The word that users see.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$item => $word,)+ }
            }
            /// What happened, and what helps.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$item => $meaning,)+ }
            }
        }
    };
}

drop_reasons! {
    RingBufferFull "ring_buffer_full" "The kernel's ring buffer was full: raise capture.ring_buffer_size",
    OverCeiling "over_ceiling" "More records a second than capture.max_records_per_second",
    Undecodable "undecodable" "The kernel's record could not be read: the probes and the collector do not match",
    QueueFull "queue_full" "The queue was full: the backend is away or too slow, or sending_queue.queue_size too small",
    RejectedByBackend "rejected_by_backend" "The backend took the request and rejected some of it (partial success)",
    RetriesExhausted "retries_exhausted" "The backend did not take the request within retry_on_failure.max_elapsed_time",
    PermanentError "permanent_error" "The backend refused the request and will refuse it again",
    TooLarge "too_large" "The backend takes no request of this size: lower batch.max_size or batch.max_bytes",
    SelfTest "self_test" "Made by the collector itself at its start, to try the hooks",
    UnsupportedSignal "unsupported_signal" "The backend does not take this signal: leave it out of export.signals",
    Shutdown "shutdown" "Not sent before the deadline at the end of the program, and no storage to keep it",
    StorageFull "storage_full" "The storage directory would not take it: full, read-only or over its limit",
    StorageCorrupt "storage_corrupt" "The storage directory held it, and it was damaged there",
    StorageUnsynced "storage_unsynced" "Written to storage before a crash, and never reached the disk",
    Killed "killed" "Read from the kernel, and not yet in the storage when the collector was killed",
    NotConfigured "not_configured" "Captured before this destination was configured",
}
