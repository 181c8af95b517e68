//! The thread that reads the ring buffer and drives the pipeline: prompt when quiet, cheap under load, and asleep when
//! nothing happens.
//!
//! The first record after a quiet time wakes it; then it reads every 20 ms, so that the kernel need not wake it for each
//! record; when a round finds nothing it asks for a wake-up again and sleeps until one comes or a deadline is due.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
    time::Timespec,
};

use crate::{
    config::settings::Capture,
    filter::Filters,
    kernel::Kernel,
    kernel::clock::{Now, now},
    pipeline::Pipeline,
    pushdown::Program,
    sampler::Sampler,
};

/// Between two looks into the ring buffer while records come.
const ROUND: Duration = Duration::from_millis(20);
/// Records in one go, before batches and lines are looked after.
const RECORDS_AT_ONCE: usize = 8_192;

/// Other rules.
#[derive(Debug)]
pub struct Rules {
    /// What is captured, and how much.
    pub capture: Capture,
    /// For user space.
    pub filters: Filters,
    /// For what the filters keep.
    pub sampler: Sampler,
    /// For the kernel; `None` leaves it as it is.
    pub program: Option<Program>,
    /// Ports on which `traceparent` is read from the wire.
    pub wire_ports: Vec<u16>,
}

/// Commands to the thread.
#[derive(Debug)]
pub enum Order {
    /// Take other rules.
    Reconfigure(Box<Rules>),
    /// Read what is there and end.
    Stop,
}

/// Gives orders to the thread, and wakes it for them.
#[derive(Clone, Debug)]
pub struct Orders {
    sender: mpsc::Sender<Order>,
    wake: Arc<OwnedFd>,
}

impl Orders {
    /// Wakes the thread: its loop turns once, which is a heartbeat.
    pub fn wake(&self) {
        if let Err(error) = rustix::io::write(&*self.wake, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "cannot wake the reader");
        }
    }

    /// Gives an order. The thread may have ended: then there is nobody to obey.
    pub fn give(&self, order: Order) {
        if self.sender.send(order).is_err() {
            tracing::debug!("the reader has ended");
            return;
        }
        self.wake();
    }
}

/// The reading end of [`Orders`].
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Order>,
    wake: Arc<OwnedFd>,
}

/// A pair to give orders through.
///
/// # Errors
/// The system has no file descriptor left.
pub fn orders() -> Result<(Orders, Inbox), Errno> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Orders { sender, wake: Arc::clone(&wake) }, Inbox { receiver, wake }))
}

/// Reads until told to stop, detaches the programs and reads what they left; gives back the pipeline, to be finished.
pub fn run(kernel: &mut Kernel, mut pipeline: Pipeline, inbox: &Inbox) -> Pipeline {
    let mut stopping = false;
    loop {
        let now = now();
        let count = kernel.drain(RECORDS_AT_ONCE, |record| pipeline.take(record, now));
        if let Some(walk) = pipeline.wants_walk(now) {
            kernel.walk_tasks();
            if walk.files {
                kernel.walk_files();
            }
            pipeline.on_walked(now.instant, self::now());
        }
        pipeline.tick(now);
        pipeline.beat();
        let more_waits = count == RECORDS_AT_ONCE;
        if stopping {
            if more_waits {
                continue;
            }
            return pipeline;
        }
        // However many records come: who wants it to end is obeyed.
        stopping = obey(inbox, kernel, &mut pipeline, now);
        if stopping {
            kernel.detach();
        }
        if stopping || more_waits {
            continue;
        }
        if count > 0 {
            wait(kernel, inbox, false, Some(ROUND));
        } else {
            kernel.request_wakeup();
            // One that came before the wake-up was requested shows at once: the ring buffer is readable.
            let deadline = pipeline.next_deadline(now.instant);
            wait(kernel, inbox, true, deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())));
        }
    }
}

fn obey(inbox: &Inbox, kernel: &mut Kernel, pipeline: &mut Pipeline, now: Now) -> bool {
    // Reads the wake-ups away; there may be none.
    let mut count = [0; 8];
    if let Err(error) = rustix::io::read(&*inbox.wake, &mut count)
        && error != Errno::AGAIN
    {
        tracing::warn!(%error, "cannot read the reader's wake-ups");
    }
    let mut stop = false;
    for order in inbox.receiver.try_iter() {
        match order {
            Order::Reconfigure(rules) => {
                let Rules { capture, filters, sampler, program, wire_ports } = *rules;
                // Before user space's: what the kernel still drops by the old rules has been judged by them alone.
                if let Some(Err(error)) = program.map(|program| kernel.set_rules(&program)) {
                    tracing::error!(%error, "the kernel did not take the new rules, its old ones go on beside the new");
                }
                if let Err(error) = kernel.set_rate_limit(capture.max_records_per_second) {
                    tracing::error!(%error, "failed to update the rate limit; keeping the previous one");
                }
                if let Err(error) = kernel.set_http_ports(&wire_ports) {
                    tracing::error!(%error, "the kernel did not take the new ports of correlation.http_headers");
                }
                pipeline.reconfigure(capture, filters, sampler, now);
            }
            Order::Stop => stop = true,
        }
    }
    stop
}

/// Sleeps until an order comes, the time is over, or, if `for_records`, the ring buffer can be read.
fn wait(kernel: &Kernel, inbox: &Inbox, for_records: bool, timeout: Option<Duration>) {
    let ring = kernel.ring_buffer();
    let mut both = [PollFd::new(&*inbox.wake, PollFlags::IN), PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)];
    let watched = if for_records { &mut both[..] } else { &mut both[..1] };
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    match poll(watched, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => {
            tracing::warn!(%error, "cannot wait for the ring buffer");
            std::thread::sleep(ROUND);
        }
    }
}
