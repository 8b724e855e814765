use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use datafusion::arrow::array::{
    BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder, StringBuilder,
    TimestampMicrosecondArray,
};
use datafusion::arrow::compute::concat_batches;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, col};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::engine::merger::Merger;
use crate::engine::state::TableRows;
use crate::engine::unbound::Unbound;

/// Views whose merge is exactly their query, whatever the pieces.
const VIEWS: [&str; 27] = [
    "SELECT k, count(*) AS rows, sum(n) AS total, avg(n) AS mean, min(n) AS lo, max(n) AS hi FROM raw.events GROUP BY k",
    "SELECT count(*) AS rows, sum(d) AS total, avg(d), min(at) AS first, max(at) AS last, count(f) FROM raw.events",
    "SELECT k, count(DISTINCT n) AS dn, count(DISTINCT d), count(DISTINCT k), sum(DISTINCT n), count(n) AS dk \
     FROM raw.events GROUP BY k",
    "SELECT count(DISTINCT n), count(n), count(DISTINCT at), avg(DISTINCT n), sum(DISTINCT d) FROM raw.events",
    "SELECT k, b, bool_and(n > 0) AS all_up, bool_or(n > 0), bit_and(n), bit_or(n), bit_xor(n) FROM raw.events \
     GROUP BY k, b",
    "SELECT k, count(*) FILTER (WHERE b) AS yes, count(*) FILTER (WHERE NOT b) AS no, sum(n) FILTER (WHERE n > 3), \
     count(DISTINCT n) FILTER (WHERE b), first_value(n ORDER BY id) FILTER (WHERE b), \
     min(k) FILTER (WHERE b), avg(d) FILTER (WHERE n > 3), approx_distinct(n) FILTER (WHERE b), \
     median(n) FILTER (WHERE b), array_agg_limit(n, 9 ORDER BY id) FILTER (WHERE b) FROM raw.events GROUP BY k",
    "SELECT k, sum(CASE WHEN b THEN n ELSE 0 END) AS yes, max(CASE WHEN n > 3 THEN k END) FROM raw.events GROUP BY k",
    "SELECT k, sum(n) * 1.0 / count(*) AS share, coalesce(max(n), 0) - coalesce(min(n), 0) AS spread FROM raw.events \
     GROUP BY k HAVING count(*) > 2 AND max(n) > 0",
    "SELECT date_trunc('hour', at) AS hour, k, count(*) AS rows, avg(d) AS mean FROM raw.events \
     WHERE n IS NOT NULL GROUP BY 1, 2",
    "SELECT k, approx_distinct(n) AS some, approx_distinct(k), approx_distinct(b) FROM raw.events GROUP BY k",
    "SELECT k, stddev(n), var_pop(f), stddev_pop(f), covar_samp(n, f), corr(n, f), regr_slope(n, f) FROM raw.events \
     GROUP BY k",
    "SELECT stddev(n), var_samp(f), corr(f, n), regr_r2(n, f) FROM raw.events",
    "SELECT k, median(n) AS mid, median(d), median(DISTINCT n), percentile_cont(0.9) WITHIN GROUP (ORDER BY f) AS p90, \
     percentile_cont(0.9) WITHIN GROUP (ORDER BY f DESC), percentile_cont(f, 0.25) FROM raw.events GROUP BY k",
    "SELECT k, array_agg_limit(n, 3 ORDER BY id) AS some, array_agg_limit(n, 5 ORDER BY n DESC, id), \
     array_agg_limit(at, 2 ORDER BY k, id NULLS FIRST), array_to_string(array_agg_limit(k, 60 ORDER BY id), '-') \
     FROM raw.events GROUP BY k",
    "SELECT k, approx_percentile_cont(n, 0.3) AS p30, approx_median(f), multiset_digest(k) AS ids, \
     approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY d DESC), sum(d::DECIMAL(38, 2)), avg(DISTINCT n), \
     sum(n::INTEGER) FROM raw.events GROUP BY k",
    "SELECT k, first_value(n ORDER BY at, id) AS one, last_value(k ORDER BY n DESC, id), \
     first_value(n ORDER BY id DESC NULLS LAST), first_value(n ORDER BY id) IGNORE NULLS FROM raw.events GROUP BY k",
    "SELECT first_value(n ORDER BY at, id), last_value(d ORDER BY id), \
     array_agg_limit(n, 7 ORDER BY id), count(*) FROM raw.events",
    "SELECT tag, count(*) AS rows, count(DISTINCT k) FROM (SELECT unnest(tags) AS tag, k FROM raw.events) GROUP BY tag",
    "SELECT r.label AS label, count(*) AS rows, sum(e.n) FROM raw.events e LEFT JOIN names r ON e.k = r.k \
     GROUP BY r.label",
    "SELECT e.k, count(*) FROM names r RIGHT JOIN raw.events e ON e.k = r.k AND r.label <> 'never' \
     WHERE e.k IN (SELECT k FROM names) OR e.n > 1 GROUP BY e.k",
    "SELECT e.k, count(*), sum(e.n) FROM raw.events e WHERE NOT EXISTS (SELECT 1 FROM names r WHERE r.k = e.k \
     AND r.label <> 'first') GROUP BY e.k",
    "SELECT k, count(*) FROM raw.events WHERE k NOT IN (SELECT k FROM names WHERE label = 'twice') GROUP BY k",
    "SELECT r.label, count(*) AS rows, sum(e.d) FROM raw.events e JOIN names r ON e.k >= r.k \
     AND (r.label <> 'never' OR e.k < r.label) GROUP BY r.label",
    "WITH x AS (SELECT upper(k) AS u, n FROM raw.events WHERE b) SELECT u || '!' AS loud, sum(n + 1) AS s FROM x GROUP BY u",
    "SELECT k, b FROM raw.events GROUP BY k, b",
    "SELECT count(*) AS a, count(*) AS b, count(n) AS n, n % 3 AS rest FROM raw.events GROUP BY n % 3",
    "SELECT k AS \"max(n)\", count(*), 1 + max(n) AS next FROM raw.events GROUP BY k",
];

