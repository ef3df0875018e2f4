//! A partitioned outbound HTTPS connection pool for many origins, storms and dead hosts.
