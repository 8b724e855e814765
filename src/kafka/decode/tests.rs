#![allow(clippy::unwrap_used)]
use datafusion::arrow::util::pretty::pretty_format_columns;
use datafusion::logical_expr::{Operator, lit};
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_expr::expressions::{BinaryExpr, col};

use super::*;
use crate::catalog::ddl::{Definition, parse};
use crate::position::{Offset, PartitionId};

const DDL: &str = "CREATE STREAM s (id UUID PRIMARY KEY, page TEXT NOT NULL, at TIMESTAMPTZ, n INTEGER, big BIGINT, \
                   price DECIMAL(9, 3), ok BOOLEAN, d DATE, items STRUCT<sku TEXT, n BIGINT>[]) WITH (topic = 't')";

fn stream() -> Arc<Stream> {
    match parse("s.sql", DDL).unwrap().remove(0) {
        Definition::Stream(stream) => Arc::new(stream),
        other => panic!("not a stream: {other:?}"),
    }
}

fn batch(payloads: &[Option<&[u8]>]) -> RawBatch {
    let mut batch = RawBatch::default();
    for (offset, payload) in (0..).zip(payloads) {
        let from = batch.bytes.len();
        batch.bytes.extend_from_slice(payload.unwrap_or_default());
        let payload = payload.map(|_| from..batch.bytes.len());
        let record = RawRecord { partition: PartitionId(3), offset: Offset(offset), produced_at: Some(7), payload };
        batch.records.push(record);
        batch.positions.insert(PartitionId(3), Offset(offset + 1));
    }
    batch
}

fn decode(payloads: &[Option<&[u8]>]) -> Decoded {
    let stream = stream();
    let schema = stream.record_schema();
    let expr = BinaryExpr::new(
        col("n", &schema).unwrap(),
        Operator::Lt,
        Arc::new(Literal::new(match lit(10_i32) {
            datafusion::prelude::Expr::Literal(value, _) => value,
            other => panic!("{other}"),
        })),
    );
    let check = CompiledCheck { name: "small".into(), sql: "n < 10".into(), expr: Arc::new(expr) };
    Decoder::new(stream, vec![check], 400).decode(&mut batch(payloads), 9).unwrap()
}

fn column(batch: &RecordBatch, name: &str) -> Vec<String> {
    let column = Arc::clone(batch.column_by_name(name).unwrap());
    let text = pretty_format_columns(name, &[column]).unwrap().to_string();
    let rows: Vec<&str> = text.lines().collect();
    rows[3..rows.len() - 1].iter().map(|l| l.trim_matches(['|', ' ']).to_owned()).collect()
}

const ID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

#[test]
fn values_arrive_in_their_columns_and_undeclared_fields_are_kept() {
    let full = format!(
        r#"{{"id":"{}","page":"a\"b","at":"2026-01-31T12:00:00.5+02:00","n":5,"big":-9007199254740993,"price":12.5,
        "ok":true,"d":"2026-02-28","items":[{{"sku":"x","n":1,"more":[1]}},null],"new":{{"a": [1,2]}},"z":null}}"#,
        ID.to_uppercase()
    );
    let sparse = format!(r#"{{"page":"p","id":"{ID}"}}"#);
    let decoded = decode(&[Some(full.as_bytes()), Some(sparse.as_bytes())]);
    assert_eq!(decoded.rejects.num_rows(), 0, "{:?}", column(&decoded.rejects, "_reason"));
    let expect =
        |name: &str, values: [&str; 2]| assert_eq!(column(&decoded.sound_records(), name), values, "{name}");
    expect("id", [ID, ID]);
    expect("page", ["a\"b", "p"]);
    expect("at", ["2026-01-31T10:00:00.500Z", ""]);
    expect("big", ["-9007199254740993", ""]);
    expect("price", ["12.500", ""]);
    expect("d", ["2026-02-28", ""]);
    expect("items", ["[{sku: x, n: 1}, ]", ""]);
    expect("_extra", [r#"{"new":{"a": [1,2]},"z":null}"#, ""]);
    expect("_offset", ["0", "1"]);
    expect("_partition", ["3", "3"]);
}

#[test]
fn a_record_that_breaks_a_rule_is_set_aside_with_the_reason() {
    let long = format!(r#"{{"id":"{ID}","page":"{}"}}"#, "x".repeat(500));
    let with = |rest: &str| format!(r#"{{"id":"{ID}","page":"p",{rest}}}"#).into_bytes();
    let cases: Vec<(Option<Vec<u8>>, &str)> = vec![
        (None, "the record has no value"),
        (Some(b"\xff\xfe".to_vec()), "not UTF-8: invalid utf-8 sequence of 1 bytes from index 0"),
        (Some(b"{\"id\":".to_vec()), "field id: EOF while parsing a value"),
        (Some(b"[1]".to_vec()), "invalid type: sequence, expected a JSON object"),
        (Some(b"{} x".to_vec()), "trailing characters"),
        (Some(br#"{"page":"p"}"#.to_vec()), "field id: required, but missing"),
        (Some(format!(r#"{{"id":"{ID}","page":null}}"#).into_bytes()), "field page: required, but null"),
        (Some(br#"{"id":"no","page":"p"}"#.to_vec()), "field id: invalid value: string \"no\", expected a UUID"),
        (Some(with(r#""n":"5""#)), "field n: invalid type: string \"5\", expected a whole number"),
        (Some(with(r#""n":2147483648"#)), "field n: invalid value: integer `2147483648`"),
        (Some(with(r#""n":1.5"#)), "field n: invalid type: floating point `1.5`"),
        (Some(with(r#""big":9223372036854775808"#)), "field big: invalid type: floating point"),
        (Some(with(r#""at":"2026-01-31 12:00""#)), "field at: invalid value"),
        (Some(with(r#""at":"2026-02-30T12:00:00Z""#)), "field at: invalid value"),
        (Some(with(r#""price":0.0001"#)), "field price: 0.0001 is not a decimal number that fits"),
        (Some(with(r#""items":[{"n":"x"}]"#)), "field items: field n: invalid type"),
        (Some(with(r#""page":"q""#)), "field page: appears twice"),
        (Some(with(r#""n":10"#)), "check small fails: n < 10"),
        (Some(long.into_bytes()), "the record has 555 bytes, more than ingest.record_bytes_max 400"),
    ];
    let good = with(r#""n":9"#);
    let mut payloads: Vec<Option<&[u8]>> = cases.iter().map(|(payload, _)| payload.as_deref()).collect();
    payloads.push(Some(&good));
    let decoded = decode(&payloads);
    assert_eq!(column(&decoded.sound_records(), "_offset"), [cases.len().to_string()]);
    let reasons = column(&decoded.rejects, "_reason");
    assert_eq!(reasons.len(), cases.len());
    for (reason, (_, expected)) in reasons.iter().zip(&cases) {
        assert!(reason.starts_with(expected), "{reason:?} should begin with {expected:?}");
    }
    let raw = decoded.rejects.column_by_name("_raw").unwrap();
    assert_eq!(raw.null_count(), 1);
    assert_eq!(column(&decoded.rejects, "_offset")[17], "17");
}

#[test]
fn a_batch_without_records_still_moves_positions() {
    let mut raw = batch(&[]);
    raw.positions.insert(PartitionId(1), Offset(8));
    let decoded = Decoder::new(stream(), Vec::new(), 100).decode(&mut raw, 0).unwrap();
    assert_eq!((decoded.records.num_rows(), decoded.positions[&PartitionId(1)]), (0, Offset(8)));
}