#[derive(Debug, Clone)]
struct Event {
    k: Option<u8>,
    n: Option<i64>,
    d: Option<i64>,
    f: Option<i16>,
    b: Option<bool>,
    at: Option<i64>,
    tags: Option<Vec<Option<u8>>>,
}

fn event() -> impl Strategy<Value = Event> {
    let letter = 0u8..4;
    let maybe = proptest::option::of::<std::ops::Range<i64>>;
    (
        proptest::option::of(letter.clone()),
        maybe(-5..12),
        maybe(-5_000..5_000),
        proptest::option::of(-50i16..50),
        proptest::option::of(any::<bool>()),
        maybe(0..20_000_000_000),
        proptest::option::of(proptest::collection::vec(proptest::option::of(letter), 0..3)),
    )
        .prop_map(|(k, n, d, f, b, at, tags)| Event { k, n, d, f, b, at, tags })
}

fn letter(code: u8) -> String {
    char::from(b'a' + code).to_string()
}

fn batch(events: &[Event], first_id: usize) -> RecordBatch {
    let mut tags = ListBuilder::new(StringBuilder::new());
    for event in events {
        for tag in event.tags.iter().flatten() {
            tags.values().append_option(tag.map(letter));
        }
        tags.append(event.tags.is_some());
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values((first_id..).take(events.len()).map(|id| id as i64))),
        Arc::new(StringArray::from_iter(events.iter().map(|e| e.k.map(letter)))),
        Arc::new(Int64Array::from_iter(events.iter().map(|e| e.n))),
        Arc::new(
            Decimal128Array::from_iter(events.iter().map(|e| e.d.map(i128::from)))
                .with_precision_and_scale(18, 2)
                .unwrap(),
        ),
        Arc::new(Float64Array::from_iter(events.iter().map(|e| e.f.map(f64::from)))),
        Arc::new(BooleanArray::from_iter(events.iter().map(|e| e.b))),
        Arc::new(TimestampMicrosecondArray::from_iter(events.iter().map(|e| e.at)).with_timezone("UTC")),
        Arc::new(tags.finish()),
        Arc::new(Int32Array::from_iter_values((first_id..).take(events.len()).map(|id| (id % 3) as i32))),
        // Offsets of a partition rise, but not as the ids of all do.
        Arc::new(Int64Array::from_iter_values((first_id..).take(events.len()).map(|id| (id / 3) as i64))),
    ];
    RecordBatch::try_new(events_schema(), columns).unwrap()
}

