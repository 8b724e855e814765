#![allow(clippy::unwrap_used)]
use datafusion::arrow::array::ArrayRef;
use proptest::prelude::*;

use super::super::by_serde as whole_by_serde;
use super::*;
use crate::catalog::ddl::{Definition, parse};
use crate::kafka::columns::ColumnBuilder;

const DDL: &str = "CREATE STREAM s (id UUID PRIMARY KEY, page TEXT NOT NULL, at TIMESTAMPTZ, n INTEGER, big BIGINT, \
                   price DECIMAL(9, 3), share DOUBLE PRECISION, ok BOOLEAN, d DATE, words TEXT[], \
                   items STRUCT<sku TEXT, n BIGINT, at TIMESTAMPTZ>[]) WITH (topic = 't')";
const ID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

fn columns() -> Vec<Column> {
    match parse("s.sql", DDL).unwrap().remove(0) {
        Definition::Stream(stream) => stream.columns.clone(),
        other => panic!("not a stream: {other:?}"),
    }
}

fn built(columns: &[Column], slots: &[Slot<'_>]) -> Vec<ArrayRef> {
    let build = |(column, slot): (&Column, &Slot<'_>)| {
        let mut builder = ColumnBuilder::new(&column.kind, 1);
        builder.append(slot);
        builder.finish()
    };
    columns.iter().zip(slots).map(build).collect()
}

/// Whether it was read; what was read is what serde reads.
fn is_read(text: &str) -> bool {
    let columns = columns();
    let (mut slots, mut expected) = (Vec::new(), Vec::new());
    let read = row(text, &columns, &mut slots).is_some();
    if read {
        let undeclared = whole_by_serde(text, &columns, &mut expected);
        assert_eq!(undeclared.unwrap_or_else(|error| panic!("{text}: {error}")), None, "{text}");
        assert_eq!(built(&columns, &slots), built(&columns, &expected), "{text}");
        let absent = |slots: &[Slot<'_>]| slots.iter().map(|slot| *slot == Slot::Absent).collect::<Vec<_>>();
        assert_eq!(absent(&slots), absent(&expected), "{text}");
    }
    read
}

#[test]
fn the_usual_forms_are_read() {
    let all = format!(
        r#"{{"id":"{ID}","page":"ä \u007f","at":"2026-01-31T12:00:00.5Z","n":-5,"big":9007199254740993,"price":12.5,
            "share":-0.25,"ok":false,"d":"2026-02-28","words":["a",null,""],
            "items":[{{"sku":"x","n":1}}, {{ }},null,{{"at":"2026-01-31T12:00:00+02:00"}}]}}"#
    )
    .replace("\\u007f", "\u{7f}");
    assert!(is_read(&all), "{all}");
    for text in [
        "{}",
        " {\t\"page\" : \"p\" ,\r\n \"n\" : 0 } ",
        r#"{"n":null,"page":null,"items":null,"words":[],"id":null,"price":null,"ok":null}"#,
        r#"{"price":"12.5","n":2147483647,"big":-999999999999999999,"share":3}"#,
        r#"{"page":"twelve bytes","id":"00000000-0000-0000-0000-000000000000"}"#,
    ] {
        assert!(is_read(text), "{text}");
    }
}

