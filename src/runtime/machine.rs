//! What the machine says of a disk, of its memory and of this process. Nothing where it is not Linux, or says nothing.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file system that a path lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What somebody who is not root may still write.
    pub free_bytes: u64,
    pub size_bytes: u64,
}

/// This process, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Process {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_files: u64,
    /// Seconds since 1970.
    pub started_at: f64,
}

/// Whether something disciplines the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockState {
    Synchronized,
    Free,
}

pub fn disk(path: &Path) -> Option<Disk> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path ends with a zero byte; the structure is filled in, or the call says that it was not.
    let (code, stat) = unsafe {
        let mut stat = std::mem::zeroed::<libc::statvfs>();
        (libc::statvfs(path.as_ptr(), &raw mut stat), stat)
    };
    (code == 0).then(|| Disk {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// File descriptors that this process may have open.
pub fn files_max() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is filled in, or the call says that it was not.
    let code = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (code == 0).then_some(limit.rlim_cur)
}

pub fn clock() -> Option<ClockState> {
    // SAFETY: a structure of zeros asks and sets nothing.
    let state = unsafe {
        let mut asked = std::mem::zeroed::<libc::timex>();
        libc::adjtimex(&raw mut asked)
    };
    match state {
        libc::TIME_ERROR => Some(ClockState::Free),
        state if state >= 0 => Some(ClockState::Synchronized),
        _ => None,
    }
}

/// What this process may use: the limit of its group of processes where there is one, otherwise all there is.
pub fn memory_bytes() -> Option<u64> {
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    let all = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kilobytes(&text, "MemTotal:"));
    match (group, all) {
        (Some(group), Some(all)) => Some(u64::min(group, all)),
        (group, all) => group.or(all),
    }
}

pub fn process() -> Option<Process> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    let open_files = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    // SAFETY: asks for a number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks = u32::try_from(ticks).ok().filter(|ticks| *ticks > 0)?;
    let (cpu, began) = times(&stat)?;
    let booted: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Process {
        resident_bytes: kilobytes(&status, "VmRSS:")?,
        cpu_seconds: cpu / f64::from(ticks),
        open_files,
        started_at: booted + began / f64::from(ticks),
    })
}

/// Ticks spent, and the tick since the boot at which it began, of `/proc/<pid>/stat`.
fn times(stat: &str) -> Option<(f64, f64)> {
    // The name of the program stands in brackets, and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some((number(11)? + number(12)?, number(19)?))
}

/// Bytes of a line such as `VmRSS:   1234 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_strange_name_does_not_shift_the_fields() {
        let stat = "17 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 4711 0 0";
        assert_eq!(times(stat), Some((300.0, 4711.0)));
        assert_eq!(times("17 no brackets"), None);
        assert_eq!(times("17 (a) S 1"), None);
    }

    #[test]
    fn lines_of_memory_are_read() {
        assert_eq!(kilobytes("VmHWM:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 << 10));
        assert_eq!(kilobytes("VmRSS: 12 MB", "VmRSS:"), None);
        assert_eq!(kilobytes("", "VmRSS:"), None);
    }

    #[test]
    fn this_machine_says_something() {
        let process = process().unwrap();
        assert!(process.resident_bytes > 1 << 20 && process.open_files > 2, "{process:?}");
        assert!(process.started_at > 1.7e9, "{process:?}");
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.free_bytes <= disk.size_bytes && disk.size_bytes > 0, "{disk:?}");
        assert_eq!(self::disk(Path::new("/no/such/path")), None);
        assert!(files_max().unwrap() >= process.open_files);
        assert!(memory_bytes().unwrap() > 1 << 20);
    }
}
