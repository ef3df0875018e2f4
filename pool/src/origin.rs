//! What a connection leads to: scheme, host and port.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use http::Uri;
use http::uri::{Authority, PathAndQuery};
use rustls::pki_types::ServerName;

use crate::error::Error;

/// How an origin is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// Plain HTTP/1.1.
    Http,
    /// HTTP over TLS; ALPN decides between HTTP/1.1 and HTTP/2.
    Https,
}

/// Scheme, host and port: the key of every connection. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin {
    scheme: Scheme,
    host: Arc<str>,
    port: u16,
}

// === impl Origin ===

impl Origin {
    /// Reads `https://host:port` or `http://host:port`. The port defaults to 443 or 80; a path of `/`
    /// is allowed, anything more is not. Host names compare in lower case.
    ///
    /// # Errors
    ///
    /// When the text is no such URL.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let uri: Uri = text.parse().map_err(Error::config)?;
        let bare = uri.path_and_query().map_or("", PathAndQuery::as_str);
        if !matches!(bare, "" | "/") {
            return Err(Error::config(format!("an origin has no path: {text}")));
        }
        Self::of(&uri)
    }

    /// The origin of an absolute URL, whatever its path.
    ///
    /// # Errors
    ///
    /// When scheme or host is missing, the scheme is neither http nor https, or there is user
    /// information in it.
    pub fn of(uri: &Uri) -> Result<Self, Error> {
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(Error::config(format!("not an http or https url: {uri}"))),
        };
        let authority = uri.authority().map_or("", Authority::as_str);
        let host = uri.host().unwrap_or_default();
        let not_plain = || Error::config(format!("not a plain host and port: {uri}"));
        if host.is_empty() || authority.contains('@') {
            return Err(not_plain());
        }
        let port = match authority.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']')) {
            None | Some("") => scheme.port_default(),
            // A port that is none must not become the default one: that is another server.
            Some(port) if !port.bytes().all(|digit| digit.is_ascii_digit()) => return Err(not_plain()),
            Some(port) => port.parse().map_err(|_beyond| not_plain())?,
        };
        let origin = Self { scheme, host: host.to_ascii_lowercase().into(), port };
        if scheme == Scheme::Https {
            origin.server_name().map_err(Error::config)?;
        }
        Ok(origin)
    }

    /// How the origin is spoken to.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Host name or address; an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port` as it goes into a `Host` header; a default port is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == self.scheme.port_default() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// The name the certificate must be valid for.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
        ServerName::try_from(self.host().to_owned())
    }
}

impl Scheme {
    const fn port_default(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// The scheme as it is written in a URL.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Origin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_urls_are_equal_origins() {
        let origin = Origin::parse("https://SFU.example").expect("valid");
        assert_eq!(origin, Origin::parse("https://sfu.example:443/").expect("valid"));
        assert_eq!(origin.authority(), "sfu.example");
        assert_eq!(origin.to_string(), "https://sfu.example:443");
        let v6 = Origin::parse("https://[::1]:7443").expect("valid");
        assert_eq!((v6.host(), v6.authority().as_str()), ("::1", "[::1]:7443"));
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in
            ["", "sfu", "/path", "ftp://sfu", "https://", "https://user@sfu", "https://sfu/path", "https://s fu"]
        {
            assert!(Origin::parse(text).is_err(), "{text} was accepted");
        }
    }

    #[test]
    fn a_port_that_is_none_is_not_taken_for_the_default_one() {
        for text in ["https://sfu:99999", "https://sfu:+80", "https://sfu:7443x", "http://[::1]:65536"] {
            assert!(Origin::parse(text).is_err(), "{text} was accepted");
        }
        for (text, port) in [("https://sfu:", 443), ("http://[::1]", 80), ("http://[::1]:", 80), ("http://sfu:0", 0)] {
            assert_eq!(Origin::parse(text).expect("valid").port(), port, "{text}");
        }
    }
}
