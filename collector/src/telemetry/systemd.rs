//! Status for the service manager: `sd_notify(3)` over `NOTIFY_SOCKET`, and systemd's watchdog.
//!
//! Without a service manager nothing is sent.

use std::{
    env,
    ffi::OsStr,
    fmt, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    sync::Arc,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

use crate::account::Account;

/// A service manager that does not read must not block the program for longer.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Watchdog messages per watchdog timeout. The reader's heartbeat may be as old as
/// [`Snapshot::MAX_HEARTBEAT_AGE`](crate::account::Snapshot::MAX_HEARTBEAT_AGE), so `WatchdogSec` should be longer than that.
const MESSAGES_PER_WATCHDOG_TIMEOUT: u32 = 3;

/// Sends status to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

/// A variable that cannot be used.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    #[error("NOTIFY_SOCKET={0}: neither an absolute path nor an abstract name that begins with @")]
    Address(String),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl Notifier {
    /// The service manager that the environment names. A variable that cannot be used is logged and ignored.
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        match open(&name) {
            Ok(socket) => Self { socket: Some(socket), watchdog: watchdog(|name| env::var(name).ok(), process::id()) },
            Err(error) => {
                tracing::warn!(event = "sd_notify_failed", %error, "systemd will not receive status updates");
                Self::default()
            }
        }
    }

    /// Resets are captured, or captured again after [`Self::reloading`]. The status is one line for a person.
    pub fn ready(&self, status: &str) {
        self.send(format_args!("READY=1\nSTATUS={status}"));
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.send(format_args!("RELOADING=1\nMONOTONIC_USEC={}{:06}", now.tv_sec, now.tv_nsec / 1_000));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send(format_args!("STOPPING=1\nSTATUS=sending what is queued"));
    }

    /// Feeds the watchdog as long as the reader has a heartbeat, if the service manager has a watchdog.
    pub async fn run_watchdog(self: Arc<Self>, account: Arc<Account>) {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else { return };
        let mut turn = interval(watchdog / MESSAGES_PER_WATCHDOG_TIMEOUT);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            match account.snapshot().stuck_for() {
                None => self.send(format_args!("WATCHDOG=1")),
                Some(age) => {
                    tracing::error!(event = "reader_stuck", age_s = age.as_secs(), "no heartbeat of the reader");
                }
            }
        }
    }

    fn send(&self, message: fmt::Arguments<'_>) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.to_string().as_bytes(), address) {
            tracing::warn!(event = "sd_notify_failed", %error, "sd_notify failed");
        }
    }
}

fn open(name: &OsStr) -> Result<(UnixDatagram, SocketAddr), NotifyError> {
    let address = match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => return Err(NotifyError::Address(name.display().to_string())),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok((socket, address))
}

/// The watchdog timeout of this process: `sd_watchdog_enabled(3)`.
fn watchdog(variable: impl Fn(&str) -> Option<String>, own_pid: u32) -> Option<Duration> {
    let is_for_another = variable("WATCHDOG_PID").is_some_and(|pid| pid.parse() != Ok(own_pid));
    let micros = variable("WATCHDOG_USEC")?.parse().ok().filter(|micros| *micros > 0 && !is_for_another)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(usec: &str, pid: Option<&str>) -> Option<Duration> {
        let variable = |name: &str| match name {
            "WATCHDOG_USEC" => Some(usec.to_owned()),
            "WATCHDOG_PID" => pid.map(str::to_owned),
            _ => None,
        };
        watchdog(variable, 7)
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watched("1000000", None), second);
        assert_eq!(watched("1000000", Some("7")), second);
        for (usec, pid) in [("1000000", Some("8")), ("1000000", Some("x")), ("0", None), ("-1", None), ("1s", None)] {
            assert_eq!(watched(usec, pid), None, "{usec} {pid:?}");
        }
        assert_eq!(watchdog(|_| None, 7), None);
    }

    #[test]
    fn a_socket_is_a_path_or_an_abstract_name() {
        for name in ["/run/systemd/notify", "@org/freedesktop/systemd1/notify"] {
            assert!(open(OsStr::new(name)).is_ok(), "{name}");
        }
        for name in ["notify", "vsock:2:1234", &format!("/{}", "x".repeat(200))] {
            assert!(open(OsStr::new(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn a_manager_that_has_gone_is_not_an_error() {
        let socket = open(OsStr::new("@reset-collector-nobody-listens")).unwrap();
        Notifier { socket: Some(socket), watchdog: None }.ready("captures");
        Notifier::default().ready("captures");
    }
}