/// How states are kept between the plans.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kept {
    Memory,
    Parquet,
}

fn through_parquet(batches: &[RecordBatch], schema: &SchemaRef) -> Vec<RecordBatch> {
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), None).unwrap();
    for batch in batches {
        // Checks names, types and nullability against the schema that the view declares.
        let batch = RecordBatch::try_new(Arc::clone(schema), batch.columns().to_vec()).unwrap();
        writer.write(&batch).unwrap();
    }
    let file = Bytes::from(writer.into_inner().unwrap());
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    assert_eq!(reader.schema().fields(), schema.fields());
    reader.build().unwrap().map(Result::unwrap).collect()
}

async fn micro_batch(engine: &Engine, view: &LambdaView, records: &RecordBatch) -> Vec<RecordBatch> {
    view.micro_batch_plan(engine, records.schema()).await.unwrap().run_over(vec![records.clone()]).await.unwrap()
}

struct Run {
    engine: Arc<Engine>,
    view: LambdaView,
    kept: Kept,
}

impl Run {
    async fn collect(&self, plan: LogicalPlan) -> Vec<RecordBatch> {
        // A partial phase that finds too many groups hands its rows on as states; here after every batch.
        let ctx = self.engine.session();
        {
            let state = ctx.state_ref();
            let mut state = state.write();
            let execution = &mut state.config_mut().options_mut().execution;
            execution.skip_partial_aggregation_probe_rows_threshold = 2;
            execution.skip_partial_aggregation_probe_ratio_threshold = 0.3;
        }
        let text = plan.display_indent().to_string();
        let frame = DataFrame::new(ctx.state(), plan);
        frame.collect().await.unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    async fn states(&self, plan: LogicalPlan) -> Vec<RecordBatch> {
        self.kept(self.collect(plan).await)
    }

    fn kept(&self, batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        match self.kept {
            Kept::Memory => batches,
            Kept::Parquet => through_parquet(&batches, &self.view.state_schema()),
        }
    }

    /// States of each piece, combined two or three at a time as `picks` say, then merged.
    async fn merged(&self, pieces: &[RecordBatch], picks: &[(usize, usize)]) -> Vec<RecordBatch> {
        let mut stored = Vec::new();
        for (nth, piece) in pieces.iter().enumerate() {
            // As micro-batches and as batch views make them.
            stored.push(if nth % 2 == 0 {
                self.kept(micro_batch(&self.engine, &self.view, piece).await)
            } else {
                let records = mem(events_schema(), vec![vec![piece.clone()]]);
                self.states(self.view.state_plan(records).unwrap()).await
            });
        }
        let schema = self.view.state_schema();
        for (from, count) in picks {
            if stored.len() < 2 {
                break;
            }
            let from = from % stored.len();
            let to = (from + 2 + count % 2).min(stored.len());
            let taken: Vec<_> = stored.drain(from..to).collect();
            let combined = if count % 2 == 0 {
                let plan = self.view.runs_plan(&self.engine).await.unwrap();
                self.kept(plan.run_over(taken.concat()).await.unwrap())
            } else {
                let plan = self.view.combine_plan(mem(Arc::clone(&schema), taken)).unwrap();
                self.states(plan).await
            };
            stored.insert(from.min(stored.len()), combined);
        }
        let merged = self.collect(self.view.merge_plan(mem(Arc::clone(&schema), stored.clone())).unwrap()).await;
        // And without the planner, as rows are that are found by their key.
        match Merger::of(&self.engine, &self.view).await.unwrap() {
            Some(merger) => {
                let states = concat_batches(&schema, stored.iter().flatten()).unwrap();
                let found = merger.merge(states).unwrap();
                assert_eq!(found.schema().fields(), self.view.final_schema().fields());
                assert_eq!(rows_of(&[found]), rows_of(&merged), "{}", self.view.name());
                let few = merger
                    .only(&BTreeSet::from([0]))
                    .merge(concat_batches(&schema, stored.iter().flatten()).unwrap());
                assert_eq!(first_cells(&[few.unwrap()]), first_cells(&merged), "{}", self.view.name());
                if merger.has_one_key() {
                    assert_eq!(rows_of(&one_by_one(&merger, &stored)), rows_of(&merged), "{}", self.view.name());
                }
            }
            None => assert_eq!(self.view.group_columns(), 0, "every view with a key can be read by key"),
        }
        merged
    }
}

/// The first column, sorted.
fn first_cells(batches: &[RecordBatch]) -> Vec<String> {
    rows_of(&batches.iter().map(|batch| batch.project(&[0]).unwrap()).collect::<Vec<_>>())
}

/// The groups of a view with one key, each of them merged from its states alone.
fn one_by_one(merger: &Merger, stored: &[Vec<RecordBatch>]) -> Vec<RecordBatch> {
    let mut groups: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for states in stored.iter().flatten() {
        for row in 0..states.num_rows() {
            let key = ScalarValue::try_from_array(states.column(0), row).unwrap();
            groups.entry(format!("{key:?}")).or_default().push(states.slice(row, 1));
        }
    }
    groups.into_values().map(|pieces| merger.merge_one(pieces).unwrap()).collect()
}

async fn check(
    sql: &str,
    events: &[Event],
    cuts: &[usize],
    picks: &[(usize, usize)],
    kept: Kept,
) -> ControlFlow<String> {
    check_against(sql, sql, events, cuts, picks, kept).await
}

/// As [`check`], for a view that its own query does not tell the answer of.
async fn check_against(
    reference: &str,
    sql: &str,
    events: &[Event],
    cuts: &[usize],
    picks: &[(usize, usize)],
    kept: Kept,
) -> ControlFlow<String> {
    let engine = engine();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in cuts.iter().copied().chain([events.len()]) {
        pieces.push(batch(&events[start..end], start));
        start = end;
    }
    let ctx = session_with(&engine, vec![batch(events, 0)]);
    let query = plan(&ctx, sql).await;
    let view = LambdaView::split("v", query).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let run = Run { engine, view, kept };
    let once = run.engine.collect(plan(&ctx, reference).await, 2).await.unwrap();
    let merged = run.merged(&pieces, picks).await;
    for batch in &merged {
        assert_eq!(batch.schema().fields(), run.view.final_schema().fields(), "{sql}");
    }
    let (once, merged) = (rows_of(&once), rows_of(&merged));
    if once == merged {
        return ControlFlow::Continue(());
    }
    ControlFlow::Break(format!("{sql}\nonce:\n{}\nmerged:\n{}", once.join("\n"), merged.join("\n")))
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merge_of_any_pieces_is_the_query_over_all_rows(
        view in 0..VIEWS.len(),
        events in proptest::collection::vec(event(), 0..60),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        picks in proptest::collection::vec((0..9usize, 0..2usize), 0..5),
        parquet in any::<bool>(),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(events.len() + 1)).collect();
        cuts.sort_unstable();
        let kept = if parquet { Kept::Parquet } else { Kept::Memory };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        if let ControlFlow::Break(difference) =
            runtime.block_on(check(VIEWS[view], &events, &cuts, &picks, kept))
        {
            return Err(TestCaseError::fail(difference));
        }
    }
}

