//! The pinned snapshot: a generation, and for every stream the archive and the delta that continue it.
//!
//! There is one current [`Snapshot`]; whoever changes a part of it goes through [`SnapshotCell::update`], which
//! asserts the cut before the new one is seen. Readers take the pointer and keep it for the whole query.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uuid::Uuid;

use super::catalog::Names;
use crate::archive::ArchiveSnapshot;
use crate::archive::ledger::Ledger;
use crate::batch::Generation;
use crate::delta::Delta;
use crate::position::StreamFrontier;
use crate::runtime::{Clock, Micros};
use crate::tables::Tables;

/// What one query sees.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub generation: Arc<Generation>,
    /// What there is to read: it changes with the generation, in one step.
    pub names: Arc<Names>,
    /// The reference tables, each at one version.
    pub tables: Arc<Tables>,
    /// By stream name.
    pub streams: BTreeMap<String, StreamSnapshot>,
    /// Which of all snapshots it is: the cell sees to it.
    pub moment: Moment,
}

/// Tells a snapshot from every other one, of other processes too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    cell: Uuid,
    number: u64,
    /// When it became the current one.
    pub at: Micros,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.cell.simple(), self.number)
    }
}

#[derive(Debug, Clone)]
pub struct StreamSnapshot {
    pub archive: Arc<ArchiveSnapshot>,
    pub delta: Arc<Delta>,
    /// False while a start computes the delta: then only batch views can be read.
    pub whole: bool,
    /// Where the delta ends: everything below is counted.
    pub end: Arc<StreamFrontier>,
    /// What was passed up to `end`, and where it went.
    pub ledger: Arc<Ledger>,
}

impl Snapshot {
    /// The cut: batch views hold exactly what is below the generation's frontier, the delta begins exactly
    /// there, and the archive continues to where its tail begins. None when it holds.
    pub fn violation(&self) -> Option<String> {
        let lacking = self.names.views.iter().find(|(instance, input)| {
            self.generation.epoch(&input.stream.name).0 > 0 && !self.generation.views.contains_key(*instance)
        });
        if let Some((instance, _)) = lacking {
            return Some(format!("view {instance}: generation {} does not hold it", self.generation.id));
        }
        self.streams.iter().find_map(|(name, stream)| {
            let (base, generation) = (stream.delta.base(), self.generation.epoch(name));
            if base != generation {
                return Some(format!(
                    "stream {name}: the delta begins after epoch {base}, the generation ends at {generation}"
                ));
            }
            if stream.archive.epoch < generation {
                return Some(format!(
                    "stream {name}: the archive ends at epoch {}, before the generation's {generation}",
                    stream.archive.epoch
                ));
            }
            if stream.delta.open() <= stream.archive.epoch {
                return Some(format!("stream {name}: epoch {} is open and archived at once", stream.delta.open()));
            }
            if !stream.end.covers(&stream.archive.frontier) {
                return Some(format!("stream {name}: the archive is ahead of the delta's end"));
            }
            stream.ledger.iter().find(|(_, row)| !row.balances()).map(|(partition, row)| {
                format!("stream {name} partition {partition}: passed offsets are not conserved: {row:?}")
            })
        })
    }
}

/// The one place where the current snapshot stands.
#[derive(Debug)]
pub struct SnapshotCell {
    current: ArcSwap<Snapshot>,
    writer: Mutex<()>,
    clock: Arc<dyn Clock>,
}

impl SnapshotCell {
    /// # Panics
    /// When `first` violates the cut.
    pub fn new(first: Snapshot, clock: Arc<dyn Clock>) -> Self {
        assert_eq!(first.violation(), None, "the cut is violated");
        let moment = Moment { cell: Uuid::new_v4(), number: 0, at: clock.now() };
        let first = Snapshot { moment, ..first };
        Self { current: ArcSwap::from_pointee(first), writer: Mutex::new(()), clock }
    }

    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the current snapshot by what `change` makes of it, as one step for readers.
    ///
    /// # Panics
    /// When the new snapshot violates the cut: an error here would be a wrong bill later.
    pub fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let _writer = self.writer.lock();
        let mut next = Snapshot::clone(&self.current.load());
        let before = next.moment;
        change(&mut next);
        next.moment = Moment { number: before.number + 1, at: self.clock.now(), ..before };
        assert_eq!(next.violation(), None, "the cut is violated");
        self.current.store(Arc::new(next));
    }

    /// Changes one stream.
    ///
    /// # Panics
    /// As [`SnapshotCell::update`].
    pub fn update_stream(&self, stream: &str, change: impl FnOnce(&mut StreamSnapshot)) {
        self.update(|snapshot| {
            if let Some(stream) = snapshot.streams.get_mut(stream) {
                change(stream);
            }
        });
    }
}
