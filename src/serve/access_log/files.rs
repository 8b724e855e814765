//! The files of the log: one series for reads, one for everything else, each in files of a day or less.
//!
//! `access/reads-2026-01-31-000000.jsonl`: the day in UTC, and a number that grows.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Days, NaiveDate};
use parking_lot::Mutex;
use serde::Serialize;

use super::redact::redacted;
use super::{Bounds, Record, Weight};
use crate::runtime::Micros;

/// A series is cut into so many files before its oldest goes.
const FILES: u64 = 8;
const SERIES: [&str; 2] = ["reads", "events"];

/// A file, as far as whole lines reach in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    series: usize,
    day: NaiveDate,
    number: u64,
}

/// All files; the one that is open in each series is appended to.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    bounds: Bounds,
    open: [Option<File>; 2],
    /// Oldest first.
    written: Arc<Mutex<Vec<Written>>>,
}

/// As it stands in the file.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    event: &'static str,
    role: &'a str,
    address: Option<String>,
    application: Option<&'a str>,
    protocol: &'static str,
    tls: bool,
    session: Option<i32>,
    statement: Option<&'a str>,
    sqlstate: Option<&'a str>,
    rows: Option<u64>,
    micros: Option<u64>,
    generation: Option<u64>,
}

impl Files {
    /// Lists what there is. A line that a crash has cut off is taken away.
    pub(super) fn open(dir: &Path, bounds: Bounds, now: Micros) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut written = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let Some((series, day, number)) = parsed(&path) else { continue };
            let bytes = whole_lines(&path)?;
            written.push(Written { path, bytes, series, day, number });
        }
        written.sort_by_key(|file| (file.day, file.number));
        let files =
            Self { dir: dir.to_owned(), bounds, open: [None, None], written: Arc::new(Mutex::new(written)) };
        files.tidy(day_of(now));
        Ok(files)
    }

    pub(super) fn written(&self) -> Arc<Mutex<Vec<Written>>> {
        Arc::clone(&self.written)
    }

    /// Takes records out as they are written; on the disk where they are to be kept. With an error the rest stays.
    pub(super) fn append(&mut self, records: &mut Vec<Record>) -> io::Result<()> {
        while let Some(first) = records.first() {
            let (weight, day) = (first.weight, day_of(first.at));
            let together = |record: &Record| record.weight == weight && day_of(record.at) == day;
            let (mut text, mut taken) = (Vec::new(), 0_usize);
            // The same statement comes again and again.
            let mut last: Option<(&Arc<str>, String)> = None;
            for record in records.iter().filter(|record| together(record)) {
                let statement = record.statement.as_ref();
                if !matches!((&last, statement), (Some((known, _)), Some(statement)) if Arc::ptr_eq(known, statement))
                {
                    last = statement.map(|statement| (statement, redacted(statement)));
                }
                serde_json::to_writer(&mut text, &line(record, last.as_ref().map(|(_, shown)| shown.as_str())))?;
                text.push(b'\n');
                taken += 1;
                if text.len() as u64 >= self.share() {
                    break;
                }
            }
            self.append_to(usize::from(weight == Weight::Kept), day, &text, weight)?;
            records.retain(|record| {
                let written = taken > 0 && together(record);
                taken -= usize::from(written);
                !written
            });
        }
        Ok(())
    }

    fn append_to(&mut self, series: usize, day: NaiveDate, text: &[u8], weight: Weight) -> io::Result<()> {
        let share = self.share();
        let newest = self.written.lock().iter().rfind(|file| file.series == series).cloned();
        let newest_fits = newest.as_ref().filter(|file| file.day >= day && file.bytes < share);
        let open = newest_fits.is_some() && self.slot(series).is_some();
        if let Some(reopened) = newest_fits.filter(|_| !open).map(reopened).transpose()?.flatten() {
            *self.slot(series) = Some(reopened);
        } else if !open {
            let number = newest.as_ref().map_or(0, |file| file.number + 1);
            let day = newest.map_or(day, |file| file.day.max(day));
            let path = self.dir.join(format!("{}-{day}-{number:06}.jsonl", SERIES.get(series).unwrap_or(&"")));
            *self.slot(series) = Some(OpenOptions::new().append(true).create_new(true).open(&path)?);
            self.written.lock().push(Written { path, bytes: 0, series, day, number });
            self.tidy(day);
        }
        let result = match self.slot(series) {
            Some(file) => file.write_all(text).and_then(|()| match weight {
                Weight::Kept => file.sync_data(),
                Weight::Passing => Ok(()),
            }),
            None => Err(io::Error::other("no file is open")),
        };
        match result {
            Ok(()) => {
                if let Some(file) = self.written.lock().iter_mut().rfind(|file| file.series == series) {
                    file.bytes += text.len() as u64;
                }
                Ok(())
            }
            Err(error) => {
                // What was written of it is behind the whole lines, where nobody reads, and is cut off before the next.
                *self.slot(series) = None;
                Err(error)
            }
        }
    }

    /// Bytes after which another file is begun.
    fn share(&self) -> u64 {
        self.bounds.bytes / 2 / FILES
    }

    fn slot(&mut self, series: usize) -> &mut Option<File> {
        let [reads, events] = &mut self.open;
        if series == 0 { reads } else { events }
    }

    /// Deletes what is too old or too much, but never the newest file of a series.
    fn tidy(&self, today: NaiveDate) {
        let oldest = today.checked_sub_days(Days::new(self.bounds.days.into())).unwrap_or(NaiveDate::MIN);
        let mut written = self.written.lock();
        for series in 0..SERIES.len() {
            loop {
                let mut own = written.iter().filter(|file| file.series == series);
                let Some(first) = own.clone().next().cloned() else { break };
                let bytes: u64 = own.clone().map(|file| file.bytes).sum();
                let too_much = bytes > self.bounds.bytes / 2 || first.day < oldest;
                if own.nth(1).is_none() || !too_much {
                    break;
                }
                if let Err(error) = std::fs::remove_file(&first.path) {
                    tracing::warn!(path = %first.path.display(), %error, "cannot delete an old file of the access log");
                }
                written.retain(|file| file.path != first.path);
            }
        }
    }
}

