//! What the process counts about itself, in one registry that `/metrics` prints.
//!
//! Created once in the composition root and passed to every room; never global. The handles are cheap to
//! clone and safe to bump from any thread. A hot loop asks once for its labelled handle and keeps it.

use std::fmt::{self, Write};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
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
    /// `delta_bytes`: memory held by everything since the frontier of the current generation.
    pub delta_bytes: Gauge,
    /// `delta_rows`: records in the delta.
    pub delta_rows: Gauge,
    /// `pg_connections`: open sessions of the Postgres listener.
    pub pg_connections: Gauge,
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
    /// `query_duration_seconds`: from the start of a statement until its last row was produced.
    pub query_duration: Histogram,
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
            refreshes: Family::default(),
            refresh_duration: seconds(),
            reconciled_groups: Family::default(),
            reconciliations_failed: Counter::default(),
            generation: Gauge::default(),
            delta_bytes: Gauge::default(),
            delta_rows: Gauge::default(),
            pg_connections: Gauge::default(),
            pg_connections_refused: Counter::default(),
            authentications_failed: Counter::default(),
            access_log_dropped: Counter::default(),
            access_log_failed: Counter::default(),
            queries: Family::default(),
            queries_running: Gauge::default(),
            queries_by_key: Counter::default(),
            query_duration: seconds(),
        };
        metrics.register();
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
        r.register("delta_bytes", "Memory held by the delta", self.delta_bytes.clone());
        r.register("delta_rows", "Records in the delta", self.delta_rows.clone());
        r.register("pg_connections", "Open Postgres sessions", self.pg_connections.clone());
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
        r.register_with_unit(
            "query_duration",
            "From the start of a statement until its last row",
            s,
            self.query_duration.clone(),
        );
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
