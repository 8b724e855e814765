//! What the process counts about itself, in one registry that `/metrics` prints.
//!
//! Created once in the composition root and passed to every room; never global. The handles are cheap to
//! clone and safe to bump from any thread. A hot loop asks once for its labelled handle and keeps it.

use std::fmt::{self, Write};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventOutcome {
    Counted,
    Duplicate,
    Quarantined,
}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkOutcome {
    Done,
    Failed,
    /// A person, a timeout or a vanished client stopped it.
    Cancelled,
}

/// What a comparison of batch and speed found for a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reconciled {
    Equal,
    Differing,
}

impl EncodeLabelValue for Reconciled {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Equal => "equal",
            Self::Differing => "differing",
        })
    }
}

impl EncodeLabelValue for EventOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Counted => "counted",
            Self::Duplicate => "duplicate",
            Self::Quarantined => "quarantined",
        })
    }
}

impl EncodeLabelValue for WorkOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    pub stream: String,
    pub outcome: EventOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamLabel {
    pub stream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PartitionLabels {
    pub stream: String,
    pub partition: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StreamOutcomeLabels {
    pub stream: String,
    pub outcome: WorkOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    pub outcome: WorkOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconciledLabels {
    pub view: String,
    pub outcome: Reconciled,
}

/// A number that need not be whole, such as an instant in seconds since 1970.
pub type FloatGauge = Gauge<f64, AtomicU64>;

/// A histogram per stream; all of one kind share their buckets.
pub type StreamHistogram = Family<StreamLabel, Histogram, fn() -> Histogram>;

/// Every named metric of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// `view_events_total`: records by what became of them.
    pub events: Family<EventLabels, Counter>,
    /// `processing_latency_seconds`: from the record's time in Kafka until a query can see it.
    pub processing_latency: StreamHistogram,
    /// `consumer_lag_records`: records in Kafka that this process has not read yet.
    pub consumer_lag: Family<PartitionLabels, Gauge>,
    /// `archive_commits_total`
    pub archive_commits: Family<StreamOutcomeLabels, Counter>,
    /// `archive_commit_duration_seconds`: from sealing an epoch until its commit is durable.
    pub archive_commit_duration: StreamHistogram,
    /// `archive_bytes_total`: bytes of data files committed.
    pub archive_bytes: Family<StreamLabel, Counter>,
    /// `partitions_halted`: partitions that are not read; `system.partitions` says why.
    pub partitions_halted: Family<StreamLabel, Gauge>,
    /// `intake_faults`: everything for which something is not read; `/readyz` names it.
    pub intake_faults: Gauge,
    /// `part_failures`: parts of the process that failed for good; `/healthz` names them.
    pub part_failures: Gauge,
    /// `conservation_unbalanced_partitions`: partitions in which offsets passed are not what became of them.
    pub unbalanced_partitions: Family<StreamLabel, Gauge>,
    /// `archive_files`: data files that the newest commit names.
    pub archive_files: Family<StreamLabel, Gauge>,
    /// `archive_damaged_files`: those among them that upkeep could not read.
    pub archive_damaged_files: Family<StreamLabel, Gauge>,
    /// `seal_timestamp_seconds`: when the newest seal was made; 0 before the first.
    pub sealed_at: FloatGauge,
    /// `refreshes_total`
    pub refreshes: Family<OutcomeLabel, Counter>,
    /// `refresh_duration_seconds`
    pub refresh_duration: Histogram,
    /// `reconciled_groups_total`: groups of which the batch path and the speed path were compared.
    pub reconciled_groups: Family<ReconciledLabels, Counter>,
    /// `reconciliations_failed_total`: comparisons that could not be made.
    pub reconciliations_failed: Counter,
    /// `generation`: number of the generation that queries read.
    pub generation: Gauge,
    /// `generation_created_timestamp_seconds`: when it was made; 0 before the first.
    pub generation_created_at: FloatGauge,
    /// `delta_bytes`: memory held by everything since the frontier of the current generation.
    pub delta_bytes: Gauge,
    /// `delta_bytes_max`: at which intake waits.
    pub delta_bytes_max: Gauge,
    /// `pg_connections`: open sessions of the Postgres listener.
    pub pg_connections: Gauge,
    /// `pg_connections_max`: at which one more is turned away.
    pub pg_connections_max: Gauge,
    /// `pg_connections_refused_total`: sessions turned away at the limit.
    pub pg_connections_refused: Counter,
    /// `authentications_failed_total`: attempts to connect that did not prove who they are.
    pub authentications_failed: Counter,
    /// `access_log_dropped_total`: reads that the access log leaves out because its queue was full.
    pub access_log_dropped: Counter,
    /// `access_log_failed_total`: attempts to write the access log that failed.
    pub access_log_failed: Counter,
    /// `queries_total`
    pub queries: Family<OutcomeLabel, Counter>,
    /// `queries_running`: statements that hold a snapshot right now.
    pub queries_running: Gauge,
    /// `queries_by_key_total`: those among them that were answered from an index of keys.
    pub queries_by_key: Counter,
    /// `queries_shared_total`: those that were answered by a run that others waited for too, or could have.
    pub queries_shared: Counter,
    /// `query_duration_seconds`: from the start of a statement until its last row was produced.
    pub query_duration: Histogram,
    /// `data_dir_free_bytes`: what the file system of the data directory has left.
    pub data_dir_free: Gauge,
    /// `data_dir_size_bytes`
    pub data_dir_size: Gauge,
    /// What Prometheus' clients tell of every process, under their names.
    pub process: ProcessMetrics,
}

/// Of the process as the kernel sees it.
#[derive(Debug, Default)]
pub struct ProcessMetrics {
    /// `process_resident_memory_bytes`
    pub resident_memory: Gauge,
    /// `process_cpu_seconds_total`
    pub cpu: Counter<f64, AtomicU64>,
    /// `process_open_fds`
    pub open_fds: Gauge,
    /// `process_max_fds`
    pub max_fds: Gauge,
    /// `process_start_time_seconds`
    pub started_at: FloatGauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            events: Family::default(),
            processing_latency: Family::new_with_constructor(seconds),
            consumer_lag: Family::default(),
            archive_commits: Family::default(),
            archive_commit_duration: Family::new_with_constructor(seconds),
            archive_bytes: Family::default(),
            partitions_halted: Family::default(),
            intake_faults: Gauge::default(),
            part_failures: Gauge::default(),
            unbalanced_partitions: Family::default(),
            archive_files: Family::default(),
            archive_damaged_files: Family::default(),
            sealed_at: FloatGauge::default(),
            refreshes: Family::default(),
            refresh_duration: seconds(),
            reconciled_groups: Family::default(),
            reconciliations_failed: Counter::default(),
            generation: Gauge::default(),
            generation_created_at: FloatGauge::default(),
            delta_bytes: Gauge::default(),
            delta_bytes_max: Gauge::default(),
            pg_connections: Gauge::default(),
            pg_connections_max: Gauge::default(),
            pg_connections_refused: Counter::default(),
            authentications_failed: Counter::default(),
            access_log_dropped: Counter::default(),
            access_log_failed: Counter::default(),
            queries: Family::default(),
            queries_running: Gauge::default(),
            queries_by_key: Counter::default(),
            queries_shared: Counter::default(),
            query_duration: seconds(),
            data_dir_free: Gauge::default(),
            data_dir_size: Gauge::default(),
            process: ProcessMetrics::default(),
        };
        metrics.register();
        metrics.register_surroundings();
        metrics
    }

    /// The handle for one stream and outcome; ask once, then keep it.
    pub fn events_of(&self, stream: &str, outcome: EventOutcome) -> Counter {
        self.events.get_or_create_owned(&EventLabels { stream: stream.to_owned(), outcome })
    }

    /// Sets how far behind the end of its partition the consumer is.
    pub fn set_consumer_lag(&self, stream: &str, partition: i32, records: i64) {
        self.consumer_lag.get_or_create(&PartitionLabels { stream: stream.to_owned(), partition }).set(records);
    }

    /// Counts one finished archive commit.
    pub fn archive_commit(&self, stream: &str, outcome: WorkOutcome, took: Duration) {
        let label = StreamLabel { stream: stream.to_owned() };
        self.archive_commits.get_or_create(&StreamOutcomeLabels { stream: stream.to_owned(), outcome }).inc();
        self.archive_commit_duration.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Counts one finished refresh.
    pub fn refresh(&self, outcome: WorkOutcome, took: Duration) {
        self.refreshes.get_or_create(&OutcomeLabel { outcome }).inc();
        self.refresh_duration.observe(took.as_secs_f64());
    }

    /// Counts the groups of one comparison of batch and speed.
    pub fn reconciled(&self, view: &str, outcome: Reconciled, groups: u64) {
        self.reconciled_groups.get_or_create(&ReconciledLabels { view: view.to_owned(), outcome }).inc_by(groups);
    }

    /// Counts one finished statement.
    pub fn query(&self, outcome: WorkOutcome, took: Duration) {
        self.queries.get_or_create(&OutcomeLabel { outcome }).inc();
        self.query_duration.observe(took.as_secs_f64());
    }

    /// Counts one statement that was answered by key.
    pub fn by_key(&self, took: Duration) {
        self.queries_by_key.inc();
        self.query(WorkOutcome::Done, took);
    }

    /// Counts one statement that was answered by a run which others may share.
    pub fn shared(&self, took: Duration) {
        self.queries_shared.inc();
        self.query(WorkOutcome::Done, took);
    }

    /// All metrics in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock()).expect("writing to a string cannot fail");
        text
    }

    fn register(&self) {
        let mut guard = self.registry.lock();
        let r = &mut *guard;
        let s = Unit::Seconds;
        r.register("view_events", "Records by what became of them", self.events.clone());
        r.register_with_unit(
            "processing_latency",
            "From the record's time in Kafka until a query can see it",
            s.clone(),
            self.processing_latency.clone(),
        );
        r.register("consumer_lag_records", "Records not read yet", self.consumer_lag.clone());
        r.register("archive_commits", "Archive commits by outcome", self.archive_commits.clone());
        r.register_with_unit(
            "archive_commit_duration",
            "From sealing an epoch until its commit is durable",
            s.clone(),
            self.archive_commit_duration.clone(),
        );
        r.register("archive_bytes", "Bytes of data files committed", self.archive_bytes.clone());
        r.register("refreshes", "Refreshes by outcome", self.refreshes.clone());
        r.register_with_unit("refresh_duration", "Duration of a refresh", s.clone(), self.refresh_duration.clone());
        r.register(
            "reconciled_groups",
            "Groups compared between the batch path and the speed path",
            self.reconciled_groups.clone(),
        );
        r.register(
            "reconciliations_failed",
            "Comparisons of batch and speed that could not be made",
            self.reconciliations_failed.clone(),
        );
        r.register("generation", "The generation that queries read", self.generation.clone());
        r.register_with_unit(
            "generation_created_timestamp",
            "When the generation that queries read was made",
            s.clone(),
            self.generation_created_at.clone(),
        );
        r.register("delta_bytes", "Memory held by the delta", self.delta_bytes.clone());
        r.register("delta_bytes_max", "Memory of the delta at which intake waits", self.delta_bytes_max.clone());
        r.register("pg_connections", "Open Postgres sessions", self.pg_connections.clone());
        r.register(
            "pg_connections_max",
            "Postgres sessions at which one more is turned away",
            self.pg_connections_max.clone(),
        );
        r.register(
            "pg_connections_refused",
            "Postgres sessions turned away at the limit",
            self.pg_connections_refused.clone(),
        );
        r.register(
            "authentications_failed",
            "Attempts to connect that did not prove who they are",
            self.authentications_failed.clone(),
        );
        r.register(
            "access_log_dropped",
            "Reads that the access log leaves out because its queue was full",
            self.access_log_dropped.clone(),
        );
        r.register(
            "access_log_failed",
            "Attempts to write the access log that failed",
            self.access_log_failed.clone(),
        );
        r.register("queries", "Statements by outcome", self.queries.clone());
        r.register("queries_running", "Statements that hold a snapshot", self.queries_running.clone());
        r.register("queries_by_key", "Statements answered from an index of keys", self.queries_by_key.clone());
        r.register(
            "queries_shared",
            "Statements answered by a run that others may share",
            self.queries_shared.clone(),
        );
        r.register_with_unit(
            "query_duration",
            "From the start of a statement until its last row",
            s,
            self.query_duration.clone(),
        );
    }

    /// What is looked at now and then, instead of being counted as it happens.
    fn register_surroundings(&self) {
        let mut guard = self.registry.lock();
        let r = &mut *guard;
        let s = Unit::Seconds;
        r.register("viewledger_build", "The program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        r.register("partitions_halted", "Partitions that are not read", self.partitions_halted.clone());
        r.register("intake_faults", "Reasons for which something is not read", self.intake_faults.clone());
        r.register("part_failures", "Parts of the process that failed for good", self.part_failures.clone());
        r.register(
            "conservation_unbalanced_partitions",
            "Partitions in which offsets passed are not what became of them",
            self.unbalanced_partitions.clone(),
        );
        r.register("archive_files", "Data files that the newest commit names", self.archive_files.clone());
        r.register("archive_damaged_files", "Data files that cannot be read", self.archive_damaged_files.clone());
        r.register_with_unit("seal_timestamp", "When the newest seal was made", s.clone(), self.sealed_at.clone());
        r.register("data_dir_free_bytes", "Free on the data directory's disk", self.data_dir_free.clone());
        r.register("data_dir_size_bytes", "Size of the data directory's disk", self.data_dir_size.clone());
        let process = &self.process;
        r.register("process_resident_memory_bytes", "Resident memory", process.resident_memory.clone());
        r.register_with_unit("process_cpu", "Processor time spent", s.clone(), process.cpu.clone());
        r.register("process_open_fds", "Open file descriptors", process.open_fds.clone());
        r.register("process_max_fds", "File descriptors that may be open", process.max_fds.clone());
        r.register_with_unit("process_start_time", "When the process began", s, process.started_at.clone());
    }
}

/// 1 ms to about 2 minutes, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_metrics_are_printed() {
        let metrics = Metrics::new();
        metrics.events_of("orders", EventOutcome::Duplicate).inc_by(3);
        metrics.processing_latency.get_or_create(&StreamLabel { stream: "orders".into() }).observe(0.02);
        metrics.set_consumer_lag("orders", 7, 42);
        metrics.query(WorkOutcome::Cancelled, Duration::from_millis(5));
        let text = metrics.encode();
        for line in [
            r#"view_events_total{stream="orders",outcome="duplicate"} 3"#,
            r#"processing_latency_seconds_count{stream="orders"} 1"#,
            r#"consumer_lag_records{stream="orders",partition="7"} 42"#,
            r#"queries_total{outcome="cancelled"} 1"#,
            "pg_connections 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
