//! The limits of the HTTP server, as levers.
//!
//! A connection takes those that concern it when it is accepted, a body when it is begun, a stream of the bulk road
//! when it is opened: they are plain values from then on, and nothing on the way of a line reads a lever. What is open
//! when a lever is turned keeps what it came with, which it does for twice its age ([`HttpLevers::age`]) and the time to leave at most. How
//! many connections there may be is read whenever one comes, and how long a request may take when its head is here.

use std::time::Duration;

use crate::context::lever_set;

const MS: fn(u64) -> Duration = Duration::from_millis;
const S: fn(u64) -> Duration = Duration::from_secs;

lever_set! {
    /// The limits of the HTTP server.
    pub struct HttpLevers {
        // 4,096 gateways with two each, and operators. Each may cost two file descriptors for a moment, and ~100 KiB.
        /// Connections to the API at once. Beyond, whoever comes takes the place of one that does nothing for anybody, or of
        /// the oldest stream if there is none. The process needs as many file descriptors, and some for the SFUs.
        connections_max: u64 = "http.connections_max" ["connections"] 10_000, 1 => 1_000_000;
        // Probes, scrapers and a few operators; with fewer than eight they would displace each other.
        /// Connections to the listener of operators (`admin_listen`) at once; beyond, whoever comes takes a place as there.
        admin_connections_max: u64 = "http.admin_connections_max" ["connections"] 256, 8 => 10_000;
        // More would wait for each other here and not there.
        /// Requests at once on one HTTP/2 connection, for connections opened from now on.
        streams_max: u64 = "http.streams_max" ["requests"] 256, 1 => 4_096;
        // Two round trips; 5 s is a slow one on another continent.
        /// How long a TLS handshake may take.
        handshake_timeout: Duration = "http.handshake_timeout" ["duration"] S(5), MS(100) => S(60);
        // A client that connects early and has nothing to ask yet connects again in two round trips.
        /// A connection opened from now on is closed after this if no request ever came on it.
        first_request_timeout: Duration = "http.first_request_timeout" ["duration"] S(10), MS(200) => S(600);
        // A head is one packet.
        /// How long the head of a request may take from its first byte, on connections opened from now on (HTTP/1.1).
        head_timeout: Duration = "http.head_timeout" ["duration"] S(5), MS(200) => S(60);
        /// Silence after which a request's body is given up.
        body_idle_timeout: Duration = "http.body_idle_timeout" ["duration"] S(10), MS(100) => S(600);
        /// A request's body that is not whole after this is given up, however steadily it drips.
        body_timeout: Duration = "http.body_timeout" ["duration"] S(30), MS(100) => S(600);
        // The body may take 30 s and forwarding 3 s; the rest is for a syncer that is busy.
        /// From a request's head to the head of its answer; then the answer is 408.
        request_timeout: Duration = "http.request_timeout" ["duration"] S(45), MS(100) => S(600);
        // A body may take 30 s and what follows 15 s, so that the rest is for a slow reader.
        /// From a request's head to the end of its answer, on connections opened from now on, 5 s more than
        /// `http.request_timeout` at least; streams are not meant.
        answer_timeout: Duration = "http.answer_timeout" ["duration"] S(75), MS(200) => S(3_600);
        // Its process hangs, or it does it on purpose: a lost packet is sent again within 3 s.
        /// How long a client may take nothing of what is written to it, on connections opened from now on.
        write_timeout: Duration = "http.write_timeout" ["duration"] S(30), MS(200) => S(600);
        // A watch says something every 10 s and the bulk road ends after 60 s without a line, so a stream that is
        // silent for longer is not being read.
        /// Silence after which a streamed answer is taken for one that is not read, on connections opened from now on, 15 s
        /// more than `http.bulk_idle_timeout` at least. A watch says something every 10 s, the bulk road when lines come.
        stream_idle_timeout: Duration = "http.stream_idle_timeout" ["duration"] S(75), S(15) => S(3_600);
        // Gateways that pause open a new one.
        /// A stream of the bulk road opened from now on ends after so long without a line.
        bulk_idle_timeout: Duration = "http.bulk_idle_timeout" ["duration"] super::bulk::IDLE_DEFAULT, MS(200) => S(3_600);
        // Later than the 45 s of our own pool and the 60 s of common proxies, so that the client's end decides.
        /// A connection opened from now on that nobody uses is asked to leave after this, and not before
        /// `http.head_timeout`. Peers keep theirs for 45 s.
        idle_timeout: Duration = "http.idle_timeout" ["duration"] S(75), MS(200) => S(3_600);
        // Clients spread anew over syncers that were added.
        /// A connection opened from now on is asked to leave after this, plus up to as much again.
        age: Duration = "http.age" ["duration"] S(1_800), S(1) => S(86_400);
        // Whatever has an end has ended by then; streams are opened anew, watches by their cursor.
        /// How long a connection opened from now on may still be there once it was asked to leave.
        leave_timeout: Duration = "http.leave_timeout" ["duration"] S(300), MS(200) => S(3_600);
    }
}