/// The file to be appended to again; None when somebody has taken it away.
fn reopened(file: &Written) -> io::Result<Option<File>> {
    let open = match OpenOptions::new().append(true).open(&file.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        open => open?,
    };
    open.set_len(file.bytes)?;
    Ok(Some(open))
}

/// Series, day and number of a file of the log.
fn parsed(path: &Path) -> Option<(usize, NaiveDate, u64)> {
    let name = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
    let (series, rest) = name.split_once('-')?;
    let (day, number) = rest.rsplit_once('-')?;
    let series = SERIES.iter().position(|known| *known == series)?;
    Some((series, day.parse().ok()?, number.parse().ok()?))
}

/// How far whole lines reach; what is behind them is cut off.
fn whole_lines(path: &Path) -> io::Result<u64> {
    const PIECE: u64 = 64 << 10;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut end = length;
    let mut piece = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(PIECE);
        file.seek(SeekFrom::Start(start))?;
        piece.clear();
        (&file).take(end - start).read_to_end(&mut piece)?;
        if let Some(last) = piece.iter().rposition(|byte| *byte == b'\n') {
            end = start + last as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

fn day_of(at: Micros) -> NaiveDate {
    DateTime::from_timestamp_micros(at).unwrap_or_default().date_naive()
}

fn line<'a>(record: &'a Record, statement: Option<&'a str>) -> Line<'a> {
    let at = DateTime::from_timestamp_micros(record.at).unwrap_or_default();
    let micros = |took: std::time::Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    Line {
        at: at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        event: record.event.name(),
        role: &record.role,
        address: record.origin.address.map(|address| address.to_string()),
        application: Some(record.application.as_str()).filter(|name| !name.is_empty()),
        protocol: record.origin.protocol.name(),
        tls: record.origin.tls,
        session: record.session,
        statement,
        sqlstate: record.state.map(|state| state.0),
        rows: record.rows,
        micros: record.took.map(micros),
        generation: record.generation,
    }
}
