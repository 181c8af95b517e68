//! What this host offers: which resets are seen, by direction and origin, through which hook; what is missing; and
//! what to do about it. For `check` and for the line at start-up.
//!
//! Reads the host in one place ([`Host::read`]); the rest is pure. What runs in the kernel is [`crate::kernel`]'s.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    host::{
        capability::{CAPABILITIES, Capability, Held, Need, how_to_get},
        sandbox::Fences,
        selftest::{self, Outcome, SelfTestError},
    },
    kernel::{Coverage, Kernel, KernelError, plan, vintage},
    model::resource::Resource,
    model::{Decoder, Direction, Origin, reason::ReasonNames},
};

/// This process's own view of processes.
const PROC: &str = "/proc";
const SYS: &str = "/sys";

/// What is known of the host beside the hooks.
#[derive(Clone, Debug)]
pub struct Host {
    /// The running kernel, as `uname -r` says.
    pub release: String,
    /// The file of kernel types.
    pub btf: PathBuf,
    /// Both kernels, where that file may be of another.
    pub difference: Option<String>,
    /// Capabilities of this process.
    pub held: Held,
    /// What else fences this process in.
    pub fences: Fences,
    /// The mode of kernel lockdown, where it is on.
    pub lockdown: Option<String>,
}

impl Host {
    /// Reads it.
    pub fn read(btf: &Path) -> Self {
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").ok();
        Self {
            release: vintage::running(),
            btf: btf.to_owned(),
            difference: vintage::difference(btf),
            held: Held::read(Path::new(PROC)),
            fences: Fences::read(Path::new(PROC), Path::new(SYS)),
            lockdown: lockdown.and_then(|text| lockdown_mode(&text)),
        }
    }
}

/// The mode in brackets of `none [integrity] confidentiality`; `None` when it is none.
fn lockdown_mode(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

/// What the host offers, ready to be shown.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The running kernel.
    pub kernel: String,
    /// The file of kernel types.
    pub kernel_types: String,
    /// Why nothing is captured; left out when something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// A row per direction and origin.
    pub resets: Vec<Sight>,
    /// Hooks that see no resets themselves, and what is known through them.
    pub facts: Vec<Fact>,
    /// A row per capability that matters.
    pub capabilities: Vec<CapabilityRow>,
    /// How the self-test ended; left out when it was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_test: Option<String>,
    /// What to do about what is missing, a line each.
    pub advice: Vec<String>,
}

/// One kind of reset: seen, or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sight {
    /// `transmit` or `receive`
    pub direction: &'static str,
    /// `active`, `passive`, `firewall` or `peer`
    pub origin: &'static str,
    /// Which of them.
    pub which: &'static str,
    /// The hook that sees them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<&'static str>,
    /// Why they are not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// What is known through a hook that sees no resets itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// The hook.
    pub hook: &'static str,
    /// What is known.
    pub known: &'static str,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// A capability, and whether this process has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CapabilityRow {
    /// Its name.
    pub name: &'static str,
    /// Whether this process has it, or one that includes it.
    pub held: bool,
    /// Whether nothing is captured without it.
    pub required: bool,
    /// What it is for.
    pub used_to: &'static str,
}

/// A kind of reset and the hooks that see it, the best first.
struct Kind {
    direction: Direction,
    origin: Origin,
    which: &'static str,
    hooks: &'static [&'static str],
    /// Not through `tcp_send_reset` where that has no reason: before Linux 6.10 it fires with a full socket only
    /// (`tcp_v4_send_reset`, net/ipv4/tcp_ipv4.c).
    needs_reason: bool,
}

const KINDS: &[Kind] = &[
    Kind {
        direction: Direction::Transmit,
        origin: Origin::Active,
        which: "by the socket's own will: close, abort, timeout",
        hooks: &["tcp_send_reset"],
        needs_reason: false,
    },
    Kind {
        direction: Direction::Transmit,
        origin: Origin::Passive,
        which: "in answer to a segment for a connection",
        hooks: &["tcp_send_reset"],
        needs_reason: false,
    },
    Kind {
        direction: Direction::Transmit,
        origin: Origin::Passive,
        which: "in answer to a segment for no socket, or in TIME_WAIT",
        hooks: &["tcp_send_reset", "tcp_v4_send_reset"],
        needs_reason: true,
    },
    Kind {
        direction: Direction::Transmit,
        origin: Origin::Firewall,
        which: "by netfilter (REJECT)",
        hooks: &["net_dev_queue"],
        needs_reason: false,
    },
    Kind {
        direction: Direction::Receive,
        origin: Origin::Peer,
        which: "by a connection",
        hooks: &["tcp_receive_reset"],
        needs_reason: false,
    },
    Kind {
        direction: Direction::Receive,
        origin: Origin::Peer,
        which: "and owned by no connection, or not accepted",
        hooks: &["kfree_skb"],
        needs_reason: false,
    },
];

