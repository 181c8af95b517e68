//! Hosts that are network namespaces joined by veth, made and removed by exact name.
//!
//! Names carry this process's id, so that runs do not meet. They go when a [`Network`] is dropped; should this process
//! die first (^C, kill), a guardian that outlives it removes what is left.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The device of a host that leads to the others.
pub const DEVICE: &str = "eth0";

/// How hosts are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Client and server are one host, over loopback.
    Loopback,
    /// Client and server on one wire.
    Wire,
    /// A router between them.
    Routed,
}

/// One host: a network namespace with addresses.
#[derive(Clone, Debug)]
pub struct Host {
    /// The namespace's name, as `ip netns` knows it.
    pub namespace: String,
    /// The namespace's inode, as records name it.
    pub inode: u32,
    /// Its address where others reach it, or loopback's.
    pub v4: Ipv4Addr,
    /// The same for IPv6.
    pub v6: Ipv6Addr,
    addresses: Vec<IpAddr>,
}

impl Host {
    /// Whether an address belongs to this host.
    pub fn owns(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.addresses.contains(&address)
    }

    /// A command that will run on this host.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// The file of its network namespace.
    pub fn file(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.namespace)
    }

    /// A command that will run on this host and sees all else (`/sys` too) as it is here; its process is the program's.
    pub fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.file().display())).arg(program);
        command
    }

    /// Runs a function in a thread of this host.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = std::fs::File::open(self.file())?;
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || -> Result<T> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(act())
            });
            entered.join().map_err(|_| anyhow::anyhow!("the thread on {} panicked", self.namespace))?
        })
    }

    /// A TCP counter of this host by its name in `/proc/net/snmp`.
    ///
    /// # Errors
    /// There is no such counter.
    pub fn tcp_counter(&self, name: &str) -> Result<u64> {
        let table = self.enter(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
        let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
        let (names, values) = lines.next().zip(lines.next()).context("no TCP counters")?;
        let value = names.zip(values).find(|(found, _)| *found == name).context("no such counter")?.1;
        Ok(value.parse()?)
    }
}

/// The hosts of one scenario.
#[derive(Debug)]
pub struct Network {
    /// Connects.
    pub client: Host,
    /// Listens; the client itself over loopback.
    pub server: Host,
    /// Between them, where there is one.
    pub router: Option<Host>,
}

impl Network {
    /// Makes the hosts and joins them.
    ///
    /// # Errors
    /// A namespace or device cannot be made; the text is `ip`'s own.
    pub fn new(layout: Layout) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        guard()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |role: &str| format!("{}{number}{role}", prefix());
        let client = Host::add(name("c"), [10, 9, 0, 1], "fd09::1")?;
        let network = match layout {
            Layout::Loopback => {
                let host = Host { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST, ..client };
                Self { server: host.clone(), client: host, router: None }
            }
            Layout::Wire => Self { client, server: Host::add(name("s"), [10, 9, 0, 2], "fd09::2")?, router: None },
            Layout::Routed => Self {
                client,
                server: Host::add(name("s"), [10, 9, 1, 2], "fd09:1::2")?,
                router: Some(Host::add(name("r"), [10, 9, 0, 254], "fd09::254")?),
            },
        };
        network.join()?;
        Ok(network)
    }

    /// Each host once.
    pub fn hosts(&self) -> Vec<&Host> {
        let mut hosts = vec![&self.client];
        if self.server.inode != self.client.inode {
            hosts.push(&self.server);
        }
        hosts.extend(&self.router);
        hosts
    }

    /// The host in a role.
    ///
    /// # Errors
    /// No such role here.
    pub fn host(&self, role: &str) -> Result<&Host> {
        match role {
            "client" => Ok(&self.client),
            "server" => Ok(&self.server),
            "router" => self.router.as_ref().context("no router here"),
            _ => anyhow::bail!("no role {role}"),
        }
    }

    fn join(&self) -> Result<()> {
        let (client, server) = (&self.client.namespace, &self.server.namespace);
        for host in self.hosts() {
            batch(&["-n", &host.namespace], "link set lo up\n")?;
            host.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0"))??;
        }
        let Some(router) = &self.router else {
            if client != server {
                let pair = format!("link add {DEVICE} netns {client} type veth peer name {DEVICE} netns {server}\n");
                batch(&[], &pair)?;
                self.client.raise(DEVICE, "")?;
                self.server.raise(DEVICE, "")?;
            }
            return Ok(());
        };
        let gate = &router.namespace;
        let pairs = format!(
            "link add {DEVICE} netns {client} type veth peer name {DEVICE} netns {gate}\n\
             link add {DEVICE} netns {server} type veth peer name eth1 netns {gate}\n"
        );
        batch(&[], &pairs)?;
        let ways = |v4: &str, v6: &str| format!("route add default via {v4}\nroute add ::/0 via {v6}\n");
        router.raise(DEVICE, "")?;
        let other_side = "addr add 10.9.1.254/24 dev eth1\naddr add fd09:1::254/64 dev eth1 nodad\nlink set eth1 up\n";
        batch(&["-n", gate], other_side)?;
        self.client.raise(DEVICE, &ways("10.9.0.254", "fd09::254"))?;
        self.server.raise(DEVICE, &ways("10.9.1.254", "fd09:1::254"))?;
        router.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts() {
            // What is left, the guardian removes.
            drop(Command::new("ip").args(["netns", "del", &host.namespace]).stderr(Stdio::null()).status());
        }
    }
}

impl Host {
    fn add(namespace: String, v4: [u8; 4], v6: &str) -> Result<Self> {
        batch(&[], &format!("netns add {namespace}\n"))?;
        let (v4, v6) = (Ipv4Addr::from(v4), v6.parse()?);
        let inode = rustix::fs::stat(format!("/run/netns/{namespace}"))?.st_ino;
        Ok(Self { namespace, inode: u32::try_from(inode)?, v4, v6, addresses: vec![v4.into(), IpAddr::V6(v6)] })
    }

    fn raise(&self, device: &str, then: &str) -> Result<()> {
        let Self { v4, v6, .. } = self;
        let text =
            format!("addr add {v4}/24 dev {device}\naddr add {v6}/64 dev {device} nodad\nlink set {device} up\n{then}");
        batch(&["-n", &self.namespace], &text)
    }
}

/// Runs `ip -batch`.
fn batch(options: &[&str], text: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip (iproute2) is missing")?;
    ip.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    let output = ip.wait_with_output()?;
    ensure!(output.status.success(), "ip: {text}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn prefix() -> String {
    format!("rst{}-", std::process::id())
}

/// Starts the guardian, once: it reads from a pipe whose other end this process holds, and wakes when that closes.
fn guard() -> Result<()> {
    static GUARDIAN: Mutex<Option<ChildStdin>> = Mutex::new(None);
    let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
    if guardian.is_some() {
        return Ok(());
    }
    let script = "cat >/dev/null; for n in $(ip netns list | cut -d' ' -f1); do case $n in \"$0\"*) \
        p=$(ip netns pids \"$n\"); [ -z \"$p\" ] || kill -9 $p; ip netns del \"$n\";; esac; done";
    let mut shell = Command::new("sh")
        .args(["-c", script, &prefix()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // ^C is not for it
        .spawn()?;
    *guardian = Some(shell.stdin.take().context("no stdin")?);
    // The first namespace of a machine makes the directory for all: two first ones would meet.
    let first = format!("{}first", prefix());
    batch(&[], &format!("netns add {first}\nnetns del {first}\n"))
}