/// Serde finds out what these are: some are records, some are not.
#[test]
fn what_is_unusual_is_left_alone() {
    let long = format!(r#"{{"page":"{}"}}"#, "\\".repeat(9));
    let upper = format!(r#"{{"id":"{}"}}"#, ID.to_uppercase());
    let unclosed = format!(r#"{{"id":"{ID}"#);
    for text in [
        "",
        "{",
        "{}{",
        "[]",
        "null",
        r#"{"page":"a\"b"}"#,
        "{\"page\":\"a\nb\"}",
        "{\"page\":\"a whole word\u{1}\"}",
        r#"{"page":"p","page":"q"}"#,
        r#"{"new":1}"#,
        r#"{"page":1}"#,
        r#"{"page":"p",}"#,
        r#"{"page":"p" "n":1}"#,
        r#"{"page":"p""n":1}"#,
        r#"{,}"#,
        r#"{"n":01}"#,
        r#"{"n":-}"#,
        r#"{"n":-0}"#,
        r#"{"n":+1}"#,
        r#"{"n":1.0}"#,
        r#"{"n":1e3}"#,
        r#"{"n":2147483648}"#,
        r#"{"big":9223372036854775808}"#,
        r#"{"price":01}"#,
        r#"{"price":1.}"#,
        r#"{"price":.5}"#,
        r#"{"price":1e2}"#,
        r#"{"price":0.0001}"#,
        r#"{"price":"\u0031"}"#,
        r#"{"ok":tru}"#,
        r#"{"ok":nul}"#,
        r#"{"ok":truex}"#,
        r#"{"d":"2026-02-30"}"#,
        r#"{"at":"2026-01-31"}"#,
        r#"{"words":[1]}"#,
        r#"{"words":["a",]}"#,
        r#"{"words":["a"}"#,
        r#"{"items":[{"sku":"x","more":1}]}"#,
        r#"{"items":[{"sku":"x","sku":"y"}]}"#,
        r#"{"id":"6ba7b8109dad11d180b400c04fd430c8"}"#,
        r#"{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430c"}"#,
        r#"{"id":"6ba7b810-9dad-11d1-80b4-00c04fd430cg"}"#,
        r#"{"id":"6ba7b810-9dad-11d1-80b4000c04fd430c8"}"#,
        &long,
        &upper,
        &unclosed,
    ] {
        assert!(!is_read(text), "{text}");
    }
}

/// A name in the DDL may hold what a name in JSON cannot.
#[test]
fn names_that_need_escapes_are_left_to_serde() {
    let column = |name: &str, kind| Column { name: name.to_owned(), kind, required: false };
    assert!(can_read(&columns()) && can_read(&[column("größe in µm", ColumnType::Text)]));
    for name in ["a\"b", "a\\b", "a\nb"] {
        let inner = vec![column("x", ColumnType::Text), column(name, ColumnType::Int64)];
        assert!(!can_read(&inner));
        let list = ColumnType::List(Box::new(ColumnType::Struct(inner)));
        assert!(!can_read(&[column("list", list)]));
    }
}

#[test]
fn a_name_is_not_another_that_begins_like_it() {
    let column = |name: &str| Column { name: name.to_owned(), kind: ColumnType::Int64, required: false };
    let names = ["a", "a_name_of_16_byt", "a_name_of_16_byte", ""];
    let columns = names.map(column);
    for (index, name) in names.into_iter().enumerate() {
        let (text, mut slots) = (format!(r#"{{"{name}":7}}"#), Vec::new());
        row(&text, &columns, &mut slots).unwrap();
        assert_eq!(slots.iter().position(|slot| *slot == Slot::Int(7)), Some(index));
    }
    for name in ["b", "a_name_of_16_bytz", "a_name_of_16_by", "aa", "a_name_of_17_byte", "a_name_of_16_bytes"] {
        let text = format!(r#"{{"{name}":7}}"#);
        assert!(row(&text, &columns, &mut Vec::new()).is_none(), "{name}");
    }
}

/// Pieces of records: put together at random they give records, and what almost is one.
fn pieces() -> impl Strategy<Value = String> {
    let known = "\"(id|page|at|n|big|price|share|ok|d|words|items|sku|new)\"";
    let value = prop_oneof![
        4 => Just(format!("\"{ID}\"")),
        4 => "\"[a-zäö \\x00-\\x22\\\\]{0,20}\"",
        4 => "-?[0-9]{1,20}",
        3 => "-?[0-9]{1,4}\\.?[0-9]{0,4}(e[0-9])?",
        2 => "\"20[0-9]{2}-[01][0-9]-[0-3][0-9](T1[0-9]:00:00(\\.[0-9]{1,7})?(Z|\\+01:00))?\"",
        2 => "(true|false|null|tru|\\[\\]|\\{\\})",
        1 => "\\[(\"[a-z]{0,3}\",?|null,?){0,3}\\]",
        1 => "\\[\\{\"(sku|n|at)\":(null|1|\"x\"|\"2026-01-31T12:00:00Z\")\\}\\]",
    ];
    let field = (known, "[ \n]{0,2}:?", value, "( ?, ?|)")
        .prop_map(|(key, colon, value, comma)| format!("{key}{colon}{value}{comma}"));
    let fields = proptest::collection::vec(field, 0..5);
    ("[ \t]?", "\\{?", fields, "\\}?", "[ x]?")
        .prop_map(|(space, open, fields, close, end)| format!("{space}{open}{}{close}{end}", fields.concat()))
}

/// A sound record of some fields, in any order.
fn records() -> impl Strategy<Value = String> {
    let fields = vec![
        format!("\"id\":\"{ID}\""),
        "\"page\": \"a page with a long name\"".to_owned(),
        "\"at\":\"2026-01-31T12:00:00.123456Z\"".to_owned(),
        "\"n\":42".to_owned(),
        "\"big\" :-7".to_owned(),
        "\"price\":0.125".to_owned(),
        "\"share\":0.1".to_owned(),
        "\"ok\":true".to_owned(),
        "\"d\":\"2026-01-31\"".to_owned(),
        "\"words\":[ \"x\", null ]".to_owned(),
        "\"items\":[{\"sku\":\"s\",\"at\":null}]".to_owned(),
    ];
    proptest::sample::subsequence(fields, 0..=11)
        .prop_shuffle()
        .prop_map(|fields| format!("{{{}}}", fields.join(",")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_read_is_what_serde_reads(text in pieces()) {
        is_read(&text);
    }

    #[test]
    fn sound_records_are_read(text in records()) {
        prop_assert!(is_read(&text), "{}", text);
    }

    /// A byte of a record is another one.
    #[test]
    fn damaged_records_are_read_as_serde_reads_them(text in records(), at in any::<prop::sample::Index>(), byte in 0_u8..128) {
        let mut bytes = text.into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            is_read(&text);
        }
    }

    #[test]
    fn the_end_of_a_text_is_found(text in "[ -~\\x00-\\x1fäß\u{7f}]{0,40}") {
        let bytes = text.as_bytes();
        let first = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20));
        let expected = first.filter(|at| bytes[*at] == b'"');
        prop_assert_eq!(plain_length(bytes), expected);
    }
}
