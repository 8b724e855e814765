//! The truth file: which records the brokers acknowledged. Its format is described in [`crate::demo::load`].

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::demo::load::generator::{Kind, Truth};
use crate::demo::load::profile::Profile;

/// Columns before those of the profiles.
const COLUMNS: &str = "topic,partition,offset,kind,detail,id";

/// Where the truth fields of each profile stand among the columns of the file.
#[derive(Debug)]
pub(super) struct Layout {
    names: Vec<String>,
    /// Per profile and column of the file, the position among the profile's truth fields.
    sources: Vec<Vec<Option<usize>>>,
}

/// The part of a line that is known before the record is acknowledged.
#[derive(Debug)]
pub(super) struct Line {
    /// Position of the profile, and so of the topic.
    pub(super) profile: usize,
    pub(super) kind: Kind,
    detail: &'static str,
    /// The id and the truth fields, ready to write; empty when there is no file.
    tail: Vec<u8>,
}

/// An open truth file.
#[derive(Debug)]
pub(super) struct TruthFile {
    path: PathBuf,
    out: BufWriter<File>,
    topics: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the truth file {}", path.display())]
pub struct TruthError {
    path: PathBuf,
    source: std::io::Error,
}

impl Layout {
    /// Columns are the truth fields of all profiles, in the order in which they first occur.
    pub(super) fn new(profiles: &[Profile]) -> Self {
        let mut names: Vec<String> = Vec::new();
        for name in profiles.iter().flat_map(Profile::truth_fields) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        let sources = profiles
            .iter()
            .map(|profile| {
                let fields = profile.truth_fields();
                names.iter().map(|name| fields.iter().position(|field| field == name)).collect()
            })
            .collect();
        Self { names, sources }
    }

    /// The line of a record, without its partition and offset.
    pub(super) fn line(&self, profile: usize, truth: &Truth<'_>) -> Line {
        let mut line = Line::bare(profile, truth);
        line.tail.reserve(160);
        cell(&mut line.tail, truth.id());
        for source in self.sources.get(profile).into_iter().flatten() {
            line.tail.push(b',');
            cell(&mut line.tail, source.and_then(|at| truth.values().nth(at)).unwrap_or_default());
        }
        line
    }
}

impl Line {
    /// A line for counting only.
    pub(super) fn bare(profile: usize, truth: &Truth<'_>) -> Self {
        let detail = truth.variety.map_or("", |variety| variety.as_str());
        Self { profile, kind: truth.kind, detail, tail: Vec::new() }
    }

    /// What becomes of the line when its transaction is aborted.
    pub(super) fn aborted(&mut self) {
        self.detail = self.kind.as_str();
        self.kind = Kind::Aborted;
    }
}

impl TruthFile {
    /// Creates the file, or empties it, and writes its header.
    pub(super) fn create(path: &Path, layout: &Layout, profiles: &[Profile]) -> Result<Self, TruthError> {
        let fail = |source| TruthError { path: path.to_owned(), source };
        let mut out = BufWriter::with_capacity(1 << 18, File::create(path).map_err(fail)?);
        let mut header = COLUMNS.as_bytes().to_vec();
        for name in &layout.names {
            header.push(b',');
            cell(&mut header, name.as_bytes());
        }
        header.push(b'\n');
        out.write_all(&header).map_err(fail)?;
        let topics = profiles.iter().map(|profile| profile.topic().to_owned()).collect();
        Ok(Self { path: path.to_owned(), out, topics })
    }

    pub(super) fn write(&mut self, line: &Line, partition: i32, offset: i64) -> Result<(), TruthError> {
        let topic = self.topics.get(line.profile).map_or("", String::as_str);
        let (kind, detail) = (line.kind.as_str(), line.detail);
        write!(self.out, "{topic},{partition},{offset},{kind},{detail},")
            .and_then(|()| self.out.write_all(&line.tail))
            .and_then(|()| self.out.write_all(b"\n"))
            .map_err(|source| self.failed(source))
    }

    pub(super) fn flush(&mut self) -> Result<(), TruthError> {
        self.out.flush().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> TruthError {
        TruthError { path: self.path.clone(), source }
    }
}

/// Appends a value, in quotes when CSV demands it (RFC 4180).
fn cell(out: &mut Vec<u8>, value: &[u8]) {
    if !value.iter().any(|byte| matches!(byte, b',' | b'"' | b'\n' | b'\r')) {
        out.extend_from_slice(value);
        return;
    }
    out.push(b'"');
    for byte in value {
        if *byte == b'"' {
            out.push(b'"');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_only_when_they_must_be() {
        let mut out = Vec::new();
        for value in ["plain", "", "a,b", r#"[{"a":1}]"#] {
            cell(&mut out, value.as_bytes());
            out.push(b'|');
        }
        assert_eq!(String::from_utf8_lossy(&out), r#"plain||"a,b"|"[{""a"":1}]"|"#);
    }
}
