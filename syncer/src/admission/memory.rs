//! How much memory the process has, and how much it may have. The one file here that asks the machine.

use std::fs;

/// Part of the machine's or control group's memory that counts as the limit unless a lever names one: the
/// rest is for the kernel's buffers, which are charged to the same account.
const SHARE_OF_MACHINE: f64 = 0.9;

/// Resident memory of this process, in bytes. `None` where `/proc` does not tell.
#[must_use]
pub fn resident() -> Option<u64> {
    kib(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// What this process may use, in bytes: nine tenths of the smaller of the machine's memory and the control
/// group's limit. `None` where neither is told.
#[must_use]
pub fn limit() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| kib(&text, "MemTotal:"));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let bytes = [machine, group].into_iter().flatten().min()?;
    Some((bytes as f64 * SHARE_OF_MACHINE) as u64) // truncates; fits, being smaller
}

/// The value of a line `name  1234 kB`, in bytes.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_kib_is_read_as_bytes() {
        let text = "Name:\tsyncer\nVmRSS:\t    2048 kB\nVmSwap: 1 kB\n";
        assert_eq!((kib(text, "VmRSS:"), kib(text, "VmPeak:")), (Some(2048 * 1024), None));
        assert_eq!(kib("VmRSS: much kB", "VmRSS:"), None);
    }

    #[test]
    fn this_machine_tells_what_it_has() {
        let (resident, limit) = (resident().expect("on Linux"), limit().expect("on Linux"));
        assert!(0 < resident && resident < limit, "{resident} of {limit}");
    }
}