/// What runs in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Attached<'a> {
    /// Every hook.
    pub hooks: &'a [Coverage],
    /// Whether the kernel gives a reason with each reset that it sends (Linux 6.10).
    pub has_reasons: bool,
}

impl<'a> From<&'a Kernel> for Attached<'a> {
    fn from(kernel: &'a Kernel) -> Self {
        Self { hooks: kernel.coverage(), has_reasons: !kernel.reasons().reset.is_empty() }
    }
}

/// Attaches every hook for a moment, runs the self-test, and reports: for `check`.
pub fn examine(btf: &Path) -> Report {
    /// Enough for the self-test; what else comes meanwhile is nobody's.
    const RING_BUFFER_BYTES: u32 = 1 << 18;
    let mut attached = Kernel::attach(btf, RING_BUFFER_BYTES, plan::has_use);
    let self_test = attached.as_mut().ok().map(|kernel| {
        let tables = kernel.reasons().clone();
        let decoder = Decoder::new(ReasonNames::new(tables.reset, tables.drop), Resource::new(Vec::new()));
        selftest::run(kernel, &decoder, btf, Path::new(PROC), |_| ())
    });
    report(&Host::read(btf), attached.as_ref().map(Attached::from), self_test.as_ref())
}

/// What this host offers. `attached`: what came of [`Kernel::attach`]. `self_test`: what came of [`selftest::run`], if it
/// was run.
pub fn report(
    host: &Host,
    attached: Result<Attached<'_>, &KernelError>,
    self_test: Option<&Result<Outcome, SelfTestError>>,
) -> Report {
    let hooks = attached.as_ref().map_or(&[][..], |attached| attached.hooks);
    Report {
        kernel: host.release.clone(),
        kernel_types: host.btf.display().to_string(),
        failure: attached.as_ref().err().map(|error| error.to_string()),
        resets: attached
            .map_or_else(|_| Vec::new(), |attached| KINDS.iter().map(|kind| sight(kind, attached)).collect()),
        facts: hooks.iter().filter(|hook| !hook.sees_resets).map(fact).collect(),
        capabilities: CAPABILITIES.iter().map(|row| capability(host.held, row)).collect(),
        self_test: self_test.map(|outcome| match outcome {
            Ok(Outcome::Passed { resets }) => format!("passed: {resets} resets came out as they were made"),
            Ok(Outcome::Skipped(why)) => format!("not run: {why}"),
            Err(error) => format!("failed: {error}"),
        }),
        advice: advice(
            host,
            attached.err(),
            matches!(self_test, Some(Err(_))) || hooks.iter().any(|hook| hook.missing.is_some()),
        ),
    }
}

/// The one message where nothing can be captured: what is missing and what to do. Where a capability is missing, that
/// alone, since each hook's refusal follows from it.
pub fn refusal(host: &Host, error: &KernelError) -> String {
    let missing = host.held.missing(Need::Capture);
    let advice = advice(host, Some(error), false);
    // An unreadable or malformed file fails before any capability is needed.
    if missing.is_empty() || matches!(error, KernelError::Btf(_)) {
        let advice = advice.iter().filter(|line| !line.starts_with(LESS_KNOWN));
        return std::iter::once(error.to_string()).chain(advice.cloned()).collect::<Vec<_>>().join("\n");
    }
    advice.into_iter().next().unwrap_or_default()
}

