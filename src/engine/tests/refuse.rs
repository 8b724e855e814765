use super::*;

/// A part of the message that names the view's fault, and the query that has it.
const REFUSED: [(&str, &str); 26] = [
    ("has no aggregate", "SELECT k, n FROM raw.events"),
    ("has no aggregate", "SELECT e.k FROM raw.events e JOIN names USING (k)"),
    ("aggregates an aggregate", "SELECT max(c) FROM (SELECT k, count(*) AS c FROM raw.events GROUP BY k)"),
    ("has ORDER BY or LIMIT", "SELECT k, count(*) FROM raw.events GROUP BY k ORDER BY k"),
    ("has ORDER BY or LIMIT", "SELECT k, count(*) FROM raw.events GROUP BY k LIMIT 3"),
    ("has ORDER BY or LIMIT", "SELECT k, count(*) FROM (SELECT k FROM raw.events LIMIT 9) GROUP BY k"),
    ("has a window function", "SELECT k, rank() OVER (ORDER BY count(*)) FROM raw.events GROUP BY k"),
    (
        "has a window function",
        "SELECT k, count(*) FROM (SELECT k, row_number() OVER (PARTITION BY n) AS r FROM raw.events) WHERE r = 1 \
         GROUP BY k",
    ),
    ("has SELECT DISTINCT", "SELECT DISTINCT count(*) FROM raw.events GROUP BY k"),
    ("has SELECT DISTINCT", "SELECT count(*) FROM (SELECT DISTINCT k, n FROM raw.events)"),
    ("has SELECT DISTINCT", "SELECT DISTINCT k FROM raw.events"),
    ("has UNION", "SELECT count(*) FROM raw.events UNION ALL SELECT count(*) FROM raw.others"),
    ("has UNION", "SELECT count(*) FROM (SELECT k FROM raw.events UNION ALL SELECT k FROM names)"),
    ("has UNION", "SELECT count(*) FROM raw.events INTERSECT SELECT count(*) FROM raw.others"),
    ("has GROUPING SETS", "SELECT k, b, count(*) FROM raw.events GROUP BY ROLLUP (k, b)"),
    (
        "joins after its aggregate",
        "SELECT * FROM (SELECT k, count(*) AS c FROM raw.events GROUP BY k) x JOIN names USING (k)",
    ),
    ("reads no stream", "SELECT count(*) FROM names"),
    ("reads the streams events, others", "SELECT count(*) FROM raw.events e JOIN raw.others o USING (id)"),
    ("more than once", "SELECT count(*) FROM raw.events e JOIN raw.events o ON e.id = o.n"),
    ("more than once", "SELECT count(*) FROM raw.events WHERE n > (SELECT avg(n) FROM raw.events)"),
    ("in a subquery", "SELECT count(*) FROM names WHERE k IN (SELECT k FROM raw.events)"),
    ("keeps rows of a reference table", "SELECT count(*) FROM names LEFT JOIN raw.events e USING (k)"),
    ("keeps rows of a reference table", "SELECT count(*) FROM raw.events e FULL JOIN names USING (k)"),
    ("uses now()", "SELECT count(*) FROM raw.events WHERE at < now()"),
    ("uses random()", "SELECT sum(n * random()) FROM raw.events"),
    ("has another value each time", "SELECT count(*) FROM raw.events WHERE n = $1"),
];

#[tokio::test]
async fn what_cannot_be_merged_is_refused_with_the_reason() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    for (reason, sql) in REFUSED {
        match LambdaView::split("daily", plan(&ctx, sql).await) {
            Ok(_) => panic!("taken, and should be refused for {reason:?}: {sql}"),
            Err(error) => {
                let message = error.to_string();
                assert!(message.starts_with("view daily "), "{sql}: {message}");
                assert!(message.contains(reason), "{sql}: wanted {reason:?}, refused with {message:?}");
            }
        }
    }
}

#[tokio::test]
async fn order_dependent_functions_are_refused_without_an_order() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    for function in ["array_agg_limit(n, 2)", "first_value(n)", "last_value(n)", "any_value(n)"] {
        let sql = format!("SELECT k, {function} FROM raw.events GROUP BY k");
        let refused = LambdaView::split("daily", plan(&ctx, &sql).await).unwrap_err();
        assert!(matches!(refused, ViewError::OrderDependent { .. }), "{sql}: {refused}");
    }
}

#[tokio::test]
async fn states_without_a_column_of_the_view_are_refused() {
    let engine = engine();
    let ctx = session_with(&engine, vec![]);
    let view = LambdaView::split("daily", plan(&ctx, "SELECT k, sum(n) AS total FROM raw.events GROUP BY k").await);
    let states = Arc::new(Schema::new(vec![Field::new("k", DataType::Utf8, true)]));
    let refused = view.unwrap().merge_plan(mem(states, vec![])).unwrap_err();
    assert!(matches!(&refused, ViewError::StateColumn { column, .. } if column == "total"), "{refused}");
}