/// Views whose order has ties, and the same with an order that has none.
const TIES: [(&str, &str); 4] = [
    (
        "SELECT b, first_value(n ORDER BY k) AS one, last_value(n ORDER BY k DESC), array_agg_limit(id, 4 ORDER BY k), \
         (array_agg_limit(id, 2 ORDER BY b))[2] FROM raw.events GROUP BY b",
        "SELECT b, first_value(n ORDER BY k, _partition, _offset) AS one, \
         last_value(n ORDER BY k DESC, _partition, _offset), \
         array_agg_limit(id, 4 ORDER BY k, _partition, _offset), \
         (array_agg_limit(id, 2 ORDER BY b, _partition, _offset))[2] FROM raw.events GROUP BY b",
    ),
    (
        "WITH x AS (SELECT upper(k) AS u, n, d FROM raw.events e WHERE b) SELECT u, first_value(d ORDER BY n) \
         FROM x AS y GROUP BY u HAVING first_value(d ORDER BY n) > 0",
        "WITH x AS (SELECT upper(k) AS u, n, d, _partition AS p, _offset AS o FROM raw.events WHERE b) \
         SELECT u, first_value(d ORDER BY n, p, o) FROM x GROUP BY u HAVING first_value(d ORDER BY n, p, o) > 0",
    ),
    (
        "SELECT k, last_value(tag ORDER BY b) AS t FROM (SELECT unnest(tags) AS tag, k, b FROM raw.events) GROUP BY k",
        "SELECT k, last_value(tag ORDER BY b, p, o, tag) AS t \
         FROM (SELECT unnest(tags) AS tag, k, b, _partition AS p, _offset AS o FROM raw.events) GROUP BY k",
    ),
    (
        "SELECT r.label AS label, first_value(e.n ORDER BY e.b) FROM raw.events e LEFT JOIN names r ON e.k = r.k \
         GROUP BY r.label",
        "SELECT r.label AS label, first_value(e.n ORDER BY e.b, e._partition, e._offset) \
         FROM raw.events e LEFT JOIN names r ON e.k = r.k GROUP BY r.label",
    ),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: cases() / 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ties_go_by_the_coordinates_of_the_record(
        view in 0..TIES.len(),
        events in proptest::collection::vec(event(), 0..60),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        picks in proptest::collection::vec((0..9usize, 0..2usize), 0..5),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(events.len() + 1)).collect();
        cuts.sort_unstable();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (sql, reference) = TIES[view];
        let checked = check_against(reference, sql, &events, &cuts, &picks, Kept::Parquet);
        if let ControlFlow::Break(difference) = runtime.block_on(checked) {
            return Err(TestCaseError::fail(difference));
        }
    }
}

