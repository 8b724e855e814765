//! Random definitions of views, out of parts whose merge must be exactly the query.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};

use crate::model::Unfit;

/// Group keys, with the name of each.
const KEYS: [(&str, &str); 9] = [
    ("page", "k_page"),
    ("who", "k_who"),
    ("date_trunc('hour', at)", "k_hour"),
    ("date_trunc('day', at)", "k_day"),
    ("ms % 3", "k_rest"),
    ("upper(page)", "k_loud"),
    ("CASE WHEN ok THEN 'yes' ELSE 'no' END", "k_case"),
    ("ok", "k_ok"),
    ("coalesce(who, '-')", "k_name"),
];

/// Aggregates that may carry a FILTER.
const AGGREGATES: [&str; 32] = [
    "count(*)",
    "count(ms)",
    "sum(ms)",
    "avg(ms)",
    "min(ms)",
    "max(ms)",
    "min(at)",
    "max(at)",
    "sum(cents)",
    "avg(cents)",
    "min(cents)",
    "sum(share)",
    "max(share)",
    "max(who)",
    "min(page)",
    "bool_and(ok)",
    "bool_or(ok)",
    "bit_and(ms)",
    "bit_xor(ms)",
    "count(DISTINCT who)",
    "count(DISTINCT ms)",
    "sum(DISTINCT ms)",
    "approx_distinct(who)",
    "median(ms)",
    "stddev(ms)",
    "var_pop(ms)",
    "first_value(ms ORDER BY at, id)",
    "last_value(who ORDER BY at, id)",
    "array_agg_limit(ms, 5 ORDER BY id)",
    "multiset_digest(id)",
    "sum(CASE WHEN ok THEN ms ELSE 0 END)",
    "max(CASE WHEN ms > 500 THEN page END)",
];

/// Expressions over aggregates.
const EXPRESSIONS: [&str; 5] = [
    "sum(ms) * 1.0 / count(*)",
    "coalesce(max(ms), 0) - coalesce(min(ms), 0)",
    "count(*) > 2",
    "CASE WHEN bool_or(ok) THEN count(ms) ELSE -1 END",
    "1 + 2 * count(DISTINCT page)",
];

const FILTERS: [&str; 4] = ["ok", "ms > 500", "who IS NOT NULL", "page <> 'p0'"];
const CONDITIONS: [&str; 5] = [
    "ms IS NOT NULL",
    "ok",
    "page IN ('p0', 'p1')",
    "ms % 2 = 0 OR who IS NULL",
    "at >= TIMESTAMPTZ '2026-01-01T00:00:00Z'",
];
const HAVINGS: [&str; 4] = ["count(*) > 1", "max(ms) > 300", "count(DISTINCT who) > 1", "sum(cents) >= 0"];

/// A record of nought milliseconds cannot be counted by this one, and so by none.
const DIVIDES: &str = "sum(1000 / ms)";

/// How a view is defined.
#[derive(Debug, Clone)]
pub struct Shape {
    keys: Vec<usize>,
    columns: Vec<String>,
    condition: Option<&'static str>,
    having: Option<&'static str>,
    unnests: bool,
    divides: bool,
}

impl Shape {
    pub fn random(rng: &mut StdRng) -> Self {
        let keys = [0, 1, 1, 1, 2, 3][rng.random_range(0..6)];
        let keys = (0..KEYS.len()).choose_multiple(rng, keys);
        let mut columns: Vec<String> = (0..rng.random_range(1..=4)).map(|_| column(rng)).collect();
        if rng.random_ratio(1, 4) {
            columns.push((*EXPRESSIONS.choose(rng).unwrap()).to_owned());
        }
        let some = |rng: &mut StdRng, of: &[&'static str], one_in: u32| {
            rng.random_ratio(1, one_in).then(|| *of.choose(rng).unwrap())
        };
        let condition = some(rng, &CONDITIONS, 4);
        let having = some(rng, &HAVINGS, 4);
        let unnests = rng.random_ratio(1, 10);
        let divides = condition.is_none() && !unnests && rng.random_ratio(1, 12);
        if divides {
            columns.push(DIVIDES.to_owned());
        }
        Self { keys, columns, condition, having, unnests, divides }
    }

    /// The query over `raw.<stream>`.
    pub fn query(&self, stream: &str) -> String {
        let mut keys: Vec<(String, String)> =
            self.keys.iter().map(|key| (KEYS[*key].0.to_owned(), KEYS[*key].1.to_owned())).collect();
        let from = match self.unnests {
            false => format!("raw.{stream}"),
            true => {
                keys.push(("tag".to_owned(), "k_tag".to_owned()));
                format!(
                    "(SELECT unnest(tags) AS tag, id, page, who, at, ms, cents, share, ok FROM raw.{stream}) AS t"
                )
            }
        };
        let mut columns: Vec<String> = keys.iter().map(|(expr, name)| format!("{expr} AS {name}")).collect();
        columns.extend(self.columns.iter().enumerate().map(|(n, column)| format!("{column} AS c{n}")));
        let mut sql = format!("SELECT {} FROM {from}", columns.join(", "));
        if let Some(condition) = self.condition {
            sql += &format!(" WHERE {condition}");
        }
        if !keys.is_empty() {
            let keys: Vec<&str> = keys.iter().map(|(expr, _)| expr.as_str()).collect();
            sql += &format!(" GROUP BY {}", keys.join(", "));
        }
        if let Some(having) = self.having {
            sql += &format!(" HAVING {having}");
        }
        sql
    }

    /// With which records the view cannot be computed.
    pub fn unfit(&self) -> Option<Unfit> {
        self.divides.then_some(|record| record.ms == Some(0))
    }
}

fn column(rng: &mut StdRng) -> String {
    let aggregate = AGGREGATES.choose(rng).unwrap();
    match rng.random_ratio(1, 4) {
        true => format!("{aggregate} FILTER (WHERE {})", FILTERS.choose(rng).unwrap()),
        false => (*aggregate).to_owned(),
    }
}

/// The statement in a file of `sql/views`.
pub fn view_sql(name: &str, query: &str) -> String {
    format!("CREATE MATERIALIZED VIEW {name} WITH (refresh_every = '1 hour') AS {query};\n")
}
