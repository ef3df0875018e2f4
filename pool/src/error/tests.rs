use std::io;

use super::classify::SHORTAGES;
use super::*;

#[test]
fn a_dial_error_is_classified_by_its_chain() {
    let refused = Error::dial(Stage::Tcp, io::Error::from(io::ErrorKind::ConnectionRefused));
    assert!(refused.is_refused() && refused.is_retry_safe() && !refused.is_fail_fast());
    let tls = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
    assert!(Error::dial(Stage::Tls, tls).is_tls());
    let cut = Error::dial(Stage::Tls, io::Error::from(io::ErrorKind::UnexpectedEof));
    assert!(cut.is_reset() && cut.stage() == Stage::Tls);
}

#[test]
fn a_shortage_of_ours_is_no_sign_of_the_host_and_a_missing_route_is() {
    for errno in SHORTAGES {
        let error = Error::dial(Stage::Tcp, io::Error::from_raw_os_error(errno));
        assert!(error.is_local() && error.is_shortage() && error.blame() == Blame::Us, "{error:?}");
    }
    let no_port = Error::dial(Stage::Tcp, io::Error::from(io::ErrorKind::AddrNotAvailable));
    assert!(no_port.is_local() && !no_port.is_shortage(), "other origins have addresses and ports");
    assert_eq!(no_port.blame(), Blame::Host, "the origin must back off");
    let no_route = Error::dial(Stage::Tcp, io::Error::from(io::ErrorKind::HostUnreachable));
    assert!(no_route.is_unreachable() && no_route.blame() == Blame::Host);
}

#[test]
fn http2_refusals_are_no_breach_of_the_protocol() {
    assert_eq!(classify_h2(&h2::Reason::CANCEL.into()), Some(Kind::Reset));
    assert_eq!(classify_h2(&h2::Reason::INTERNAL_ERROR.into()), Some(Kind::Reset));
    assert_eq!(classify_h2(&h2::Reason::PROTOCOL_ERROR.into()), None);
}

#[test]
fn a_shared_copy_is_marked_and_keeps_its_cause() {
    let error = Error::dial(Stage::Tcp, io::Error::from(io::ErrorKind::ConnectionRefused));
    let shared = error.shared();
    assert!(shared.is_fail_fast() && shared.is_refused());
    assert!(shared.source().is_some());
}