/// The same forty events in every run.
fn some_events() -> Vec<Event> {
    let event = |i: i64| Event {
        k: (i % 7 != 0).then_some((i % 4) as u8),
        n: (i % 5 != 0).then_some((i * 7) % 13 - 3),
        d: (i % 6 != 0).then_some(i * 31 - 400),
        f: (i % 8 != 0).then_some((i * 3 % 41) as i16),
        b: (i % 9 != 0).then_some(i % 2 == 0),
        at: Some(i * 977_000_000 % 20_000_000_000),
        tags: (i % 3 != 0).then(|| vec![Some((i % 4) as u8), None, Some(1)]),
    };
    (0..40).map(event).collect()
}

#[tokio::test]
async fn every_view_merges_from_pieces_of_which_some_are_empty() {
    for kept in [Kept::Memory, Kept::Parquet] {
        for sql in VIEWS {
            let all = check(sql, &some_events(), &[0, 11, 11, 30], &[(1, 1), (0, 0)], kept).await;
            assert_eq!(all, ControlFlow::Continue(()));
            let none = check(sql, &[], &[0, 0], &[(0, 0)], kept).await;
            assert_eq!(none, ControlFlow::Continue(()));
        }
    }
}

/// Without the combinators the sums would still add up; a state merged twice must show.
#[tokio::test]
async fn a_piece_that_is_counted_twice_shows() {
    let engine = engine();
    let rows = batch(&some_events(), 0);
    let ctx = session_with(&engine, vec![rows.clone()]);
    let query = plan(&ctx, VIEWS[0]).await;
    let run = Run { engine, view: LambdaView::split("v", query.clone()).unwrap(), kept: Kept::Memory };
    let once = rows_of(&run.engine.collect(query, 2).await.unwrap());
    assert_eq!(once, rows_of(&run.merged(std::slice::from_ref(&rows), &[]).await));
    assert_ne!(once, rows_of(&run.merged(&[rows.clone(), rows], &[]).await));
}

