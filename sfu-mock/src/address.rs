//! Which address each node gets.
//!
//! Own addresses rather than own ports, because that is what a fleet looks like: pools, breakers
//! and limits are keyed by host, and a port per node would hide bugs there. Linux routes all of
//! 127.0.0.0/8 to the loopback device; other systems have 127.0.0.1 only and get ports.

use std::net::Ipv4Addr;

use crate::{ClusterConfig, Error};

/// Addresses used in each /24: .0 and .255 look like network and broadcast addresses to some tools.
const PER_BLOCK: u32 = 254;

/// The address of every node of this cluster, in order.
pub(crate) fn plan(config: &ClusterConfig) -> Result<Vec<Ipv4Addr>, Error> {
    let base = config.base.unwrap_or_else(|| base_for(&config.name));
    if !base.is_loopback() || base.octets()[3] == 0 || base.octets()[3] == 255 {
        return Err(Error::config(format!("base must be in 127.0.0.0/8 and end in 1 to 254, got {base}")));
    }
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let first = index_of(base).saturating_add(wide(config.first_node.saturating_sub(1)));
    let end = first.saturating_add(wide(config.nodes));
    if end > index_of(Ipv4Addr::new(127, 255, 255, 254)) {
        return Err(Error::config(format!(
            "{} nodes from node {} on do not fit between {base} and 127.255.255.254: choose a lower base or first-node",
            config.nodes, config.first_node
        )));
    }
    Ok((first..end).map(address_of).collect())
}

/// `m3` starts at 127.3.0.1, so that processes named m1, m2… do not meet; other names at 127.1.0.1.
fn base_for(name: &str) -> Ipv4Addr {
    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    match digits.parse::<u8>() {
        Ok(n @ 1..=254) => Ipv4Addr::new(127, n, 0, 1),
        _ => Ipv4Addr::new(127, 1, 0, 1),
    }
}

/// Position of a usable address within 127.0.0.0/8.
fn index_of(address: Ipv4Addr) -> u64 {
    let [_, b, c, d] = address.octets();
    let block = u64::from(b) * 256 + u64::from(c);
    block * u64::from(PER_BLOCK) + u64::from(d) - 1
}

fn address_of(index: u64) -> Ipv4Addr {
    let block = index / u64::from(PER_BLOCK);
    let octet = |n: u64| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, octet(block >> 8), octet(block), octet(index % u64::from(PER_BLOCK) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, nodes: usize, first_node: usize) -> ClusterConfig {
        ClusterConfig { name: name.to_owned(), nodes, first_node, ..ClusterConfig::default() }
    }

    #[test]
    fn addresses_are_distinct_and_skip_the_ends_of_each_block() {
        let all = plan(&config("sfu", 1000, 1)).expect("fits");
        assert_eq!(all[0], Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(all[253], Ipv4Addr::new(127, 1, 0, 254));
        assert_eq!(all[254], Ipv4Addr::new(127, 1, 1, 1));
        let mut unique = all;
        unique.dedup();
        assert_eq!(unique.len(), 1000);
    }

    #[test]
    fn numbered_names_and_first_nodes_do_not_collide() {
        let one = plan(&config("m1", 200, 1)).expect("fits");
        let two = plan(&config("m2", 200, 1)).expect("fits");
        assert!(one.iter().all(|a| !two.contains(a)));
        let later = plan(&config("m1", 200, 201)).expect("fits");
        assert!(one.iter().all(|a| !later.contains(a)));
    }

    #[test]
    fn a_base_outside_loopback_or_too_high_is_refused() {
        let at = |base: [u8; 4]| plan(&ClusterConfig { base: Some(base.into()), ..config("sfu", 300, 1) });
        assert!(at([10, 0, 0, 1]).is_err());
        assert!(at([127, 0, 0, 0]).is_err());
        assert!(at([127, 255, 255, 1]).is_err());
        assert!(at([127, 255, 250, 1]).is_ok());
        assert!(plan(&config("sfu", 1, usize::MAX)).is_err());
    }
}
