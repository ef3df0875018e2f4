//! What an error's chain of causes says.

use std::error::Error as StdError;
use std::io;

use super::Kind;

/// What an HTTP/2 error says, unless it is a breach of the protocol.
pub(super) fn classify_h2(error: &h2::Error) -> Option<Kind> {
    if let Some(error) = error.get_io() {
        return classify(error);
    }
    match error.reason()? {
        // RFC 9113, section 8.7: both mean that the server has not looked at the request.
        h2::Reason::REFUSED_STREAM if error.is_remote() => Some(Kind::NotProcessed),
        h2::Reason::NO_ERROR if error.is_remote() && error.is_go_away() => Some(Kind::NotProcessed),
        h2::Reason::CANCEL | h2::Reason::INTERNAL_ERROR | h2::Reason::ENHANCE_YOUR_CALM => Some(Kind::Reset),
        _ => None,
    }
}

/// Numbers of `errno` that Rust has no name for: too many open files here, or on the machine; no buffers.
#[cfg(target_os = "linux")]
pub(super) const SHORTAGES: [i32; 3] = [24, 23, 105];
#[cfg(not(target_os = "linux"))]
pub(super) const SHORTAGES: [i32; 3] = [24, 23, 55];

/// Whether it is something that this machine is short of.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::OutOfMemory || error.raw_os_error().is_some_and(|errno| SHORTAGES.contains(&errno))
}

/// Looks for the first error in the chain that says something about the host.
pub(super) fn classify(error: &(dyn StdError + 'static)) -> Option<Kind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return Some(Kind::Tls);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_incomplete_message()
        {
            return Some(Kind::Incomplete);
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                return Some(Kind::Tls);
            }
            if is_shortage(error) {
                return Some(Kind::Local);
            }
            match error.kind() {
                // Of one host: IPv6 on a machine without it, or no port left towards this one address.
                io::ErrorKind::AddrNotAvailable => return Some(Kind::NoAddress),
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => return Some(Kind::Unreachable),
                io::ErrorKind::ConnectionRefused => return Some(Kind::Refused),
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => return Some(Kind::Reset),
                io::ErrorKind::TimedOut => return Some(Kind::Timeout),
                _ => {}
            }
        }
        next = error.source();
    }
    None
}
