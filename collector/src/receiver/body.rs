//! Reading a request's body: bounded by its own limit, by a budget over all requests, and in time.
//!
//! Nothing is reserved before bytes arrive. Where the budget or the places are used up, the request that holds most, or
//! that has been silent for longest, of the client that holds most, gives way.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// A body must arrive within this time.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// In each such interval a body must bring [`MIN_INTERVAL_BYTES`], or end.
const PACE_INTERVAL: Duration = Duration::from_secs(5);
/// 16 KiB a second.
const MIN_INTERVAL_BYTES: usize = 80 << 10;
/// Chunks smaller than this are copied together: each one by itself costs 32 bytes and its share of a buffer.
const MIN_CHUNK_BYTES: usize = 4 << 10;
/// Small chunks are copied together up to this size.
const MAX_COPIED_BYTES: usize = 64 << 10;
/// Bodies that are read at one time. Each may hold one chunk that is not charged yet.
const MAX_BODIES: usize = 512;
/// A body that has been silent for this long may give way to another one of the same client.
const MIN_SILENCE: Duration = Duration::from_millis(500);

/// Bounds of the bodies of all requests at one time.
#[derive(Debug)]
pub(crate) struct Intake {
    budget: Arc<Semaphore>,
    bodies: Mutex<HashMap<u64, Arc<OpenBody>>>,
    next: Mutex<u64>,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct BudgetShare {
    permit: OwnedSemaphorePermit,
}

/// Who a request comes from, as far as bounds are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClientKey {
    address: IpAddr,
    /// 0 where the process is not known.
    pid: u32,
}

/// A body that is being read.
#[derive(Debug)]
struct OpenBody {
    client: ClientKey,
    held: AtomicUsize,
    last_chunk: Mutex<Instant>,
    displaced: Notify,
}

/// Keeps a body in the list of those that are read.
struct BodyGuard<'a> {
    intake: &'a Intake,
    id: u64,
    body: Arc<OpenBody>,
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request has more than {limit} bytes (correlation.otlp_receiver.max_request_size)")]
    TooLarge { limit: usize },
    #[error(
        "the request's body arrives too slowly: at least {MIN_INTERVAL_BYTES} bytes every {PACE_INTERVAL:?}, \
         {BODY_TIMEOUT:?} in all"
    )]
    TooSlow,
    #[error("too many requests are in progress")]
    Busy,
    #[error("the request's body broke off: {0}")]
    Broken(String),
}

impl ClientKey {
    /// The client at this address: all of loopback is one, as is an IPv6 network of 64 bits.
    pub(crate) fn new(address: IpAddr, pid: Option<u32>) -> Self {
        let address = match address.to_canonical() {
            address if address.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            address => address,
        };
        Self { address, pid: pid.unwrap_or(0) }
    }
}

