//! What a hardened process can and cannot do: in a process of its own, since there is no way back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::ErrorKind,
    net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use reset_collector::{
    config::settings::{Hardening, Settings},
    host::hardening::{Hardened, harden},
};
use rustix::{
    net::{AddressFamily, SocketType, socket},
    process::{Pid, Signal, getpid, getppid, kill_process, test_kill_process},
};

const CHILD: &str = "RESET_COLLECTOR_TEST_HARDENED";

/// Runs a test of this file alone in a process of its own; its output, where it failed.
fn in_a_child(test: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn hardened(hardening: Hardening) -> Hardened {
    harden(&Settings { hardening, ..Settings::default() }, || true).unwrap()
}

fn status(line: &str) -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let of_task = |status: String| status.lines().find_map(|found| found.strip_prefix(line)).unwrap().trim().to_owned();
    tasks.map(|task| of_task(fs::read_to_string(task.join("status")).unwrap())).collect()
}

#[test]
fn the_steps_are_done_in_all_threads() {
    if !is_child() {
        return in_a_child("the_steps_are_done_in_all_threads");
    }
    let was_root = rustix::process::geteuid().is_root();
    let hardened = hardened(Hardening::Required);
    assert_eq!(
        hardened.steps.iter().map(|(step, done)| (*step, done.is_ok())).collect::<Vec<_>>(),
        [("capabilities", true), ("no_new_privs", true), ("seccomp", true)]
    );
    // libtest has a thread of its own, which was there before: the filter and no_new_privs reach it as well.
    assert!(status("NoNewPrivs:").iter().all(|value| value == "1"));
    assert!(status("Seccomp:").iter().all(|value| value == "2"));
    thread::spawn(move || {
        let read = fs::read_to_string("/proc/thread-self/status").unwrap();
        let of = |name: &str| read.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        // CAP_DAC_READ_SEARCH is 2, CAP_SYS_PTRACE 19.
        let expected = if was_root { 1 << 2 | 1 << 19 } else { 0 };
        for set in ["CapEff:", "CapPrm:"] {
            assert_eq!(u64::from_str_radix(&of(set), 16).unwrap() & !expected, 0, "{read}");
        }
        assert_eq!(u64::from_str_radix(&of("CapInh:"), 16).unwrap(), 0);
    })
    .join()
    .unwrap();
}

#[test]
fn what_a_collector_needs_goes_on() {
    if !is_child() {
        return in_a_child("what_a_collector_needs_goes_on");
    }
    hardened(Hardening::Auto);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap().1, stream.local_addr().unwrap());
    UdpSocket::bind("[::1]:0").map(drop).unwrap();
    socket(AddressFamily::NETLINK, SocketType::DGRAM, None).map(drop).unwrap();
    assert!("localhost:1".to_socket_addrs().unwrap().next().is_some(), "names are resolved");
    let directory = tempfile::tempdir().unwrap();
    let (file, renamed) = (directory.path().join("deeper/file"), directory.path().join("renamed"));
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "text").unwrap();
    fs::rename(&file, &renamed).unwrap();
    assert_eq!(fs::read_to_string(renamed).unwrap(), "text");
    // The process that started this one: of it as much is to be read as before.
    let parent = getppid().unwrap();
    let of_parent = |name: &str| format!("/proc/{}/{name}", parent.as_raw_nonzero());
    assert!(fs::read(of_parent("environ")).is_ok_and(|bytes| !bytes.is_empty()));
    assert!(fs::read_link(of_parent("exe")).is_ok() && fs::read_dir(of_parent("fd")).is_ok());
    assert!(test_kill_process(parent).is_ok(), "whether it is there can be asked");
    let many: Vec<_> = (0..20).map(|number| thread::spawn(move || number)).collect();
    assert_eq!(many.into_iter().map(|thread| thread.join().unwrap()).sum::<i32>(), 190);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).map(drop).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        tokio::net::TcpListener::bind("127.0.0.1:0").await.map(drop).unwrap();
        tokio::task::spawn_blocking(|| 1).await.unwrap();
    });
}

#[test]
fn what_it_does_not_need_is_refused() {
    if !is_child() {
        return in_a_child("what_it_does_not_need_is_refused");
    }
    hardened(Hardening::Auto);
    let refused = |what: &str, result: std::io::Result<()>| {
        assert!(result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied), "{what} was not refused");
    };
    refused("starting a program", Command::new("/bin/true").status().map(drop));
    refused("a user namespace", unshare(CloneFlags::CLONE_NEWUSER).map_err(Into::into));
    refused(
        "a socket for packets",
        socket(AddressFamily::PACKET, SocketType::DGRAM, None).map(drop).map_err(Into::into),
    );
    refused(
        "a socket of another family",
        socket(AddressFamily::BLUETOOTH, SocketType::SEQPACKET, None).map(drop).map_err(Into::into),
    );
    refused("a signal to another", kill_process(getppid().unwrap(), Signal::CONT).map_err(Into::into));
    refused("a signal to itself by number", kill_process(getpid(), Signal::CONT).map_err(Into::into));
    refused("another user", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).map_err(Into::into));
    refused("changing a file's mode", {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("file")).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
    });
    let watched = Pid::from_raw(1).unwrap();
    refused(
        "a descriptor of a process",
        rustix::process::pidfd_open(watched, rustix::process::PidfdFlags::empty()).map(drop).map_err(Into::into),
    );
}

#[test]
fn off_changes_nothing() {
    if !is_child() {
        return in_a_child("off_changes_nothing");
    }
    let before = status("Seccomp:");
    assert_eq!(hardened(Hardening::Off).steps, Vec::new());
    assert_eq!(status("Seccomp:"), before);
    assert!(Command::new("/bin/true").status().unwrap().success());
}

#[test]
fn required_refuses_to_start_where_a_step_fails() {
    if !is_child() {
        return in_a_child("required_refuses_to_start_where_a_step_fails");
    }
    let settings = |hardening| Settings { hardening, ..Settings::default() };
    // Programs that do not answer with any capabilities: none can be given up.
    let error = harden(&settings(Hardening::Required), || false).unwrap_err().to_string();
    assert!(error.contains("capabilities") && error.contains("hardening: auto"), "{error}");
}
