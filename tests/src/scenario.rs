//! The list of scenarios: read from the actors, who hold what is due beside the act.

use std::{fmt, process::Command};

use anyhow::{Context, Result, ensure};
use probes::{Cause, Direction, Origin, State};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    network::{Layout, Network},
    record::Record,
};

/// A way to make resets.
#[derive(Clone, Debug, Deserialize)]
pub struct Scenario {
    /// Its name: the function in the actors.
    pub name: String,
    /// The actors' module.
    pub group: String,
    /// What happens.
    pub what: String,
    /// What is due for it.
    pub due: Vec<Due>,
    /// The variants in which it is acted.
    pub on: Vec<Variant>,
    /// A router stands between.
    routed: bool,
    /// It changes what the whole machine shares: acted only where `RESET_TESTS_OWN_MACHINE` is set.
    pub own_machine: bool,
}

/// Which addresses a scenario is acted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// IPv4 over veth.
    V4,
    /// IPv6 over veth.
    V6,
    /// IPv4 over veth, to an IPv6 socket.
    Mapped,
    /// IPv4 over loopback.
    Lo4,
    /// IPv6 over loopback.
    Lo6,
}

impl fmt::Display for Variant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
            Self::Mapped => "mapped",
            Self::Lo4 => "lo4",
            Self::Lo6 => "lo6",
        })
    }
}

/// Records that are due on one host.
#[derive(Clone, Debug, Deserialize)]
pub struct Due {
    /// transmit or receive
    pub direction: String,
    /// The host's role.
    pub host: String,
    /// Causes, any of which is right, parted by `|`.
    pub cause: String,
    /// The origin.
    pub origin: String,
    /// States, any of which is right, parted by `|`; not judged where there is none.
    pub state: Option<String>,
    /// How many.
    pub times: usize,
    /// Other attributes that must have these values.
    pub facts: Map<String, Value>,
}

impl Due {
    /// Whether the record says what is due.
    pub fn is_met_by(&self, record: &Record) -> bool {
        let among = |allowed: &str, name| allowed.split('|').any(|word| word == record.text(name));
        record.text("network.io.direction") == self.direction
            && record.text("tcp.reset.origin") == self.origin
            && among(&self.cause, "tcp.reset.cause")
            && self.state.as_ref().is_none_or(|state| among(state, "network.connection.state"))
            && self.facts.iter().all(|(name, value)| record.attribute(name) == Some(value))
    }

    /// Whether every word is one of the closed lists: a slip in the actors must not make a record look wrong.
    fn check(&self) -> Result<()> {
        Direction::from_word(&self.direction).with_context(|| format!("direction {}", self.direction))?;
        Origin::from_word(&self.origin).with_context(|| format!("origin {}", self.origin))?;
        for cause in self.cause.split('|') {
            Cause::from_word(cause).with_context(|| format!("cause {cause}"))?;
        }
        for state in self.state.iter().flat_map(|states| states.split('|')) {
            State::from_word(state).with_context(|| format!("state {state}"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Due {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, host, cause, origin, state, .. } = self;
        write!(formatter, "{host} {direction} {origin} {cause} in {}", state.as_deref().unwrap_or("any state"))?;
        self.facts.iter().try_for_each(|(name, value)| write!(formatter, " {name}={value}"))
    }
}

impl Scenario {
    /// How its hosts are joined in a variant.
    pub fn layout(&self, variant: Variant) -> Layout {
        match variant {
            Variant::Lo4 | Variant::Lo6 => Layout::Loopback,
            _ if self.routed => Layout::Routed,
            _ => Layout::Wire,
        }
    }

    /// The command that acts it on these hosts. Exit code [`SKIPPED`] says that this machine cannot.
    pub fn command(&self, variant: Variant, network: &Network) -> Command {
        let mut command = python();
        command.args([&self.name, &variant.to_string()]);
        let roles =
            [("client", Some(&network.client)), ("server", Some(&network.server)), ("router", network.router.as_ref())];
        for (role, host) in roles {
            command.args(host.map(|host| format!("{role}={},{},{}", host.namespace, host.v4, host.v6)));
        }
        command
    }
}

/// The actors' exit code where this machine cannot act the scenario.
pub const SKIPPED: i32 = 77;

/// Every scenario, in the actors' order.
///
/// # Errors
/// The actors cannot be run, or say what is not in DESIGN's lists.
pub fn list() -> Result<Vec<Scenario>> {
    let output = python().arg("--list").output().context("python3 is missing")?;
    ensure!(output.status.success(), "the actors: {}", String::from_utf8_lossy(&output.stderr));
    let scenarios: Vec<Scenario> = serde_json::from_slice(&output.stdout)?;
    for scenario in &scenarios {
        scenario.due.iter().try_for_each(Due::check).with_context(|| scenario.name.clone())?;
    }
    Ok(scenarios)
}

fn python() -> Command {
    // The distribution's own: a version manager's shim costs 0.2 s a start.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-B", "-I"]).arg(crate::crate_directory().join("actors/run.py"));
    command
}
