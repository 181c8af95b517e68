//! Tells the service manager how the program fares: `sd_notify(3)` over `NOTIFY_SOCKET`, and systemd's watchdog.
//!
//! Where no manager asked for it, nothing is sent. When to say what is the callers' to know.

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

/// A manager that does not read must not hold the program up.
const SEND_TIME: Duration = Duration::from_secs(1);
/// Signs of life within the time after which the manager takes the program for dead. The pipeline may be silent for
/// [`Snapshot::MAX_HEARTBEAT_AGE`](crate::account::Snapshot::MAX_HEARTBEAT_AGE), so `WatchdogSec` should be longer than that.
const SIGNS_IN_WATCHDOG_TIME: u32 = 3;

/// The service manager, where there is one.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

/// What of the environment cannot be used.
#[derive(Debug, thiserror::Error)]
enum NotifyError {
    #[error("NOTIFY_SOCKET={0}: neither an absolute path nor an abstract name that begins with @")]
    Address(String),
    #[error("{0}")]
    Socket(#[from] io::Error),
}

impl Manager {
    /// The one that the environment names. What cannot be used is said in the log, and goes without.
    pub fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        match open(&name) {
            Ok(socket) => Self { socket: Some(socket), watchdog: watchdog(|name| env::var(name).ok(), process::id()) },
            Err(error) => {
                tracing::warn!("the service manager is told nothing: {error}");
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

    /// Gives signs of life as long as the pipeline does, if the manager watches.
    pub async fn give_signs_of_life(self: Arc<Self>, account: Arc<Account>) {
        let Some(watchdog) = self.watchdog.filter(|_| self.socket.is_some()) else { return };
        let mut turn = interval(watchdog / SIGNS_IN_WATCHDOG_TIME);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turn.tick().await;
            match account.snapshot().stuck_for() {
                None => self.send(format_args!("WATCHDOG=1")),
                Some(silence) => tracing::error!("the pipeline has given no sign of life for {} s", silence.as_secs()),
            }
        }
    }

    fn send(&self, message: fmt::Arguments<'_>) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.to_string().as_bytes(), address) {
            tracing::warn!("the service manager cannot be told: {error}");
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
    socket.set_write_timeout(Some(SEND_TIME))?;
    Ok((socket, address))
}

/// After how long a silence the manager takes this process for dead: `sd_watchdog_enabled(3)`.
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
    fn a_manager_that_is_gone_is_no_failure() {
        let socket = open(OsStr::new("@reset-collector-nobody-listens")).unwrap();
        Manager { socket: Some(socket), watchdog: None }.ready("captures");
        Manager::default().ready("captures");
    }
}
