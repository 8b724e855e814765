//! What is fine, what is worth knowing, and what is wrong; each a sentence.

use std::collections::BTreeMap;
use std::fmt;

use indicatif::HumanBytes;

use crate::runtime::Micros;
use crate::runtime::machine::{ClockState, Disk};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finding {
    Fine(String),
    /// It runs so, but not well.
    Note(String),
    /// It does not run so, or not rightly.
    Fault(String),
}

/// All of them, with what each is about.
#[derive(Debug, Default)]
pub(super) struct Found(Vec<(&'static str, Finding)>);

impl Found {
    /// What is said already is not said again.
    pub(super) fn add(&mut self, about: &'static str, finding: Finding) {
        let entry = (about, finding);
        if !self.0.contains(&entry) {
            self.0.push(entry);
        }
    }

    pub(super) fn faults(&self) -> usize {
        self.0.iter().filter(|(_, finding)| matches!(finding, Finding::Fault(_))).count()
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (about, finding) in &self.0 {
            let (mark, text) = match finding {
                Finding::Fine(text) => ("ok", text),
                Finding::Note(text) => ("note", text),
                Finding::Fault(text) => ("FAULT", text),
            };
            writeln!(f, "{mark:<5}  {about:<14}  {text}")?;
        }
        match self.faults() {
            0 => writeln!(f, "fit to run"),
            1 => writeln!(f, "1 fault"),
            faults => writeln!(f, "{faults} faults"),
        }
    }
}

/// Below this, the next refresh or compaction may not find room.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Descriptors beside those of connections: files, topics, the other protocols.
const FILES_BESIDE: u64 = 1024;
/// A clock that is so far off makes the times of seals and refreshes wrong.
const SKEW_MAX: Micros = 60 * 1_000_000;

pub(super) fn disk(disk: Disk) -> Finding {
    let said = format!("{} of {} are free", HumanBytes(disk.free_bytes), HumanBytes(disk.size_bytes));
    match disk.free_bytes {
        free if free < FREE_BYTES_MIN => {
            Finding::Fault(format!("{said}; make room, or move storage.data_dir: intake waits when it is full"))
        }
        free if free < disk.size_bytes / 10 => Finding::Note(format!("{said}; make room before it is full")),
        _ => Finding::Fine(said),
    }
}

pub(super) fn files(max: Option<u64>, connections_max: usize) -> Finding {
    let Some(max) = max else { return Finding::Note("how many files may be open is not known here".to_owned()) };
    // Over Postgres wire and over HTTP.
    let wanted = 2 * connections_max as u64 + FILES_BESIDE;
    match max < wanted {
        true => Finding::Note(format!(
            "{max} files may be open, and server.connections_max = {connections_max} may take {wanted}; raise the limit \
             (LimitNOFILE, ulimit -n)"
        )),
        false => Finding::Fine(format!("{max} may be open")),
    }
}

pub(super) fn memory(has: Option<u64>, wanted: BTreeMap<&str, u64>) -> Finding {
    let Some(has) = has else { return Finding::Note("how much there is is not known here".to_owned()) };
    let all = wanted.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    let said = format!("{} there, {} by the settings", HumanBytes(has), HumanBytes(all));
    match all > has {
        true => {
            let largest = wanted.iter().max_by_key(|(_, bytes)| **bytes).map_or("", |(name, _)| name);
            Finding::Fault(format!("{said}: the system would end the process; lower {largest} first"))
        }
        false if all > has / 4 * 3 => {
            Finding::Note(format!("{said}: little is left for the system's cache of files"))
        }
        false => Finding::Fine(said),
    }
}

pub(super) fn clock(state: Option<ClockState>) -> Finding {
    match state {
        Some(ClockState::Synchronized) => Finding::Fine("kept right by the system".to_owned()),
        Some(ClockState::Free) => {
            Finding::Note("nothing keeps it right (chrony, systemd-timesyncd); seals bear its time".to_owned())
        }
        None => Finding::Note("whether anything keeps it right is not known here".to_owned()),
    }
}

/// How far the clock of the store is ahead.
pub(super) fn skew(ahead: Micros) -> Finding {
    let seconds = ahead.unsigned_abs() / 1_000_000;
    match ahead.abs() > SKEW_MAX {
        true => Finding::Fault(format!("{seconds} s from that of the storage; set the one that is wrong")),
        false => Finding::Fine("agrees with that of the storage".to_owned()),
    }
}

pub(super) fn storage(location: &str, creates_once: bool) -> Finding {
    match creates_once {
        true => Finding::Fine(format!("{location} can be written to, and creates an object once")),
        false => Finding::Fault(format!(
            "{location} creates an object that is there already: two servers would overwrite each other's commits. Use a \
             store with conditional writes (If-None-Match), or a local directory"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_full_disk_is_a_fault_and_a_filling_one_a_note() {
        let of = |free, size| disk(Disk { free_bytes: free * GIB, size_bytes: size * GIB });
        assert!(matches!(of(0, 100), Finding::Fault(_)));
        assert!(matches!(of(5, 100), Finding::Note(_)));
        assert!(matches!(of(5, 20), Finding::Fine(_)));
    }

    #[test]
    fn limits_are_held_against_what_the_settings_want() {
        assert!(matches!(files(Some(1024), 1000), Finding::Note(_)));
        assert!(matches!(files(Some(65536), 1000), Finding::Fine(_)));
        let wanted = || BTreeMap::from([("delta.bytes_max", 4 * GIB), ("query.memory_bytes_max", GIB)]);
        let Finding::Fault(said) = memory(Some(4 * GIB), wanted()) else { panic!("5 GiB do not fit into 4") };
        assert!(said.ends_with("lower delta.bytes_max first"), "{said}");
        assert!(matches!(memory(Some(6 * GIB), wanted()), Finding::Note(_)));
        assert!(matches!(memory(Some(16 * GIB), wanted()), Finding::Fine(_)));
    }

    #[test]
    fn a_clock_may_be_off_by_a_minute() {
        assert!(matches!(skew(59_000_000), Finding::Fine(_)));
        assert!(matches!(skew(-61_000_000), Finding::Fault(_)));
    }

    #[test]
    fn faults_are_counted_and_seen() {
        let mut found = Found::default();
        assert!(found.to_string().ends_with("fit to run\n"));
        found.add("disk", disk(Disk { free_bytes: 0, size_bytes: GIB }));
        found.add("storage", storage("s3://x", true));
        found.add("disk", disk(Disk { free_bytes: 0, size_bytes: GIB }));
        assert_eq!(found.faults(), 1);
        let said = found.to_string();
        assert!(said.starts_with("FAULT  disk ") && said.ends_with("1 fault\n"), "{said}");
    }
}
