//! Reading a request's body: bounded by its own limit, by all requests together, and in time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A body comes in within this time, wherever the sender is.
pub(crate) const BODY_TIME: Duration = Duration::from_secs(30);
/// A body that comes more slowly than [`LEAST_PACE`] has this long: it holds room that others wait for.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes a second.
const LEAST_PACE: usize = 16 << 10;
/// What a body of unknown length is given first, and more of each time, bytes.
const STEP: usize = 64 << 10;

/// The bytes of all requests that are held at one time.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    permit: OwnedSemaphorePermit,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("the request has more than {limit} bytes (correlation.max_request_bytes)")]
    TooLarge { limit: usize },
    #[error(
        "the request's body came too slowly: it has {GRACE:?} and a second for each {LEAST_PACE} bytes, {BODY_TIME:?} at most"
    )]
    TooSlow,
    #[error("too many bytes are on their way to the backend")]
    Busy,
    #[error("the request's body broke off: {0}")]
    Broken(#[from] hyper::Error),
}

impl Budget {
    /// Room for this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes: Arc::new(Semaphore::new(bytes)) }
    }

    /// Waits for room until the deadline.
    pub(crate) async fn share(&self, bytes: usize, deadline: Instant) -> Result<Share, IntakeError> {
        let count = u32::try_from(bytes).map_err(|_| IntakeError::Busy)?;
        let waiting = Arc::clone(&self.bytes).acquire_many_owned(count);
        let permit = timeout_at(deadline, waiting).await.map_err(|_| IntakeError::Busy)?;
        Ok(Share { permit: permit.map_err(|_| IntakeError::Busy)? })
    }
}

impl Share {
    fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Gives back what is more than this.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        drop(self.permit.split(more));
    }

    /// Takes in another share.
    pub(crate) fn add(&mut self, other: Self) {
        self.permit.merge(other.permit);
    }
}

/// Reads a body of `limit` bytes at most, holding its sender back while there is no room.
pub(crate) async fn read_body(
    mut body: Incoming,
    limit: usize,
    budget: &Budget,
) -> Result<(Vec<Bytes>, Share), IntakeError> {
    let deadline = Instant::now() + BODY_TIME;
    let declared = body.size_hint().exact();
    // Said before: nothing is read, and the connection is closed.
    if declared.is_some_and(|declared| declared > limit as u64) {
        return Err(IntakeError::TooLarge { limit });
    }
    let first = declared.and_then(|declared| usize::try_from(declared).ok()).unwrap_or(STEP.min(limit));
    let mut share = budget.share(first, deadline).await?;
    let mut chunks = Vec::new();
    let mut length = 0;
    let mut slowest = Instant::now() + GRACE;
    while let Some(frame) = timeout_at(slowest.min(deadline), body.frame()).await.map_err(|_| IntakeError::TooSlow)? {
        let Ok(chunk) = frame?.into_data() else { continue };
        length += chunk.len();
        slowest += Duration::from_secs(chunk.len() as u64) / LEAST_PACE as u32;
        if length > limit {
            return Err(IntakeError::TooLarge { limit });
        }
        if length > share.bytes() {
            // Doubling: few steps, and never more than twice what came.
            let more = length.max(STEP).max(length - share.bytes());
            let asked = Instant::now();
            share.add(budget.share(more, deadline).await?);
            slowest += asked.elapsed();
        }
        chunks.push(chunk);
    }
    Ok((chunks, share))
}
