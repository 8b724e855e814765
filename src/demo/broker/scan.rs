//! Walks the batch headers of a log file from its start, reading as little of the records as it can.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::batch::{BatchHeader, HEADER_BYTES};

/// Small batches are found many to a read; large ones cost one read each.
const WINDOW_BYTES: usize = 64 * 1024;

/// Stops at the first batch that is not wholly in the file.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    file: &'a File,
    length: u64,
    next: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl<'a> Scan<'a> {
    pub(super) fn new(file: &'a File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { file, length, next: 0, window: Vec::new(), window_start: 0 })
    }

    /// The next batch with its position.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, BatchHeader)>> {
        let position = self.next;
        if position.saturating_add(HEADER_BYTES as u64) > self.length {
            return Ok(None);
        }
        let Some(header) = self.header_at(position)? else {
            return Ok(None);
        };
        let end = position.saturating_add(header.bytes as u64);
        if end > self.length {
            return Ok(None);
        }
        self.next = end;
        Ok(Some((position, header)))
    }

    fn header_at(&mut self, position: u64) -> io::Result<Option<BatchHeader>> {
        let in_window = |scan: &Self| {
            let from = usize::try_from(position.checked_sub(scan.window_start)?).ok()?;
            scan.window.get(from..from + HEADER_BYTES).map(BatchHeader::parse)
        };
        if let Some(parsed) = in_window(self) {
            return Ok(parsed);
        }
        let wanted = (self.length - position).min(WINDOW_BYTES as u64);
        self.window.resize(usize::try_from(wanted).unwrap_or(WINDOW_BYTES), 0);
        self.file.read_exact_at(&mut self.window, position)?;
        self.window_start = position;
        Ok(in_window(self).flatten())
    }
}
