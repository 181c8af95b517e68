use std::{
    io::IoSlice,
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg,
        socketpair,
    },
    process::{Uid, geteuid},
};

use super::*;

const NOBODY: u32 = 65_534;

/// A connection to a listener of this process: the client's end, and who is found behind it.
struct Connection {
    client: Option<TcpStream>,
    accepted: TcpStream,
}

impl Connection {
    fn new() -> Self {
        Self::to("127.0.0.1:0", TcpStream::connect)
    }

    fn to(address: &str, connect: impl FnOnce(SocketAddr) -> std::io::Result<TcpStream>) -> Self {
        let listener = TcpListener::bind(address).expect("a port");
        let client = connect(listener.local_addr().expect("an address")).expect("a connection");
        let (accepted, _) = listener.accept().expect("a connection");
        Self { client: Some(client), accepted }
    }

    fn sender(&self) -> Sender {
        let local = self.accepted.local_addr().expect("an address");
        find_sender(self.accepted.peer_addr().expect("an address"), local)
    }

    fn take(&mut self) -> TcpStream {
        self.client.take().expect("taken once")
    }
}

fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A process that holds a descriptor until it is dropped.
struct Holding(Child);

impl Holding {
    fn new(descriptor: impl Into<Stdio>, uid: Option<u32>) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("60").stdin(descriptor);
        if let Some(uid) = uid {
            std::os::unix::process::CommandExt::uid(&mut sleep, uid);
        }
        Self(sleep.spawn().expect("sleep"))
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn pid(sender: Sender) -> Option<u32> {
    sender.process().map(|owner| owner.pid)
}

#[test]
fn finds_this_process_behind_its_own_connection() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let connection = Connection::to(address, TcpStream::connect);
        let Sender::Process(owner) = connection.sender() else { panic!("{address}: {:?}", connection.sender()) };
        assert_eq!(owner.pid, std::process::id());
        assert!(owner.start_boot_ns > 0);
    }
}

#[test]
fn a_socket_whose_process_has_closed_it_is_nobodys() {
    let mut connection = Connection::new();
    drop(connection.take());
    assert_eq!(connection.sender(), Sender::Unattributed);
    // And one that leaves nothing behind in the kernel's table.
    let mut connection = Connection::new();
    let client = connection.take();
    rustix::net::sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO)).expect("SO_LINGER");
    let (peer, local) = (client.local_addr().expect("an address"), client.peer_addr().expect("an address"));
    drop(client);
    assert_eq!(find_sender(peer, local), Sender::Unattributed);
}

#[test]
fn a_socket_in_flight_is_nobodys() {
    let mut connection = Connection::new();
    let client = connection.take();
    let (one, _other) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None).expect("a pair");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [client.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&one, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).expect("sent");
    assert_eq!(pid(connection.sender()), Some(std::process::id()), "it is held here as well");
    drop(client);
    assert_eq!(connection.sender(), Sender::Unattributed);
}

#[test]
fn a_socket_of_a_thread_with_files_of_its_own_is_nobodys() {
    let (address, to) = mpsc::channel();
    let (done, end) = mpsc::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = listener.local_addr().expect("an address");
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_FILES).expect("unshare");
        let client = TcpStream::connect(server).expect("a connection");
        address.send(client.local_addr().expect("an address")).expect("sent");
        assert!(end.recv().is_err(), "ends when the test does");
    });
    let peer = to.recv().expect("an address");
    let (_accepted, _) = listener.accept().expect("a connection");
    assert_eq!(find_sender(peer, server), Sender::Unattributed);
    drop(done);
    thread.join().expect("the thread ends");
}

#[test]
fn a_socket_that_another_user_opened_is_not_its_holders() {
    if !is_root() {
        return;
    }
    let connect = |address| {
        let thread = thread::spawn(move || {
            let nobody = Uid::from_raw(NOBODY);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("setresuid");
            TcpStream::connect(address)
        });
        thread.join().expect("the thread ends")
    };
    let mut connection = Connection::to("127.0.0.1:0", connect);
    assert_eq!(connection.sender(), Sender::Unattributed, "held by root, opened by nobody");
    let holding = Holding::new(OwnedFd::from(connection.take()), Some(NOBODY));
    assert_eq!(pid(connection.sender()), Some(holding.0.id()), "held by a process of its user");
}

#[test]
fn of_related_holders_it_is_the_oldest_and_of_strangers_none() {
    let mut connection = Connection::new();
    let client = connection.take();
    let copy = |stream: &TcpStream| OwnedFd::from(stream.try_clone().expect("a copy"));
    let first = Holding::new(copy(&client), None);
    assert_eq!(pid(connection.sender()), Some(std::process::id()), "a child inherited it");
    let _second = Holding::new(copy(&client), None);
    drop(client);
    assert_eq!(connection.sender(), Sender::Unattributed, "two that are not each other's parent");
    drop(first);
    assert!(pid(connection.sender()).is_some());
}

/// A sidecar in a pid namespace of its own sees other numbers than the kernel's records have.
#[test]
fn pids_of_another_namespace_are_not_taken_for_the_kernels() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--fork", "--pid", "--mount-proc"]).arg(std::env::current_exe().expect("this program"));
    let child = "receiver::peer_process::tests::in_another_pid_namespace";
    let output = unshare.args(["--ignored", "--exact", child]).output().expect("unshare");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if said.contains("Operation not permitted") {
        eprintln!("skipped: no namespace can be made here: {said}");
        return;
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The other half of the test above.
#[test]
#[ignore = "run by pids_of_another_namespace_are_not_taken_for_the_kernels"]
fn in_another_pid_namespace() {
    assert!(has_foreign_pids(Path::new("/proc")));
    let sender = Connection::new().sender();
    assert!(matches!(sender, Sender::ForeignPid { start_boot_ns } if start_boot_ns > 0), "{sender:?}");
}

#[test]
fn a_translated_end_counts_only_where_nothing_fits_better() {
    let end = |port| SocketAddr::new([10, 0, 0, 1].into(), port);
    let socket = |port, inode| Socket { namespace: 1, other: end(port), inode, uid: 0 };
    let chosen = |sockets: &[Socket]| match choose(sockets.to_vec(), end(4317)) {
        Choice::One(socket) => Some(socket.inode),
        Choice::Several => None,
        Choice::None => Some(0),
    };
    assert_eq!(chosen(&[]), Some(0));
    assert_eq!(chosen(&[socket(80, 2), socket(4317, 1)]), Some(1));
    assert_eq!(chosen(&[socket(80, 2)]), Some(2));
    assert_eq!(chosen(&[socket(80, 2), socket(81, 3)]), None, "either could be meant");
    assert_eq!(chosen(&[socket(4317, 1), socket(4317, 3)]), None, "two namespaces with the same addresses");
}
