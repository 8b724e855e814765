//! What metrics tell of the present: looked at now and then, not counted as it happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::sealer::Seals;
use crate::kafka::status::{IntakeStatus, PartitionStatus};
use crate::merge::census::Census;
use crate::merge::snapshot::{Snapshot, StreamSnapshot};
use crate::metrics::{Metrics, StreamLabel};
use crate::position::PartitionId;
use crate::runtime::{Health, Micros, machine};

use super::Core;

const INTERVAL: Duration = Duration::from_secs(1);

/// Brings gauges up to date until shutdown.
pub(super) fn keep(core: &Core) -> impl Future<Output = ()> + Send + 'static {
    let metrics = &core.metrics;
    metrics.delta_bytes_max.set(whole(core.config.delta.bytes_max));
    metrics.pg_connections_max.set(whole(core.config.server.connections_max));
    let gauges = Gauges {
        metrics: Arc::clone(metrics),
        status: core.status.clone(),
        health: core.health.clone(),
        census: Arc::clone(&core.census),
        seals: Arc::clone(&core.seals),
    };
    let (cell, shutdown) = (Arc::clone(&core.cell), core.shutdown.clone());
    let data_dir = core.config.storage.data_dir.clone();
    async move {
        loop {
            gauges.tell(&cell.load());
            gauges.tell_machine(&data_dir);
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = shutdown.wait() => return,
            }
        }
    }
}

struct Gauges {
    metrics: Arc<Metrics>,
    status: IntakeStatus,
    health: Health,
    census: Arc<Census>,
    seals: Arc<Seals>,
}

impl Gauges {
    fn tell(&self, snapshot: &Snapshot) {
        let metrics = &self.metrics;
        metrics.delta_bytes.set(whole(snapshot.streams.values().map(|stream| stream.delta.bytes()).sum::<usize>()));
        metrics.generation.set(whole(snapshot.generation.id.0));
        metrics.generation_created_at.set(seconds(snapshot.generation.created_at));
        metrics.intake_faults.set(whole(self.status.complaints().len()));
        metrics.part_failures.set(whole(self.health.failures().len()));
        metrics.sealed_at.set(seconds(self.seals.newest().map_or(0, |seal| seal.statement.sealed_at)));
        let known = self.status.partitions();
        for (name, stream) in &snapshot.streams {
            self.tell_stream(name, stream, known.get(name));
        }
    }

    fn tell_stream(
        &self,
        name: &str,
        stream: &StreamSnapshot,
        known: Option<&BTreeMap<PartitionId, PartitionStatus>>,
    ) {
        let metrics = &self.metrics;
        let label = StreamLabel { stream: name.to_owned() };
        let unbalanced = stream.ledger.values().filter(|row| !row.balances()).count();
        metrics.unbalanced_partitions.get_or_create(&label).set(whole(unbalanced));
        metrics.archive_files.get_or_create(&label).set(whole(stream.archive.files.len()));
        metrics.archive_damaged_files.get_or_create(&label).set(whole(self.census.damaged(name).len()));
        let partitions = known.into_iter().flatten();
        let halted = partitions.clone().filter(|(_, partition)| partition.halted.is_some()).count();
        metrics.partitions_halted.get_or_create(&label).set(whole(halted));
        for (id, partition) in partitions {
            if let Some(end) = partition.end {
                metrics.set_consumer_lag(name, id.0, (end.0 - stream.end.position(*id).0).max(0));
            }
        }
    }

    fn tell_machine(&self, data_dir: &std::path::Path) {
        let metrics = &self.metrics;
        if let Some(disk) = machine::disk(data_dir) {
            metrics.data_dir_free.set(whole(disk.free_bytes));
            metrics.data_dir_size.set(whole(disk.size_bytes));
        }
        if let Some(process) = machine::process() {
            let told = &metrics.process;
            told.resident_memory.set(whole(process.resident_bytes));
            told.cpu.inc_by((process.cpu_seconds - told.cpu.get()).max(0.0));
            told.open_fds.set(whole(process.open_files));
            told.started_at.set(process.started_at);
        }
        if let Some(files) = machine::files_max() {
            metrics.process.max_fds.set(whole(files));
        }
    }
}

fn whole(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of this age are exact in 53 bits")]
fn seconds(at: Micros) -> f64 {
    at as f64 / 1e6
}
