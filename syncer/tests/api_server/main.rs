//! The syncer from outside: real sockets, real TLS, mock SFUs over real HTTPS.

mod admission;
mod bad_input;
mod bulk;
mod calls;
mod fleet;
mod gateways;
mod mtls;
mod operators;
mod overload;
mod placing;
mod pool;
mod security;
mod start;
mod support;
mod verdicts;
mod watch;
mod watches;
mod wire;
mod zones;
