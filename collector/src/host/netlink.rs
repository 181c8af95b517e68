//! Two requests to the kernel over netlink: a link set up, a TCP socket destroyed.
//!
//! Both act in the network namespace of the calling thread. No more of netlink is spoken than they need.

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
/// `NLM_F_REQUEST | NLM_F_ACK`
const REQUEST_WITH_ANSWER: u16 = 1 | 4;
/// `NLMSG_ERROR`: the answer, also where it says that all went well.
const ANSWER: u16 = 2;
/// `RTM_NEWLINK`
const NEW_LINK: u16 = 16;
/// `SOCK_DESTROY` (include/uapi/linux/sock_diag.h)
const SOCKET_DESTROY: u16 = 21;
/// The kernel answers at once; longer is a fault.
const TIMEOUT: Duration = Duration::from_secs(2);

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
    ask(None, NEW_LINK, &body)
}

/// Destroys the TCP socket of a connection in this thread's network namespace, as `ss -K` does.
///
/// # Errors
/// The kernel's: ENOENT where there is no such socket, EOPNOTSUPP where it is built without CONFIG_INET_DIAG_DESTROY.
pub(crate) fn destroy(local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 10;
    const IPPROTO_TCP: u8 = 6;
    // struct inet_diag_req_v2: family, protocol, extensions, padding, states, id.
    let mut body = vec![if local.is_ipv4() { AF_INET } else { AF_INET6 }, IPPROTO_TCP, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(peer.port().to_be_bytes());
    body.extend(address(local.ip()));
    body.extend(address(peer.ip()));
    // Any interface; INET_DIAG_NOCOOKIE.
    body.extend(0u32.to_ne_bytes());
    body.extend(u64::MAX.to_ne_bytes());
    ask(Some(netlink::SOCK_DIAG), SOCKET_DESTROY, &body)
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

fn ask(protocol: Option<Protocol>, kind: u16, body: &[u8]) -> io::Result<()> {
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TIMEOUT))?;
    let mut message = ((HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST_WITH_ANSWER.to_ne_bytes());
    message.extend(1u32.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend(body);
    // Without an address a netlink socket speaks to the kernel.
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (_, length) = recv(&socket, &mut answer, RecvFlags::empty())?;
    read_answer(answer.get(..length).unwrap_or(&answer))
}

/// The error number in a `struct nlmsgerr`: 0, or an errno below 0.
fn read_answer(answer: &[u8]) -> io::Result<()> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer over netlink is no answer");
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    if kind != Some(ANSWER) {
        return Err(malformed());
    }
    let bytes = answer.get(HEADER_LEN..HEADER_LEN + 4).and_then(|bytes| bytes.try_into().ok());
    match bytes.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(errno) if errno < 0 => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, errno: i32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(errno.to_ne_bytes());
        bytes
    }

    #[test]
    fn reads_the_answer_and_survives_what_is_none() {
        assert!(read_answer(&answer(ANSWER, 0)).is_ok());
        let refused = read_answer(&answer(ANSWER, -1)).expect_err("EPERM");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(read_answer(&answer(ANSWER, i32::MIN)).is_err());
        assert!(read_answer(&answer(ANSWER, 7)).is_err());
        assert!(read_answer(&answer(NEW_LINK, 0)).is_err());
        for length in 0..20 {
            assert!(read_answer(&answer(ANSWER, 0)[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn addresses_stand_in_the_first_bytes() {
        assert_eq!(address(IpAddr::from([127, 0, 0, 1]))[..5], [127, 0, 0, 1, 0]);
        assert_eq!(address(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]))[15], 1);
    }
}
