//! From decoded micro-batches to what readers see: decides what is a duplicate, keeps the ledger, feeds archive
//! and delta, and shows the result as one step.
//!
//! A record is decided about once, here, and the decision is archived with it: so batch and speed can not
//! disagree about what counts. The order of steps for a micro-batch:
//!
//! 1. duplicates are split off against the key index;
//! 2. partial states are computed for every view; a record with which that fails goes to quarantine, and frees its key;
//! 3. the ledger takes the passed offsets and where they went;
//! 4. the committer gets the records for the open epoch;
//! 5. the snapshot moves: states, records, position and ledger at once.
//!
//! An epoch is sealed every `archive.commit_interval` or `archive.commit_bytes_max`, and when nothing more comes after
//! much has: what was caught up with is durable without waiting. Sealing does not stop intake: the next epoch fills
//! while the committer writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::kernels::boolean::and_not;
use datafusion::arrow::compute::{filter_record_batch, not};
use datafusion::arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;

use crate::archive::Kind;
use crate::archive::dedup::KeyIndex;
use crate::archive::ledger::{Ledger, LedgerRow};
use crate::catalog::stream::{PARTITION, PRODUCED_AT, Stream};
use crate::delta::fold;
use crate::engine::Engine;
use crate::kafka::{Decoded, Sink, SinkError};
use crate::merge::snapshot::SnapshotCell;
use crate::metrics::{EventLabels, EventOutcome, Metrics, StreamLabel};
use crate::position::{Epoch, Offset, PartitionId, StreamFrontier, TopicIdentity};
use crate::runtime::{Clock, Shutdown};

pub mod committer;
pub mod roster;
mod settle;

use committer::Work;
use roster::{Entry, Roster};
use settle::{Settled, add_rejects, settle};

/// An epoch with this share of `archive.commit_bytes_max` is sealed ...
const MUCH: usize = 64;
/// ... once nothing has come for this long.
const QUIET: Duration = Duration::from_millis(100);

/// One stream on its way in.
#[derive(Debug)]
pub struct StreamIntake {
    pub stream: Arc<Stream>,
    pub keys: KeyIndex,
    pub frontier: StreamFrontier,
    pub ledger: Ledger,
    pub committer: SyncSender<Work>,
}

/// When epochs are sealed and intake waits.
#[derive(Debug, Clone)]
pub struct Limits {
    pub commit_interval: Duration,
    pub commit_bytes_max: usize,
    pub delta_bytes_max: usize,
}

/// What the sink shares with the rest of the process.
#[derive(Debug, Clone)]
pub struct Shared {
    pub engine: Arc<Engine>,
    pub cell: Arc<SnapshotCell>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    pub shutdown: Shutdown,
    pub roster: Arc<Roster>,
    /// Asks for a refresh, because the delta has outgrown its budget.
    pub refresh_wanted: Arc<tokio::sync::Notify>,
}

/// A guard that a test may switch off, to see the suite go red without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dedup {
    On,
    OffForTest,
}

/// The sink at the end of the intake pipeline.
#[derive(Debug)]
pub struct Ingest {
    streams: Vec<OpenStream>,
    limits: Limits,
    dedup: Dedup,
    /// For a test: the delta loses a group of every micro-batch.
    skewed: bool,
    shared: Shared,
    runtime: tokio::runtime::Runtime,
    /// When the last batch came.
    taken: Instant,
    /// The change of the roster that was followed last.
    serial: u64,
}

#[derive(Debug)]
struct OpenStream {
    intake: StreamIntake,
    views: Vec<Entry>,
    key: Option<usize>,
    /// Bytes of raw records in the open epoch, and when its first batch came.
    bytes: usize,
    since: Option<Instant>,
}