impl Intake {
    /// Room for this many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let budget = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Self { budget, bodies: Mutex::default(), next: Mutex::default() }
    }

    /// Waits for room until the deadline. Another body may have to give way for it.
    pub(crate) async fn share(
        &self,
        client: ClientKey,
        bytes: usize,
        deadline: Instant,
    ) -> Result<BudgetShare, BodyError> {
        let count = u32::try_from(bytes).map_err(|_| BodyError::Busy)?;
        if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(count) {
            return Ok(BudgetShare { permit });
        }
        let mut waiting = std::pin::pin!(Arc::clone(&self.budget).acquire_many_owned(count));
        loop {
            self.displace_largest(client, bytes);
            let next = deadline.min(Instant::now() + MIN_SILENCE);
            match timeout_at(next, &mut waiting).await {
                Ok(permit) => return Ok(BudgetShare { permit: permit.map_err(|_| BodyError::Busy)? }),
                Err(_) if Instant::now() >= deadline => return Err(BodyError::Busy),
                Err(_) => {}
            }
        }
    }

    /// Reads a body of `limit` bytes at most, holding its sender back while there is no room.
    pub(crate) async fn read<B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin>(
        &self,
        mut body: B,
        limit: usize,
        client: ClientKey,
    ) -> Result<(Vec<Bytes>, BudgetShare), BodyError> {
        let declared = body.size_hint().exact();
        // Known beforehand: nothing is read, and the connection is closed.
        if declared.is_some_and(|declared| declared > limit as u64) {
            return Err(BodyError::TooLarge { limit });
        }
        let expected = declared.and_then(|declared| usize::try_from(declared).ok()).unwrap_or(limit);
        let deadline = Instant::now() + BODY_TIMEOUT;
        let guard = self.open(client);
        let mut share = self.share(client, 0, deadline).await?;
        let mut chunks = Chunks::default();
        let (mut interval_end, mut interval_bytes) = (Instant::now() + PACE_INTERVAL, 0);
        while let Some(frame) = guard.next_frame(&mut body, interval_end.min(deadline)).await? {
            let Ok(chunk) = frame.into_data() else { continue };
            let now = Instant::now();
            *guard.body.last_chunk.lock().unwrap_or_else(PoisonError::into_inner) = now;
            interval_bytes += chunk.len();
            if interval_bytes >= MIN_INTERVAL_BYTES {
                (interval_end, interval_bytes) = (now + PACE_INTERVAL, 0);
            }
            let length = chunks.length + chunk.len();
            if length > limit {
                return Err(BodyError::TooLarge { limit });
            }
            if length > share.bytes() {
                // Doubling: few steps, never more than twice what arrived.
                let wanted = length.saturating_mul(2).min(expected).max(length);
                share.add(self.share(client, wanted - share.bytes(), deadline).await?);
                guard.body.held.store(share.bytes(), Relaxed);
                interval_end += now.elapsed();
            }
            chunks.push(chunk);
        }
        share.shrink(chunks.length);
        Ok((chunks.finish(), share))
    }

    fn open(&self, client: ClientKey) -> BodyGuard<'_> {
        let id = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += 1;
            *next
        };
        let (held, last_chunk) = (AtomicUsize::new(0), Mutex::new(Instant::now()));
        let body = Arc::new(OpenBody { client, held, last_chunk, displaced: Notify::new() });
        let mut bodies = self.bodies();
        if bodies.len() >= MAX_BODIES {
            let crowded = largest(bodies.values().map(|body| (body.client, 1)));
            let of_client = bodies.iter().filter(|(_, body)| crowded.is_some_and(|(client, _)| body.client == client));
            if let Some(id) = of_client.min_by_key(|(_, body)| body.last_chunk()).map(|(id, _)| *id)
                && let Some(body) = bodies.remove(&id)
            {
                body.displaced.notify_one();
            }
        }
        bodies.insert(id, Arc::clone(&body));
        BodyGuard { intake: self, id, body }
    }

    /// The largest body of the client that holds most gives way to one that holds less; of the same client, only a
    /// larger body that is silent.
    fn displace_largest(&self, client: ClientKey, bytes: usize) {
        let mut bodies = self.bodies();
        let held = |body: &OpenBody| body.held.load(Relaxed);
        let Some((heaviest, most)) = largest(bodies.values().map(|body| (body.client, held(body)))) else { return };
        let own: usize = bodies.values().filter(|body| body.client == client).map(|body| held(body)).sum();
        let now = Instant::now();
        let may_go = |body: &OpenBody| match heaviest == client {
            true => held(body) > bytes && now - body.last_chunk() >= MIN_SILENCE,
            false => most > own.saturating_add(bytes),
        };
        let of_client = bodies.iter().filter(|(_, body)| body.client == heaviest && may_go(body));
        let Some(id) = of_client.max_by_key(|(_, body)| held(body)).map(|(id, _)| *id) else { return };
        if let Some(body) = bodies.remove(&id) {
            body.displaced.notify_one();
        }
    }

    fn bodies(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<OpenBody>>> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client with the largest sum, and that sum.
pub(crate) fn largest(all: impl Iterator<Item = (ClientKey, usize)>) -> Option<(ClientKey, usize)> {
    let mut sums: HashMap<ClientKey, usize> = HashMap::new();
    for (client, count) in all {
        *sums.entry(client).or_default() += count;
    }
    sums.into_iter().max_by_key(|(_, sum)| *sum)
}

impl OpenBody {
    fn last_chunk(&self) -> Instant {
        *self.last_chunk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyGuard<'_> {
    async fn next_frame<B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin>(
        &self,
        body: &mut B,
        deadline: Instant,
    ) -> Result<Option<Frame<Bytes>>, BodyError> {
        tokio::select! {
            biased;
            () = self.body.displaced.notified() => Err(BodyError::Busy),
            frame = timeout_at(deadline, body.frame()) => {
                let frame = frame.map_err(|_| BodyError::TooSlow)?;
                frame.transpose().map_err(|error| BodyError::Broken(error.to_string()))
            }
        }
    }
}

impl Drop for BodyGuard<'_> {
    fn drop(&mut self) {
        self.intake.bodies().remove(&self.id);
    }
}

impl BudgetShare {
    pub(crate) fn bytes(&self) -> usize {
        self.permit.num_permits()
    }

    /// Gives back what exceeds this.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        drop(self.permit.split(more));
    }

    /// Takes in another share.
    pub(crate) fn add(&mut self, other: Self) {
        self.permit.merge(other.permit);
    }
}

/// The chunks of a body, small ones together.
#[derive(Debug, Default)]
struct Chunks {
    chunks: Vec<Bytes>,
    small: BytesMut,
    length: usize,
}

impl Chunks {
    fn push(&mut self, chunk: Bytes) {
        self.length += chunk.len();
        if chunk.len() < MIN_CHUNK_BYTES {
            self.small.extend_from_slice(&chunk);
            if self.small.len() >= MAX_COPIED_BYTES {
                self.flush();
            }
            return;
        }
        self.flush();
        self.chunks.push(chunk);
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(std::mem::take(&mut self.small).freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.flush();
        self.chunks
    }
}
