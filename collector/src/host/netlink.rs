//! Three requests to the kernel over netlink: set a link up, find a TCP socket, destroy a TCP socket.
//!
//! All act in the network namespace of the calling thread, and implement no more of netlink than they need.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use std::time::Duration;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLM_F_ACK`
const ACKNOWLEDGE: u16 = 4;
/// `NLMSG_ERROR`: the response, also to a request that succeeded.
const RESPONSE: u16 = 2;
/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `SOCK_DESTROY` (include/uapi/linux/sock_diag.h)
const SOCKET_DESTROY: u16 = 21;
/// `SOCK_DIAG_BY_FAMILY`
const FIND_SOCKET: u16 = 20;
/// The kernel responds at once; longer is a fault.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sets the loopback device of this thread's network namespace up.
///
/// # Errors
/// The kernel's: EPERM without CAP_NET_ADMIN in the namespace.
pub(crate) fn set_loopback_up() -> io::Result<()> {
    /// The loopback device is the first of every namespace (`LOOPBACK_IFINDEX`).
    const LOOPBACK: i32 = 1;
    /// `IFF_UP`
    const UP: u32 = 1;
    // struct ifinfomsg: family, padding, type, index, flags, mask of the flags to change.
    let mut body = vec![0; 4];
    body.extend(LOOPBACK.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    body.extend(UP.to_ne_bytes());
    // NETLINK_ROUTE is protocol 0.
    request(None, NEW_LINK, &body)
}

/// Destroys the TCP socket of a connection in this thread's network namespace, as `ss -K` does.
///
/// # Errors
/// The kernel's: ENOENT where there is no such socket, EOPNOTSUPP where it is built without CONFIG_INET_DIAG_DESTROY.
pub(crate) fn destroy(local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    request(Some(netlink::SOCK_DIAG), SOCKET_DESTROY, &socket_request(local, peer))
}

/// A TCP socket as sock_diag describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundSocket {
    /// Its state, [`ESTABLISHED`] among others.
    pub(crate) state: u8,
    /// The user that opened it.
    pub(crate) uid: u32,
    /// Its inode; 0 where no file refers to it any more.
    pub(crate) inode: u64,
}

/// `TCP_ESTABLISHED`
pub(crate) const ESTABLISHED: u8 = 1;

/// Finds the TCP socket with these ends, its own first, in this thread's network namespace.
///
/// # Errors
/// The kernel's. A kernel without `tcp_diag` responds as if there were no socket.
pub(crate) fn find_socket(own: SocketAddr, other: SocketAddr) -> io::Result<Option<FoundSocket>> {
    let response = exchange(Some(netlink::SOCK_DIAG), FIND_SOCKET, REQUEST, &socket_request(own, other))?;
    match read_socket(&response) {
        Some(found) => Ok(found),
        None => match read_response(&response) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Err(malformed()),
        },
    }
}

/// A `struct inet_diag_msg`; the outer `None` where it is none, the inner for a listener, which the kernel returns where no
/// connected socket has these ends.
fn read_socket(response: &[u8]) -> Option<Option<FoundSocket>> {
    const STATE: usize = HEADER_LEN + 1;
    const UID: usize = HEADER_LEN + 64;
    const LISTEN: u8 = 10;
    let kind = u16::from_ne_bytes(response.get(4..6)?.try_into().ok()?);
    let number = |at: usize| Some(u32::from_ne_bytes(response.get(at..at + 4)?.try_into().ok()?));
    if kind != FIND_SOCKET {
        return None;
    }
    let found = FoundSocket { state: *response.get(STATE)?, uid: number(UID)?, inode: number(UID + 4)?.into() };
    Some((found.state != LISTEN).then_some(found))
}

/// A `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, id.
fn socket_request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    let mut body = vec![if local.is_ipv4() { AF_INET } else { AF_INET6 }, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    body.extend(address(local.ip()));
    body.extend(address(peer.ip()));
    // The interface, for link-local addresses; INET_DIAG_NOCOOKIE.
    let scope = if let SocketAddr::V6(local) = local { local.scope_id() } else { 0 };
    body.extend(scope.to_ne_bytes());
    body.extend(u64::MAX.to_ne_bytes());
    body
}

/// An address in the first bytes of 16.
fn address(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&v4.octets());
            bytes
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn request(protocol: Option<Protocol>, kind: u16, body: &[u8]) -> io::Result<()> {
    read_response(&exchange(protocol, kind, REQUEST | ACKNOWLEDGE, body)?)
}

fn exchange(protocol: Option<Protocol>, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(RESPONSE_TIMEOUT))?;
    let mut message = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    // Without an address a netlink socket sends to the kernel.
    send(&socket, &message, SendFlags::empty())?;
    let mut response = vec![0; 1024];
    let (_, length) = recv(&socket, &mut response, RecvFlags::empty())?;
    response.truncate(length);
    Ok(response)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink response")
}

/// The error number in a `struct nlmsgerr`: 0, or an errno below 0.
fn read_response(response: &[u8]) -> io::Result<()> {
    let kind = response.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if kind != Some(RESPONSE) {
        return Err(malformed());
    }
    let bytes = response.get(HEADER_LEN..HEADER_LEN + 4).and_then(|bytes| bytes.try_into().ok());
    match bytes.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) if errno < 0 => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(kind: u16, errno: i32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(errno.to_ne_bytes());
        bytes
    }

    #[test]
    fn reads_responses_and_survives_malformed_ones() {
        assert!(read_response(&response(RESPONSE, 0)).is_ok());
        let refused = read_response(&response(RESPONSE, -1)).expect_err("EPERM");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(read_response(&response(RESPONSE, i32::MIN)).is_err());
        assert!(read_response(&response(RESPONSE, 7)).is_err());
        assert!(read_response(&response(NEW_LINK, 0)).is_err());
        for length in 0..20 {
            assert!(read_response(&response(RESPONSE, 0)[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn addresses_stand_in_the_first_bytes() {
        assert_eq!(address(IpAddr::from([127, 0, 0, 1]))[..5], [127, 0, 0, 1, 0]);
        assert_eq!(address(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]))[15], 1);
    }
}
