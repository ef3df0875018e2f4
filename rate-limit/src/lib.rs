//! Token buckets, levers, windows and back-off on tokio time.