/// Input sorted by its key makes DataFusion emit groups as they end, not all at the end.
#[tokio::test]
async fn sorted_states_merge_to_the_same() {
    for sql in VIEWS.iter().filter(|sql| sql.contains("GROUP BY k") && !sql.contains("k, b")) {
        let engine = engine();
        let ctx = session_with(&engine, vec![batch(&some_events(), 0)]);
        let query = plan(&ctx, sql).await;
        let run = Run { engine, view: LambdaView::split("v", query.clone()).unwrap(), kept: Kept::Memory };
        let once = run.engine.collect(query, 2).await.unwrap();
        let mut states = Vec::new();
        for (start, end) in [(0, 17), (17, 40)] {
            let piece = batch(&some_events()[start..end], start);
            let records = mem(events_schema(), vec![vec![piece]]);
            states.extend(run.collect(run.view.state_plan(records).unwrap()).await);
        }
        let schema = run.view.state_schema();
        let states = concat_batches(&schema, &states).unwrap();
        let key =
            Expr::Column(datafusion::common::Column::new_unqualified(schema.field(0).name())).sort(true, true);
        let sorted = ctx.read_batch(states).unwrap().sort(vec![key.clone()]).unwrap().collect().await.unwrap();
        let sorted = MemTable::try_new(Arc::clone(&schema), vec![sorted]).unwrap().with_sort_order(vec![vec![key]]);
        let sorted: Arc<dyn TableProvider> = Arc::new(sorted);
        let combined = run.collect(run.view.combine_plan(Arc::clone(&sorted)).unwrap()).await;
        let again = run.collect(run.view.merge_plan(mem(schema, vec![combined])).unwrap()).await;
        let plan = run.view.merge_plan(sorted).unwrap();
        let physical = ctx.state().create_physical_plan(&plan).await.unwrap();
        let text = datafusion::physical_plan::displayable(physical.as_ref()).indent(false).to_string();
        assert!(text.contains("ordering_mode="), "the order is not used, so nothing is tested:\n{text}");
        let merged = run.collect(plan).await;
        assert_eq!(rows_of(&once), rows_of(&merged), "{sql}");
        assert_eq!(rows_of(&once), rows_of(&again), "{sql}");
    }
}

/// A row of states that is missing altogether, as an outer join may give, counts for nothing.
#[tokio::test]
async fn a_null_in_place_of_a_state_counts_for_nothing() {
    let engine = engine();
    let ctx = session_with(&engine, vec![batch(&some_events(), 0)]);
    for sql in [VIEWS[0], VIEWS[9], VIEWS[12]] {
        let query = plan(&ctx, sql).await;
        let run = Run {
            engine: Arc::clone(&engine),
            view: LambdaView::split("v", query.clone()).unwrap(),
            kept: Kept::Memory,
        };
        let records = mem(events_schema(), vec![vec![batch(&some_events(), 0)]]);
        let states = run.collect(run.view.state_plan(records).unwrap()).await;
        let nullable: Vec<Field> =
            run.view.state_schema().fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
        let nullable = Arc::new(Schema::new(nullable));
        let missing = |batch: &RecordBatch| {
            let mut columns = vec![Arc::clone(batch.column(0))];
            columns.extend(
                batch.columns()[1..]
                    .iter()
                    .map(|c| datafusion::arrow::array::new_null_array(c.data_type(), c.len())),
            );
            RecordBatch::try_new(Arc::clone(&nullable), columns).unwrap()
        };
        let held =
            states.iter().map(|b| RecordBatch::try_new(Arc::clone(&nullable), b.columns().to_vec()).unwrap());
        let mut both: Vec<RecordBatch> = states.iter().map(missing).collect();
        both.extend(held);
        // Many more, so that every partition also passes some on without grouping them.
        both.extend((0..8).flat_map(|_| states.iter().map(missing)));
        let merged = run.collect(run.view.merge_plan(mem(nullable, vec![both])).unwrap()).await;
        assert_eq!(rows_of(&run.engine.collect(query, 2).await.unwrap()), rows_of(&merged), "{sql}");
    }
}