/// A stream of the bulk road is ended for want of lines so long before its connection is for want of anything.
const AFTER_BULK: Duration = Duration::from_secs(15);

/// An answer that is late is told so; what is left to read it.
const AFTER_REQUEST: Duration = Duration::from_secs(5);

/// The limits of one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(super) streams_max: u32,
    pub(super) first_request: Duration,
    pub(super) head: Duration,
    pub(super) answer: Duration,
    pub(super) write: Duration,
    pub(super) stream_idle: Duration,
    pub(super) idle: Duration,
    pub(super) age: Duration,
    pub(super) leave: Duration,
}

/// The limits of one body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    pub(super) idle: Duration,
    pub(super) whole: Duration,
}

// === impl HttpLevers ===

impl HttpLevers {
    /// The limits of a connection that is accepted now. Those that end a connection are never shorter than those that
    /// end a request or a stream on it, whichever lever is turned: one that ends takes everything else on it along.
    pub(crate) fn connection(&self) -> ConnectionLimits {
        ConnectionLimits {
            streams_max: u32::try_from(self.streams_max.get()).unwrap_or(u32::MAX),
            first_request: self.first_request_timeout.get(),
            head: self.head_timeout.get(),
            answer: self.answer_timeout.get().max(self.request_timeout.get() + AFTER_REQUEST),
            write: self.write_timeout.get(),
            stream_idle: self.stream_idle_timeout.get().max(self.bulk_idle_timeout.get() + AFTER_BULK),
            idle: self.idle_timeout.get().max(self.head_timeout.get()),
            age: self.age.get(),
            leave: self.leave_timeout.get(),
        }
    }

    /// The limits of a body that is read now.
    pub(crate) fn body(&self) -> BodyLimits {
        BodyLimits { idle: self.body_idle_timeout.get(), whole: self.body_timeout.get() }
    }
}

// === impl ConnectionLimits ===

impl ConnectionLimits {
    /// How often the connection is looked at for what is overdue: half of its shortest limit.
    pub(super) fn look_every(&self) -> Duration {
        let Self { streams_max: _, first_request, head, answer, write, stream_idle, idle, age, leave } = *self;
        [first_request, head, answer, write, stream_idle, idle, age, leave].into_iter().fold(head, Duration::min) / 2
    }
}

#[cfg(test)]
impl Default for ConnectionLimits {
    fn default() -> Self {
        HttpLevers::register(&rate_limit::Levers::new()).connection()
    }
}

#[cfg(test)]
mod tests {
    use rate_limit::LeverValue as _;

    use super::*;
    use crate::context::{Setting, each_lever_changes_what_it_names};

    fn settings(levers: &HttpLevers) -> Vec<Setting> {
        let (connection, body) = (levers.connection(), levers.body());
        vec![
            ("http.connections_max", levers.connections_max.get().to_json()),
            ("http.admin_connections_max", levers.admin_connections_max.get().to_json()),
            ("http.streams_max", u64::from(connection.streams_max).to_json()),
            ("http.handshake_timeout", levers.handshake_timeout.get().to_json()),
            ("http.first_request_timeout", connection.first_request.to_json()),
            ("http.head_timeout", connection.head.to_json()),
            ("http.body_idle_timeout", body.idle.to_json()),
            ("http.body_timeout", body.whole.to_json()),
            ("http.request_timeout", levers.request_timeout.get().to_json()),
            ("http.answer_timeout", connection.answer.to_json()),
            ("http.write_timeout", connection.write.to_json()),
            ("http.stream_idle_timeout", connection.stream_idle.to_json()),
            ("http.bulk_idle_timeout", levers.bulk_idle_timeout.get().to_json()),
            ("http.idle_timeout", connection.idle.to_json()),
            ("http.age", connection.age.to_json()),
            ("http.leave_timeout", connection.leave.to_json()),
        ]
    }

    #[test]
    fn r20_each_lever_of_the_server_changes_the_setting_that_it_names() {
        // Longer, these two would lengthen what must not end before them.
        let times = |name: &str| match name {
            "http.request_timeout" | "http.bulk_idle_timeout" => 0.5,
            _ => 2.0,
        };
        each_lever_changes_what_it_names(HttpLevers::register, times, settings);
    }
}