fn sight(kind: &Kind, attached: Attached<'_>) -> Sight {
    let runs = |name: &&&str| {
        let silent = kind.needs_reason && **name == "tcp_send_reset" && !attached.has_reasons;
        !silent && attached.hooks.iter().any(|hook| hook.hook == **name && hook.missing.is_none())
    };
    let hook = kind.hooks.iter().find(runs).copied();
    let why = || {
        let reasons: Vec<String> = kind
            .hooks
            .iter()
            .filter_map(|name| attached.hooks.iter().find(|hook| hook.hook == *name))
            .map(|hook| match &hook.missing {
                Some(missing) => format!("{}: {missing}", hook.hook),
                None => {
                    format!("{}: this kernel traces only resets of a full socket (Linux 6.10 traces all)", hook.hook)
                }
            })
            .collect();
        reasons.join("; ")
    };
    Sight {
        direction: kind.direction.word(),
        origin: kind.origin.word(),
        which: kind.which,
        hook,
        missing: hook.is_none().then(why),
    }
}

fn fact(hook: &Coverage) -> Fact {
    Fact { hook: hook.hook, known: hook.sees, missing: hook.missing.clone() }
}

fn capability(held: Held, &(capability, need, used_to): &(Capability, Need, &'static str)) -> CapabilityRow {
    CapabilityRow { name: capability.name(), held: held.has(capability), required: need == Need::Capture, used_to }
}

/// `BPF_MAP_TYPE_RINGBUF`, without which no record comes out. It explains a failure; what runs is found out by trying.
const RING_BUFFER_SINCE: (u32, u32) = (5, 8);

/// Whether a release, as `uname -r` says it, is older than what is needed; one that cannot be read is not.
fn is_too_old(release: &str) -> bool {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < RING_BUFFER_SINCE,
        _ => false,
    }
}

/// How advice begins that concerns owners only.
const LESS_KNOWN: &str = "less is known of the owners of resets";

fn advice(host: &Host, failure: Option<&KernelError>, hook_fails: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let missing = host.held.missing(Need::Capture);
    if !missing.is_empty() {
        lines.push(format!("nothing can be captured without {}; {}", names(&missing), ways(&missing)));
    }
    if host.held.in_user_namespace {
        lines.push(
            "this process is in a user namespace (a rootless container), where capabilities do not count for eBPF: run \
             it in a container with the host's users, or on the host"
                .to_owned(),
        );
    }
    let is_denied = matches!(failure, Some(KernelError::Load(_) | KernelError::NoHook(_)));
    if is_denied && missing.is_empty() && host.fences.has_seccomp_filter {
        lines.push(
            "the capabilities are there, but a seccomp filter is on and may forbid bpf(2) or perf_event_open(2): Docker: \
             leave --security-opt seccomp=… out, its own profile allows them with the capabilities; Kubernetes: \
             seccompProfile: { type: RuntimeDefault }; systemd: SystemCallFilter=@system-service bpf perf_event_open"
                .to_owned(),
        );
    }
    if let Some(mode) = host.lockdown.as_deref().filter(|mode| *mode == "confidentiality") {
        lines.push(format!(
            "the kernel is locked down ({mode}), which forbids eBPF to read kernel memory: boot with lockdown=integrity \
             or without it"
        ));
    }
    if failure.is_some() && is_too_old(&host.release) {
        lines.push(format!(
            "Linux {} is too old: the eBPF ring buffer came with {}.{}",
            host.release, RING_BUFFER_SINCE.0, RING_BUFFER_SINCE.1
        ));
    }
    let lacks_types = matches!(failure, Some(KernelError::Btf(_)));
    if lacks_types && host.fences.lacks_sysfs {
        lines.push(format!("there is no {SYS} here: in a container mount the host's, read-only, at {SYS}"));
    } else if lacks_types {
        lines.push(format!(
            "without the kernel's types nothing can be loaded: a kernel built with CONFIG_DEBUG_INFO_BTF=y has them in \
             {}; for others, give a file made for exactly Linux {} with --btf FILE",
            crate::kernel::KERNEL_BTF,
            host.release
        ));
    }
    // An unreadable file has been said; one of another kernel explains what else failed.
    if failure.is_some() || hook_fails {
        lines.extend(host.difference.clone());
    }
    lines.extend(less_known(host));
    lines
}