#[tokio::test]
async fn states_are_named_and_typed_for_other_readers() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    let sql = "SELECT k AS name, date_trunc('day', at), count(*) AS rows, sum(d) AS total, avg(n) AS mean, \
               1 + max(n) AS next, approx_distinct(n) AS some, sum(n) AS big FROM raw.events GROUP BY k, date_trunc('day', at)";
    let view = LambdaView::split("v", plan(&ctx, sql).await).unwrap();
    let schema = view.state_schema();
    let columns: Vec<String> = schema.fields().iter().map(|f| format!("{} {}", f.name(), f.data_type())).collect();
    assert_eq!(view.group_columns(), 2);
    assert_eq!(view.stream().to_string(), "raw.events");
    assert_eq!(
        columns,
        [
            "name Utf8",
            "date_trunc(Utf8(\"day\"),at) Timestamp(µs, \"UTC\")",
            "rows Int64",
            "total Decimal128(28, 2)",
            "mean Struct(\"count\": non-null UInt64, \"sum\": Decimal128(38, 0))",
            "max(n) Int64",
            "some Struct(\"hll_registers\": non-null Binary)",
            "big Decimal128(38, 0)",
        ]
    );
}

#[tokio::test]
async fn a_filter_on_the_key_goes_below_the_merge() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    let view = LambdaView::split("v", plan(&ctx, VIEWS[0]).await).unwrap();
    let merged = view.merge_plan(mem(view.state_schema(), vec![])).unwrap();
    ctx.register_table("merged", DataFrame::new(ctx.state(), merged).into_view()).unwrap();
    let plan = plan(&ctx, "SELECT * FROM merged WHERE k = 'x'").await;
    let optimised = ctx.state().optimize(&plan).unwrap();
    let mut below = None;
    optimised
        .apply(|node| {
            if let LogicalPlan::Aggregate(aggregate) = node {
                below = Some(aggregate.input.display_indent().to_string());
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
    let below = below.unwrap();
    assert!(below.starts_with("Filter: states.k = Utf8(\"x\")"), "{}", optimised.display_indent());
}

#[tokio::test]
async fn the_fingerprint_follows_the_definition() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    let of = async |name: &str, sql: &str| LambdaView::split(name, plan(&ctx, sql).await).unwrap().fingerprint();
    let base = of("v", "SELECT k, count(*) AS c FROM raw.events GROUP BY k").await;
    assert_eq!(base, of("v", "select  k, count(*)  c from raw.events  group by k").await);
    assert_eq!(base, of("w", "SELECT k, count(*) AS c FROM raw.events GROUP BY k").await);
    assert_eq!(base.len(), 64);
    for other in [
        "SELECT k, count(*) AS d FROM raw.events GROUP BY k",
        "SELECT k, count(n) AS c FROM raw.events GROUP BY k",
        "SELECT k, count(*) AS c FROM raw.others GROUP BY k",
        "SELECT k, count(*) AS c FROM raw.events WHERE n > 1 GROUP BY k",
        "SELECT k, count(*) FILTER (WHERE n > 1) AS c FROM raw.events GROUP BY k",
    ] {
        assert_ne!(base, of("v", other).await, "{other}");
    }
}

#[tokio::test]
async fn a_view_is_computed_with_the_rows_that_it_is_bound_to() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    let names = Arc::clone(ctx.table("names").await.unwrap().schema().inner());
    let unbound = Arc::new(Unbound { columns: Arc::clone(&names) });
    ctx.register_table("labels", unbound).unwrap();
    let sql = "SELECT r.label, count(*) AS rows FROM raw.events e JOIN labels r ON e.k = r.k \
               WHERE e.k NOT IN (SELECT k FROM labels WHERE label = 'out') GROUP BY r.label";
    let view = LambdaView::split("v", plan(&ctx, sql).await).unwrap();
    assert_eq!(view.tables().iter().collect::<Vec<_>>(), ["labels"]);
    let records = || mem(events_schema(), vec![vec![batch(&some_events(), 0)]]);
    let unread = engine.collect(view.state_plan(records()).unwrap(), 1).await.unwrap_err().to_string();
    assert!(unread.contains("not bound"), "{unread}");

    let with = |labels: [&str; 2]| {
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec!["a", "b"])), Arc::new(StringArray::from(labels.to_vec()))];
        let rows = RecordBatch::try_new(Arc::clone(&names), columns).unwrap();
        BTreeMap::from([("labels".to_owned(), TableRows { rows, digest: labels.concat() })])
    };
    let (one, other) =
        (view.bound("v@1", &with(["x", "y"])).unwrap(), view.bound("v@2", &with(["x", "out"])).unwrap());
    assert_eq!((one.name(), other.name()), ("v@1", "v@2"));
    let fingerprints = [view.fingerprint(), one.fingerprint(), other.fingerprint()];
    assert_eq!(fingerprints.iter().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(other.fingerprint(), one.bound("v", &with(["x", "out"])).unwrap().fingerprint(), "bound again");
    let labels = async |view: &LambdaView| {
        let states = engine.collect(view.state_plan(records()).unwrap(), 2).await.unwrap();
        let states = mem(view.state_schema(), vec![states]);
        let merged = engine.collect(view.merge_plan(states).unwrap(), 2).await.unwrap();
        rows_of(&merged).iter().map(|row| row.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(labels(&one).await, ["x", "y"]);
    assert_eq!(labels(&other).await, ["x"]);
    // The plan that is kept for micro-batches is bound anew too.
    let events = batch(&some_events(), 0);
    for (view, rows) in [(&one, 2), (&other, 1)] {
        let states = micro_batch(&engine, view, &events).await;
        assert_eq!(states.iter().map(RecordBatch::num_rows).sum::<usize>(), rows, "{}", view.name());
    }
    let missing = view.bound("v", &BTreeMap::new()).unwrap_err();
    assert!(format!("{missing:?}").contains("labels"), "{missing:?}");
}

#[tokio::test]
async fn a_provider_with_other_text_types_and_more_columns_is_read() {
    let engine = engine();
    let ctx = session_with(&engine, vec![batch(&some_events(), 0)]);
    let query = plan(&ctx, VIEWS[0]).await;
    let view = LambdaView::split("v", query.clone()).unwrap();
    let records = ctx.table("raw.events").await.unwrap();
    let records = records
        .select(vec![
            datafusion::prelude::lit(1).alias("_offset"),
            datafusion::logical_expr::cast(col("k"), DataType::Utf8View).alias("k"),
            datafusion::logical_expr::cast(col("n"), DataType::Int32).alias("n"),
        ])
        .unwrap();
    let states = engine.collect(view.state_plan(records.into_view()).unwrap(), 2).await.unwrap();
    let states = mem(view.state_schema(), vec![states]);
    let merged = engine.collect(view.merge_plan(states).unwrap(), 2).await.unwrap();
    assert_eq!(rows_of(&engine.collect(query, 2).await.unwrap()), rows_of(&merged));
}

#[tokio::test]
async fn approximate_percentiles_stay_within_their_group() {
    let engine = engine();
    let sql = "SELECT k, approx_percentile_cont(0.5) WITHIN GROUP (ORDER BY n) AS p50, approx_median(n), min(n), max(n) \
               FROM raw.events GROUP BY k";
    let events = some_events();
    let ctx = session_with(&engine, vec![]);
    let view = LambdaView::split("v", plan(&ctx, sql).await).unwrap();
    let run = Run { engine, view, kept: Kept::Parquet };
    let merged = run.merged(&[batch(&events[..20], 0), batch(&events[20..], 20)], &[(0, 0)]).await;
    let rows: usize = merged.iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 5);
    for batch in merged {
        for column in [1, 2] {
            let value = datafusion::arrow::compute::cast(batch.column(column), &DataType::Int64).unwrap();
            let value = value.as_primitive::<datafusion::arrow::datatypes::Int64Type>().clone();
            let low = batch.column(3).as_primitive::<datafusion::arrow::datatypes::Int64Type>();
            let high = batch.column(4).as_primitive::<datafusion::arrow::datatypes::Int64Type>();
            for row in 0..batch.num_rows() {
                assert!(low.value(row) <= value.value(row) && value.value(row) <= high.value(row));
            }
        }
    }
}
