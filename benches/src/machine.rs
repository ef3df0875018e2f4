//! Where a figure was taken, and what this process used.

use std::fs;
use std::process::Command;

/// Clock ticks per second of `/proc/self/stat`; 100 on every Linux in use.
const TICKS_PER_S: f64 = 100.0;

/// Bytes of a page.
const PAGE_BYTES: f64 = 4_096.0;

/// The commit under test, with a `+` if the tree differs from it.
#[must_use]
pub fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let head = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    if dirty { format!("{head}+") } else { head }
}

/// Processor, cores, kernel and load, in one line.
#[must_use]
pub fn describe() -> String {
    let cpu = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| {
            line.strip_prefix("model name").and_then(|rest| rest.split_once(": ")).map(|(_, name)| name.to_owned())
        })
        .unwrap_or_else(|| "unknown cpu".to_owned());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cpu}, {cores} cores, linux {}, load {}", kernel.trim(), load())
}

/// Load averages over 1, 5 and 15 minutes.
#[must_use]
pub fn load() -> String {
    read("/proc/loadavg").split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// CPU seconds this process has used, all threads.
#[must_use]
pub fn cpu_s() -> f64 {
    cpu_s_of("self")
}

/// CPU seconds another process has used, by its id.
#[must_use]
pub fn cpu_s_of(process: &str) -> f64 {
    let stat = read(&format!("/proc/{process}/stat"));
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS_PER_S // utime and stime, counted from behind the name
}

/// Resident memory now, bytes.
#[must_use]
pub fn rss_bytes() -> f64 {
    rss_bytes_of("self")
}

/// Resident memory of another process now, by its id.
#[must_use]
pub fn rss_bytes_of(process: &str) -> f64 {
    let statm = read(&format!("/proc/{process}/statm"));
    statm.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default() * PAGE_BYTES
}

/// The most that was ever resident, bytes.
#[must_use]
pub fn rss_peak_bytes() -> f64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() * 1_024.0
}

/// Open file descriptors of this process.
#[must_use]
pub fn fds() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
