//! What one partition knows of its producers: sequence numbers, so that a retry is stored once, and
//! transactions, so that a reader of committed data sees neither open nor aborted records.
//!
//! All of it is rebuilt from batch headers when the log is opened.

use std::collections::{BTreeSet, HashMap, VecDeque};

use kafka_protocol::ResponseError;

use super::batch::BatchHeader;

/// Batches remembered per producer; clients keep at most five requests in flight.
const REMEMBERED_BATCHES: usize = 5;
/// Producers remembered per partition; the one idle for longest is forgotten first.
const PRODUCERS_MAX: usize = 10_000;

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Commit,
    Abort,
}

/// A transaction of this partition whose records must not be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Aborted {
    pub(super) producer_id: i64,
    pub(super) first_offset: i64,
    /// Offset of the abort marker.
    pub(super) last_offset: i64,
}

/// What to do with a batch that a producer sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Append,
    /// The batch is stored already, at this base offset.
    Duplicate(i64),
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    base_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
}

#[derive(Debug, Default)]
struct Producer {
    epoch: i16,
    recent: VecDeque<Remembered>,
    last_offset: i64,
    open_since: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct Producers {
    known: HashMap<i64, Producer>,
    /// First offsets of open transactions.
    open: BTreeSet<i64>,
    /// In the order of their markers.
    aborted: Vec<Aborted>,
}

impl Producers {
    /// Judges a batch before it is appended. Batches without a producer id are always appended.
    pub(super) fn judge(&self, batch: &BatchHeader) -> Result<Verdict, ResponseError> {
        if batch.producer_id < 0 {
            return Ok(Verdict::Append);
        }
        let Some(producer) = self.known.get(&batch.producer_id) else {
            return Ok(Verdict::Append);
        };
        if batch.producer_epoch < producer.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if batch.producer_epoch > producer.epoch {
            return match batch.base_sequence {
                0 => Ok(Verdict::Append),
                _ => Err(ResponseError::OutOfOrderSequenceNumber),
            };
        }
        let last_sequence = batch.last_sequence();
        let stored = producer
            .recent
            .iter()
            .find(|seen| seen.base_sequence == batch.base_sequence && seen.last_sequence == last_sequence);
        if let Some(stored) = stored {
            return Ok(Verdict::Duplicate(stored.base_offset));
        }
        match producer.recent.back() {
            Some(last) if batch.base_sequence != following(last.last_sequence) => {
                Err(ResponseError::OutOfOrderSequenceNumber)
            }
            _ => Ok(Verdict::Append),
        }
    }

    /// Notes a data batch that is now in the log.
    pub(super) fn appended(&mut self, batch: &BatchHeader) {
        if batch.producer_id < 0 {
            return;
        }
        if self.known.len() >= PRODUCERS_MAX && !self.known.contains_key(&batch.producer_id) {
            self.forget_idlest();
        }
        let producer = self.known.entry(batch.producer_id).or_default();
        producer.advance_epoch(batch.producer_epoch);
        if producer.recent.len() == REMEMBERED_BATCHES {
            producer.recent.pop_front();
        }
        producer.recent.push_back(Remembered {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base_offset: batch.base_offset,
        });
        producer.last_offset = batch.base_offset;
        if batch.is_transactional() && producer.open_since.is_none() {
            producer.open_since = Some(batch.base_offset);
            self.open.insert(batch.base_offset);
        }
    }

    /// Notes a marker that is now in the log at `offset`.
    pub(super) fn ended(&mut self, batch: &BatchHeader, outcome: Outcome, offset: i64) {
        let producer = self.known.entry(batch.producer_id).or_default();
        producer.advance_epoch(batch.producer_epoch);
        producer.last_offset = offset;
        let Some(first_offset) = producer.open_since.take() else {
            return;
        };
        self.open.remove(&first_offset);
        if outcome == Outcome::Abort {
            self.aborted.push(Aborted { producer_id: batch.producer_id, first_offset, last_offset: offset });
        }
    }

    pub(super) fn has_open_transaction(&self, producer_id: i64) -> bool {
        self.known.get(&producer_id).is_some_and(|producer| producer.open_since.is_some())
    }

    /// First offset of the oldest open transaction: readers of committed data stop before it.
    pub(super) fn first_open(&self) -> Option<i64> {
        self.open.first().copied()
    }

    /// Aborted transactions with records in `[from, to)`.
    pub(super) fn aborted_between(&self, from: i64, to: i64) -> Vec<Aborted> {
        let first = self.aborted.partition_point(|aborted| aborted.last_offset < from);
        self.aborted.iter().skip(first).filter(|aborted| aborted.first_offset < to).copied().collect()
    }

    fn forget_idlest(&mut self) {
        let idlest = self
            .known
            .iter()
            .filter(|(_, producer)| producer.open_since.is_none())
            .min_by_key(|(_, producer)| producer.last_offset)
            .map(|(id, _)| *id);
        if let Some(idlest) = idlest {
            self.known.remove(&idlest);
        }
    }
}

impl Producer {
    fn advance_epoch(&mut self, epoch: i16) {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.recent.clear();
        }
    }
}

fn following(sequence: i32) -> i32 {
    sequence.checked_add(1).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::batch::Marker;
    use super::*;

    fn batch(epoch: i16, sequence: i32, offset: i64) -> BatchHeader {
        let marker = Marker { producer_id: 9, producer_epoch: epoch, outcome: Outcome::Commit, timestamp: 0 };
        let header = BatchHeader::parse(&marker.encode().unwrap()).unwrap();
        BatchHeader { base_sequence: sequence, base_offset: offset, last_offset_delta: 9, records: 10, ..header }
    }

    #[test]
    fn a_retry_is_recognised_and_a_hole_refused() {
        let mut producers = Producers::default();
        for n in 0..7 {
            let next = batch(0, n * 10, i64::from(n) * 10);
            assert_eq!(producers.judge(&next), Ok(Verdict::Append));
            producers.appended(&next);
        }
        assert_eq!(producers.judge(&batch(0, 40, 70)), Ok(Verdict::Duplicate(40)));
        assert_eq!(producers.judge(&batch(0, 80, 70)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(
            producers.judge(&batch(0, 0, 70)),
            Err(ResponseError::OutOfOrderSequenceNumber),
            "older than what is remembered"
        );
    }

    #[test]
    fn an_older_epoch_is_fenced_and_a_newer_starts_at_zero() {
        let mut producers = Producers::default();
        producers.appended(&batch(3, 0, 0));
        assert_eq!(producers.judge(&batch(2, 10, 10)), Err(ResponseError::InvalidProducerEpoch));
        assert_eq!(producers.judge(&batch(4, 10, 10)), Err(ResponseError::OutOfOrderSequenceNumber));
        assert_eq!(producers.judge(&batch(4, 0, 10)), Ok(Verdict::Append));
    }

    #[test]
    fn an_open_transaction_holds_back_and_an_aborted_one_is_listed() {
        let mut producers = Producers::default();
        producers.appended(&batch(0, 0, 100));
        assert_eq!(producers.first_open(), Some(100));
        producers.ended(&batch(0, -1, 110), Outcome::Abort, 110);
        assert_eq!(producers.first_open(), None);
        let aborted = Aborted { producer_id: 9, first_offset: 100, last_offset: 110 };
        assert_eq!(producers.aborted_between(0, 101), vec![aborted]);
        assert_eq!(producers.aborted_between(110, 200), vec![aborted]);
        assert_eq!(producers.aborted_between(111, 200), vec![]);
        assert_eq!(producers.aborted_between(0, 100), vec![]);
    }
}
