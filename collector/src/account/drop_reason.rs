//! Why a reset was lost: the closed list of reasons, with a remedy for each.

use crate::model::named_list;

named_list! {
    /// Why a reset was lost (`reason` of `reset_collector_dropped_resets_total`).
    DropReason {
        RingBufferFull "ring_buffer_full" "The kernel's ring buffer was full: raise capture.ring_buffer_size",
        RateLimited "rate_limited" "More records per second than capture.max_records_per_second",
        InvalidRecord "invalid_record" "The kernel's record could not be decoded: the probes and the collector do not match",
        QueueFull "queue_full" "The queue was full: the backend is down or too slow, or sending_queue.queue_size is too small",
        PartialSuccessRejected "partial_success_rejected" "The backend accepted the request and rejected part of it (partial success)",
        RetriesExhausted "retries_exhausted" "The backend did not accept the request within retry_on_failure.max_elapsed_time",
        NonRetryableError "non_retryable_error" "The backend refused the request with an error that a retry cannot fix",
        TooLarge "too_large" "The request is larger than the backend accepts: lower the batch limits",
        SelfTest "self_test" "Made by the collector itself at startup, to test the hooks",
        SignalUnsupported "signal_unsupported" "The backend does not support this signal: remove it from export.signals",
        Shutdown "shutdown" "Not sent before the shutdown deadline, and no storage to keep it",
        StorageFull "storage_full" "The storage directory did not take it: full, read-only or over its limit",
        StorageCorrupt "storage_corrupt" "Held in the storage directory and damaged there",
        StorageUnsynced "storage_unsynced" "Written to storage before a crash, and never synced to disk",
        ProcessKilled "process_killed" "Read from the kernel, and not yet in the storage when the collector was killed",
        DestinationAddedLater "destination_added_later" "Captured before this destination was added",
    }
}