/// What of the owners of resets is not known, though every reset is seen, and what to do: a line each.
pub fn less_known(host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    let owners = host.held.missing(Need::Owners);
    if !owners.is_empty() {
        lines.push(format!("{LESS_KNOWN} without {}; {}", names(&owners), ways(&owners)));
    }
    if host.fences.in_pid_namespace {
        lines.push(format!(
            "{LESS_KNOWN}, and applications' spans are not matched, in a pid namespace of its own: Docker: --pid host; \
             Kubernetes: hostPID: true (with shareProcessNamespace: true the pod's own owners are known)"
        ));
    }
    if let Some(profile) = &host.fences.apparmor {
        lines.push(format!(
            "{LESS_KNOWN} if the AppArmor profile {profile} keeps this process from reading others; Docker: \
             --security-opt apparmor=unconfined; Kubernetes: securityContext: {{ appArmorProfile: {{ type: Unconfined }} }}"
        ));
    }
    lines
}

fn names(missing: &[Capability]) -> String {
    missing.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" and ")
}

fn ways(missing: &[Capability]) -> String {
    how_to_get(missing).join("; ")
}

impl Report {
    /// Whether every kind of reset is seen, and rightly as far as is known.
    pub fn is_complete(&self) -> bool {
        let misread = self.self_test.as_ref().is_some_and(|outcome| outcome.starts_with("failed"));
        self.failure.is_none() && !misread && self.resets.iter().all(|sight| sight.missing.is_none())
    }

    /// One line for the start: what is captured, or what of it is not.
    pub fn start_up_line(&self) -> String {
        if let Some(failure) = &self.failure {
            return failure.clone();
        }
        // One hook sees several kinds: its reason is said once.
        let mut unseen: Vec<(&str, Vec<String>)> = Vec::new();
        for sight in &self.resets {
            let Some(why) = &sight.missing else { continue };
            let kind = format!("{} {} ({})", sight.direction, sight.origin, sight.which);
            match unseen.iter_mut().find(|(other, _)| other == why) {
                Some((_, kinds)) => kinds.push(kind),
                None => unseen.push((why, vec![kind])),
            }
        }
        if unseen.is_empty() {
            return format!("every reset is seen that Linux {} sends or receives", self.kernel);
        }
        let parts: Vec<String> = unseen.iter().map(|(why, kinds)| format!("{}: {why}", kinds.join(", "))).collect();
        format!("not seen: {}", parts.join("; "))
    }

    /// For a person: aligned, a line per row.
    pub fn text(&self) -> String {
        let mut lines =
            vec![format!("Linux {}, types of the kernel from {}", self.kernel, self.kernel_types), String::new()];
        if let Some(failure) = &self.failure {
            lines.extend([format!("NOTHING IS CAPTURED: {failure}"), String::new()]);
        }
        if !self.resets.is_empty() {
            let width = self.resets.iter().map(|sight| sight.which.len()).max().unwrap_or(0);
            lines.push("Resets:".to_owned());
            lines.extend(self.resets.iter().map(|sight| {
                let (direction, origin, which) = (sight.direction, sight.origin, sight.which);
                let seen = match (&sight.hook, &sight.missing) {
                    (Some(hook), _) => format!("seen through {hook}"),
                    (None, missing) => format!("NOT SEEN: {}", missing.as_deref().unwrap_or("no hook is built in")),
                };
                format!("  {direction:8}  {origin:8}  {which:width$}  {seen}")
            }));
            lines.push("Known of them:".to_owned());
            lines.extend(self.facts.iter().map(|fact| {
                let state = fact.missing.as_ref().map_or("yes".to_owned(), |missing| format!("NO: {missing}"));
                format!("  {:40}  {:22}  {state}", fact.known, fact.hook)
            }));
            lines.push(String::new());
        }
        lines.push("Capabilities:".to_owned());
        lines.extend(self.capabilities.iter().map(|row| {
            let held = match (row.held, row.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            format!("  {:20}  {held:3}  {}", row.name, row.used_to)
        }));
        lines.extend(self.self_test.iter().flat_map(|outcome| [String::new(), format!("Self-test {outcome}")]));
        if !self.advice.is_empty() {
            lines.extend([String::new(), "What to do:".to_owned()]);
            lines.extend(self.advice.iter().map(|line| format!("  {line}")));
        }
        lines.join("\n") + "\n"
    }

    /// For a program.
    pub fn json(&self) -> serde_json::Value {
        // Of text, booleans and lists, nothing can fail.
        serde_json::to_value(self).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
