//! Work that may hang, done on a thread of its own and waited for only until a deadline.
//!
//! Reading another process's memory map or memory can block for as long as that process likes: its mmap lock may be held
//! over a page fault. Such a read cannot be cancelled; it can only be left behind.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Does work on a thread, and leaves that thread behind when it takes too long.
pub struct ReaderThread<Q, A> {
    work: Arc<dyn Fn(Q) -> A + Send + Sync>,
    timeout: Duration,
    max_threads: usize,
    /// Threads that live, those left behind included.
    threads: Arc<AtomicUsize>,
    worker: Option<Worker<Q, A>>,
}

struct Worker<Q, A> {
    requests: Sender<Q>,
    results: Receiver<A>,
}

/// Work that was started.
pub struct Started<Q, A>(Worker<Q, A>);

/// Takes a thread off the count, also when its work panics.
struct ThreadGuard(Arc<AtomicUsize>);

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<Q: Send + 'static, A: Send + 'static> ReaderThread<Q, A> {
    /// Does `work`, waits `timeout` for it, and has at most `max_threads` threads, hanging ones included.
    pub fn new(work: impl Fn(Q) -> A + Send + Sync + 'static, timeout: Duration, max_threads: usize) -> Self {
        Self { work: Arc::new(work), timeout, max_threads, threads: Arc::default(), worker: None }
    }

    /// The work's result, or `None` when it took too long or too many threads hang already.
    pub fn call(&mut self, request: Q) -> Option<A> {
        let started = self.start(request);
        self.finish(started, Instant::now() + self.timeout)
    }

    /// Starts the work; `None` when too many threads hang already.
    pub fn start(&mut self, request: Q) -> Option<Started<Q, A>> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.spawn()?,
        };
        worker.requests.send(request).ok()?;
        Some(Started(worker))
    }

    /// The result of work that was started, or `None` when it is not there by the deadline.
    pub fn finish(&mut self, started: Option<Started<Q, A>>, deadline: Instant) -> Option<A> {
        let Started(worker) = started?;
        let result = worker.results.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        self.worker = Some(worker);
        Some(result)
    }

    fn spawn(&self) -> Option<Worker<Q, A>> {
        if self.threads.load(Ordering::Relaxed) >= self.max_threads {
            return None;
        }
        let (requests, inbox) = channel();
        let (outbox, results) = channel();
        let work = Arc::clone(&self.work);
        self.threads.fetch_add(1, Ordering::Relaxed);
        let guard = ThreadGuard(Arc::clone(&self.threads));
        let thread = thread::Builder::new().name("process reader".into()).spawn(move || {
            let _guard = guard;
            // Ends when the other side lets go of either channel.
            while let Ok(request) = inbox.recv() {
                if outbox.send(work(request)).is_err() {
                    return;
                }
            }
        });
        thread.ok().map(|_| Worker { requests, results })
    }
}

impl<Q, A> std::fmt::Debug for ReaderThread<Q, A> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReaderThread").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn hanging_work_is_left_behind_and_bounded() {
        let (release, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let work = move |hang: bool| {
            if hang {
                // Ends when `release` is dropped.
                assert!(gate.lock().expect("one thread at a time").recv().is_err());
            }
            hang
        };
        let mut deadline = ReaderThread::new(work, Duration::from_millis(20), 2);
        assert_eq!(deadline.call(false), Some(false));
        let start = Instant::now();
        assert_eq!(deadline.call(true), None);
        assert_eq!(deadline.call(false), Some(false), "a second thread does the work");
        assert_eq!(deadline.call(true), None);
        assert_eq!(deadline.call(false), None, "both threads hang");
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(release);
        let resulted = (0..200).any(|_| {
            thread::sleep(Duration::from_millis(10));
            deadline.call(false) == Some(false)
        });
        assert!(resulted, "threads that came back make room");
    }
}