impl Ingest {
    /// `streams` stand in the order of the sources that intake reads.
    pub fn new(streams: Vec<StreamIntake>, limits: Limits, dedup: Dedup, shared: Shared) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let streams = streams
            .into_iter()
            .map(|intake| OpenStream { key: intake.stream.key, intake, views: Vec::new(), bytes: 0, since: None })
            .collect();
        let taken = shared.clock.instant();
        let mut ingest = Self { streams, limits, dedup, skewed: false, shared, runtime, taken, serial: 0 };
        ingest.follow_roster().map_err(std::io::Error::other)?;
        Ok(ingest)
    }

    /// From now on the delta is wrong: it lacks a group of every micro-batch. Shows that reconciliation sees it.
    #[must_use]
    pub fn skewed_for_test(self) -> Self {
        Self { skewed: true, ..self }
    }

    fn take(&mut self, batch: Decoded) -> Result<(), SinkError> {
        let Some(stream) = self.streams.get_mut(batch.source) else { return Ok(()) };
        let name = stream.intake.stream.name.clone();
        let failed =
            |what: &str, error: &dyn std::fmt::Display| SinkError(format!("stream {name}: {what}: {error}"));

        let (events, duplicates) = match (stream.key, self.dedup) {
            (Some(key), Dedup::On) => {
                let keys = batch.records.column(key);
                let new = stream.intake.keys.insert(keys, batch.sound.as_ref()).map_err(|e| failed("dedup", &e))?;
                split(&batch, &new).map_err(|e| failed("dedup", &e))?
            }
            _ => (batch.sound_records(), batch.records.slice(0, 0)),
        };
        let keys = stream.key.map(|key| (key, &mut stream.intake.keys));
        let settled = settle(&self.shared.engine, &stream.views, keys, events, duplicates);
        let (settled, duplicates) = self.runtime.block_on(settled).map_err(|e| failed("delta", &e))?;
        let Settled { events, mut states, failed: unfit, given_up } = settled;
        for (instance, reason) in &given_up {
            tracing::error!(view = instance, reason, "a version on standby cannot take a record: it is given up");
            self.shared.roster.give_up(instance, reason);
        }
        stream.views.retain(|entry| !given_up.contains_key(entry.input.view.name()));
        if self.skewed {
            states.iter_mut().for_each(|(_, rows)| *rows = rows.slice(0, rows.num_rows().saturating_sub(1)));
        }
        let rejects = match &unfit {
            None => batch.rejects.clone(),
            Some(unfit) => add_rejects(&batch.rejects, unfit).map_err(|e| failed("quarantine", &e))?,
        };
        let decided = [(Kind::Event, &events), (Kind::Duplicate, &duplicates), (Kind::Quarantined, &rejects)];
        stream.count(&batch.positions, batch.topic.as_ref(), decided).map_err(|e| failed("conservation", &e))?;
        // What a view can not take is archived with all its columns: there are no raw bytes of it any more.
        let mut archived =
            vec![(Kind::Event, &events), (Kind::Duplicate, &duplicates), (Kind::Quarantined, &batch.rejects)];
        archived.extend(unfit.iter().map(|unfit| (Kind::Quarantined, unfit)));
        for (kind, rows) in archived.into_iter().filter(|(_, rows)| rows.num_rows() > 0) {
            stream.send(Work::Append(kind, rows.clone()))?;
        }
        let outcome = [
            (EventOutcome::Counted, events.num_rows()),
            (EventOutcome::Duplicate, duplicates.num_rows()),
            (EventOutcome::Quarantined, rejects.num_rows()),
        ];
        let produced = produced_at(&events);
        let (frontier, ledger) = (Arc::new(stream.intake.frontier.clone()), Arc::new(stream.intake.ledger.clone()));
        self.shared.cell.update(|snapshot| {
            for instance in given_up.keys() {
                snapshot.names = Arc::new(snapshot.names.without(instance));
            }
            if let Some(snapshot) = snapshot.streams.get_mut(&name) {
                snapshot.delta = Arc::new(snapshot.delta.fold(events, duplicates, rejects, states));
                snapshot.end = frontier;
                snapshot.ledger = ledger;
            }
        });
        self.measure(&name, outcome, &produced);

        let Some(stream) = self.streams.get_mut(batch.source) else { return Ok(()) };
        stream.bytes += batch.payload_bytes;
        stream.since.get_or_insert_with(|| self.shared.clock.instant());
        if stream.bytes >= self.limits.commit_bytes_max {
            stream.seal(&self.shared.cell)?;
        }
        self.combine(batch.source)
    }

    fn measure(&self, stream: &str, outcome: [(EventOutcome, usize); 3], produced: &[i64]) {
        for (outcome, rows) in outcome {
            let labels = EventLabels { stream: stream.to_owned(), outcome };
            self.shared.metrics.events.get_or_create(&labels).inc_by(rows as u64);
        }
        let latency =
            self.shared.metrics.processing_latency.get_or_create(&StreamLabel { stream: stream.to_owned() });
        let now = self.shared.clock.now();
        for at in produced {
            #[expect(clippy::cast_precision_loss, reason = "microseconds of an age")]
            latency.observe((now - at).max(0) as f64 / 1e6);
        }
    }

    /// Computes the views that are wanted now. Where one is new, the open epoch ends before it.
    fn follow_roster(&mut self) -> Result<(), SinkError> {
        let Some((serial, wanted)) = self.shared.roster.newer(self.serial) else { return Ok(()) };
        for stream in &mut self.streams {
            let name = &stream.intake.stream.name;
            let views: Vec<Entry> =
                wanted.iter().filter(|entry| entry.input.stream.name == *name).cloned().collect();
            let known =
                |new: &Entry| stream.views.iter().any(|entry| entry.input.view.name() == new.input.view.name());
            if !views.iter().all(known) {
                stream.seal(&self.shared.cell)?;
            }
            let open = self.shared.cell.load().streams.get(&stream.intake.stream.name).map(|s| s.delta.open());
            self.shared.roster.take(&stream.intake.stream.name, serial, open.unwrap_or_default());
            stream.views = views;
        }
        self.serial = serial;
        Ok(())
    }

    /// Seals what is due, and waits while the delta is over its budget.
    fn tend(&mut self) -> Result<(), SinkError> {
        self.follow_roster()?;
        let now = self.shared.clock.instant();
        let quiet = now.duration_since(self.taken) >= QUIET;
        for stream in &mut self.streams {
            let caught_up = quiet && stream.bytes >= self.limits.commit_bytes_max / MUCH;
            let late = |since| now.duration_since(since) >= self.limits.commit_interval;
            if caught_up || stream.since.is_some_and(late) {
                stream.seal(&self.shared.cell)?;
            }
        }
        self.tend_keys()?;
        let cell = Arc::clone(&self.shared.cell);
        let bytes = || cell.load().streams.values().map(|s| s.delta.bytes()).sum::<usize>();
        let mut warned = false;
        while bytes() > self.limits.delta_bytes_max && !self.shared.shutdown.is_triggered() {
            if !warned {
                tracing::warn!(
                    max = self.limits.delta_bytes_max,
                    "delta over its budget: intake waits for a refresh"
                );
                warned = true;
                // What is not committed can not leave the delta.
                for stream in &mut self.streams {
                    stream.seal(&self.shared.cell)?;
                }
            }
            // A refresh may wait for it.
            self.follow_roster()?;
            self.shared.refresh_wanted.notify_one();
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Lets keys of committed epochs leave memory.
    fn tend_keys(&mut self) -> Result<(), SinkError> {
        let snapshot = self.shared.cell.load();
        for stream in &mut self.streams {
            let name = &stream.intake.stream.name;
            let committed = snapshot.streams.get(name).map_or(Epoch::default(), |s| s.archive.epoch);
            let tended = stream.intake.keys.tend(committed);
            tended.map_err(|error| SinkError(format!("stream {name}: dedup: {error}")))?;
        }
        Ok(())
    }

    /// Combines runs of the delta where there are too many.
    fn combine(&self, source: usize) -> Result<(), SinkError> {
        let Some(stream) = self.streams.get(source) else { return Ok(()) };
        let name = &stream.intake.stream.name;
        let Some(delta) = self.shared.cell.load().streams.get(name).map(|s| Arc::clone(&s.delta)) else {
            return Ok(());
        };
        for due in delta.due() {
            let Some(Entry { input, .. }) = stream.views.iter().find(|entry| entry.input.view.name() == due.view)
            else {
                continue;
            };
            let states = self
                .runtime
                .block_on(fold::combined(&self.shared.engine, &input.view, &due))
                .map_err(|error| SinkError(format!("stream {name}: delta: {error}")))?;
            self.shared.cell.update_stream(name, |snapshot| {
                snapshot.delta = Arc::new(snapshot.delta.replaced(&due, states));
            });
        }
        Ok(())
    }
}

impl Sink for Ingest {
    fn accept(&mut self, batch: Decoded) -> Result<(), SinkError> {
        self.take(batch)?;
        self.taken = self.shared.clock.instant();
        self.tend()
    }

    fn idle(&mut self) -> Result<(), SinkError> {
        self.tend()
    }

    /// Has the open epochs committed, so that whoever goes on begins where this ends.
    fn end(&mut self) -> Result<(), SinkError> {
        self.streams.iter_mut().try_for_each(|stream| stream.seal(&self.shared.cell))
    }
}

impl OpenStream {
    /// Moves frontier and ledger past the batch.
    fn count(
        &mut self,
        positions: &BTreeMap<PartitionId, Offset>,
        topic: Option<&TopicIdentity>,
        decided: [(Kind, &RecordBatch); 3],
    ) -> Result<(), String> {
        let mut seen: BTreeMap<PartitionId, LedgerRow> = BTreeMap::new();
        for (kind, rows) in decided {
            // Records of one partition come one after the other.
            for run in partitions(rows).chunk_by(|a, b| a == b) {
                let Some(partition) = run.first() else { continue };
                let (row, records) = (seen.entry(PartitionId(*partition)).or_default(), run.len() as u64);
                match kind {
                    Kind::Event => row.events += records,
                    Kind::Duplicate => row.duplicates += records,
                    Kind::Quarantined => row.quarantined += records,
                }
            }
        }
        if self.intake.frontier.topic.is_none() {
            self.intake.frontier.topic = topic.cloned();
        }
        for (partition, to) in positions {
            let from = self.intake.frontier.position(*partition);
            let passed = u64::try_from(to.0 - from.0)
                .map_err(|_| format!("partition {partition} would go back from offset {from} to {to}"))?;
            let new = seen.remove(partition).unwrap_or_default();
            let records = new.events + new.duplicates + new.quarantined;
            let gaps = passed.checked_sub(records).ok_or_else(|| {
                format!("partition {partition}: {records} records between offsets {from} and {to}")
            })?;
            self.intake.frontier.advance(*partition, *to);
            let row = self.intake.ledger.entry(*partition).or_default();
            row.passed += passed;
            row.events += new.events;
            row.duplicates += new.duplicates;
            row.quarantined += new.quarantined;
            row.gaps += gaps;
        }
        match seen.keys().next() {
            None => Ok(()),
            Some(partition) => Err(format!("partition {partition} has records but no new position")),
        }
    }

    /// Ends the open epoch and hands it to the committer.
    fn seal(&mut self, cell: &SnapshotCell) -> Result<(), SinkError> {
        if self.since.take().is_none() {
            return Ok(());
        }
        self.bytes = 0;
        // Readers first: what comes next belongs to the next epoch before the commit can be seen.
        let keys = &mut self.intake.keys;
        cell.update_stream(&self.intake.stream.name, |snapshot| {
            keys.sealed(snapshot.delta.open());
            snapshot.delta = Arc::new(snapshot.delta.sealed());
        });
        self.send(Work::Seal(self.intake.frontier.clone(), self.intake.ledger.clone()))
    }

    fn send(&self, work: Work) -> Result<(), SinkError> {
        self.intake
            .committer
            .send(work)
            .map_err(|_| SinkError(format!("stream {}: the committer has stopped", self.intake.stream.name)))
    }
}

/// The records that are new, and the sound ones that are not.
fn split(batch: &Decoded, new: &BooleanArray) -> Result<(RecordBatch, RecordBatch), ArrowError> {
    let records = &batch.records;
    if new.true_count() == new.len() {
        return Ok((records.clone(), records.slice(0, 0)));
    }
    let seen = match &batch.sound {
        None => not(new)?,
        Some(sound) => and_not(sound, new)?,
    };
    Ok((filter_record_batch(records, new)?, filter_record_batch(records, &seen)?))
}

fn partitions(batch: &RecordBatch) -> &[i32] {
    batch
        .column_by_name(PARTITION)
        .and_then(|column| column.as_primitive_opt::<Int32Type>())
        .map(|column| column.values().as_ref())
        .unwrap_or_default()
}

/// Of one record in a hundred, which tells the distribution and costs nothing.
fn produced_at(batch: &RecordBatch) -> Vec<i64> {
    batch
        .column_by_name(PRODUCED_AT)
        .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
        .map(|column| column.iter().step_by(100).flatten().collect())
        .unwrap_or_default()
}
