#![allow(clippy::unwrap_used)]

use datafusion::common::ScalarValue;

use super::parameter::Fallback;
use super::*;

const WHOLE: &str = "\
-- GET /pages/{page}/days
-- about: How often one page was seen: on each day,
--        the last one first.
-- path page TEXT: the page's name
-- query since DATE DEFAULT '2026-01-01': the first day
-- query until TIMESTAMPTZ DEFAULT NULL: a time: any
-- query limit BIGINT BETWEEN 1 AND 1000 DEFAULT 100: at most so many days
-- query rate DECIMAL(18, 9): what a view brings
-- returns: rows
SELECT day, total * $rate AS due
FROM   page_days
WHERE  page = $page AND day >= $since AND ($until IS NULL OR at < $until) AND page <> '$nothing'
ORDER  BY day DESC
LIMIT  $limit;
";

#[test]
fn a_header_says_where_and_what() {
    let endpoint = parse("days.sql", WHOLE).unwrap();
    assert_eq!(endpoint.route.to_string(), "/pages/{page}/days");
    assert_eq!(endpoint.about, "How often one page was seen: on each day, the last one first.");
    assert_eq!((endpoint.returns, endpoint.line), (Returns::Rows, 10));
    let names: Vec<&str> = endpoint.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    assert_eq!(names, ["page", "since", "until", "limit", "rate"]);
    let [page, since, until, limit, rate] = endpoint.parameters.as_slice() else { panic!("{names:?}") };
    assert_eq!((page.place, page.about.as_str(), page.default.clone()), (Place::Path, "the page's name", None));
    assert_eq!(since.default, Some(Fallback::Text("2026-01-01".to_owned())));
    assert_eq!((until.default.clone(), until.about.as_str()), (Some(Fallback::Null), "a time: any"));
    assert!(until.absent().unwrap().unwrap().is_null());
    assert_eq!(limit.between, Some((1, 1000)));
    assert_eq!(rate.sql_type(), "DECIMAL(18, 9)");
    let sql = endpoint.query.to_string();
    assert!(sql.contains("total * $5") && sql.contains("page = $1") && sql.contains("LIMIT $4"), "{sql}");
    assert!(sql.contains("'$nothing'"), "texts are left alone: {sql}");
}

#[test]
fn what_is_wrong_in_a_header_is_told_with_its_place() {
    for (from, to, told) in [
        ("GET /pages", "POST /pages", "days.sql:1:4: an endpoint begins with a line -- GET /route"),
        ("/pages/{page}/days", "pages/{page}", "days.sql:1:4: a route begins with /"),
        ("/pages/{page}/days", "/pages/{page}/", "days.sql:1:4: a route has no empty segments"),
        ("/pages/{page}/days", "/{page}/{page}", "days.sql:1:4: the route has {page} twice"),
        ("/pages/{page}/days", "/a b", "days.sql:1:4: segment \"a b\""),
        ("/pages/{page}/days", "/sql", "days.sql:1:4: /sql belongs to the server"),
        ("/pages/{page}/days", "/days", "days.sql:4:4: parameter page: the route has no {page}"),
        ("-- about", "-- abuot", "days.sql:2:4: unknown key abuot; a header has about, path, query and returns"),
        ("-- about:", "-- about", "days.sql:2:4: write the line as -- about: text"),
        ("-- returns: rows\n", "", "days.sql:1:4: the header says nothing about how much"),
        ("returns: rows", "returns: many", "days.sql:9:4: returns is row or rows, not \"many\""),
        ("-- returns: rows", "-- returns: rows\n-- returns: rows", "days.sql:10:4: returns is said twice"),
        ("path page TEXT", "path page TEXTURE", "days.sql:4:4: parameter page: type TEXTURE is not understood"),
        ("path page TEXT", "path Page TEXT", "days.sql:4:4: parameter Page: a name is lower-case"),
        ("path page TEXT", "path page TEXT DEFAULT 'a'", "days.sql:4:4: parameter page: a parameter of the route"),
        ("path page TEXT: the page's name\n", "path\n", "days.sql:4:4: write the line as -- key: text"),
        ("query rate", "query format", "days.sql:8:4: parameter format: this name belongs to the server"),
        ("query rate", "query limit", "days.sql:8:4: parameter limit: is declared twice"),
        ("query rate", "query rates", "days.sql:10:21: parameter $rate is not declared; the header declares $page"),
        ("$rate", "2", "days.sql:8:4: parameter rate is declared and not used"),
        ("DEFAULT '2026-01-01'", "DEFAULT 'soon'", "days.sql:5:4: parameter since: DEFAULT must be a day such as"),
        ("BETWEEN 1 AND 1000", "BETWEEN 9 AND 1", "days.sql:7:4: parameter limit: BETWEEN takes two integers"),
        ("DEFAULT 100", "DEFAULT 1001", "days.sql:7:4: parameter limit: DEFAULT must be from 1 to 1000, not 1001"),
        ("DATE DEFAULT", "DATE BETWEEN 1 AND 2 DEFAULT", "days.sql:5:4: parameter since: BETWEEN is for INTEGER"),
        ("TIMESTAMPTZ", "TEXT[]", "days.sql:6:4: parameter until: a parameter is no array"),
        ("ORDER  BY day DESC\n", "", "days.sql:10:1: what returns rows needs an ORDER BY"),
        ("LIMIT  $limit;", "LIMIT  $limit; SELECT 1", "days.sql:14:16: a file has one endpoint and one SELECT"),
        ("SELECT day", "SELEC day", "days.sql:10:1: "),
        ("FROM   page_days", "FROM", "days.sql:"),
    ] {
        let text = WHOLE.replacen(from, to, 1);
        assert_ne!(text, WHOLE, "{from}");
        let fault = parse("days.sql", &text).unwrap_err().to_string();
        assert!(fault.starts_with(told), "{to}: {fault}");
    }
    let fault = |text: &str| parse("x.sql", text).unwrap_err().to_string();
    assert!(fault("").starts_with("x.sql:1:1: an endpoint begins"));
    assert!(fault("SELECT 1").starts_with("x.sql:1:1: an endpoint begins"));
    let other = "-- GET /x\n-- about: x\n-- returns: row\nDELETE FROM t";
    assert_eq!(fault(other), "x.sql:4:1: an endpoint is answered by one SELECT");
}

#[test]
fn routes_overlap_when_one_path_could_mean_both() {
    let route = |text: &str| Route::parse(text).unwrap();
    let overlap = |a: &str, b: &str| route(a).overlaps(&route(b));
    assert!(overlap("/a/{x}", "/a/b"));
    assert!(overlap("/{x}/b", "/a/{y}"));
    assert!(overlap("/a", "/a"));
    assert!(!overlap("/a/{x}", "/a"));
    assert!(!overlap("/a/{x}/c", "/a/{x}/d"));
    let path = |text: &str| text.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
    let given = path("/a/1/c");
    assert_eq!(route("/a/{x}/c").values(&given), Some(vec![("x", "1")]));
    assert_eq!(route("/a/{x}/c").values(&path("/a//c")), None);
    assert_eq!(route("/a/{x}").values(&given), None);
}

#[test]
fn values_are_read_by_their_type_or_refused() {
    let read = |sql_type: &str, text: &str| {
        let header = format!("-- GET /x\n-- about: x\n-- query v {sql_type}: v\n-- returns: row\nSELECT $v AS v");
        parse("x.sql", &header).unwrap().parameters[0].value(text)
    };
    for (sql_type, text, value) in [
        ("TEXT", "", ScalarValue::from("")),
        ("INTEGER", "-7", ScalarValue::Int32(Some(-7))),
        ("BIGINT", "9223372036854775807", ScalarValue::Int64(Some(i64::MAX))),
        ("BOOLEAN", "true", ScalarValue::Boolean(Some(true))),
        ("DOUBLE PRECISION", "1e3", ScalarValue::Float64(Some(1000.0))),
        ("DECIMAL(5, 2)", "-1.50", ScalarValue::Decimal128(Some(-150), 5, 2)),
        ("DECIMAL(5, 2)", "999.990", ScalarValue::Decimal128(Some(99_999), 5, 2)),
        ("DATE", "1970-01-02", ScalarValue::Date32(Some(1))),
        (
            "TIMESTAMPTZ",
            "1970-01-01T01:00:01+01:00",
            ScalarValue::TimestampMicrosecond(Some(1_000_000), Some("UTC".into())),
        ),
        ("UUID", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", ScalarValue::from("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ] {
        assert_eq!(read(sql_type, text).unwrap(), value, "{sql_type} {text}");
    }
    for (sql_type, texts) in [
        ("INTEGER", vec!["", "1.0", "2147483648", " 1", "x"]),
        ("BIGINT", vec!["9223372036854775808"]),
        ("BOOLEAN", vec!["t", "TRUE", "1"]),
        ("DOUBLE PRECISION", vec!["NaN", "inf", ""]),
        ("DECIMAL(5, 2)", vec!["1.234", "1000", ".5", "1.", "1e2", "--1", ""]),
        ("DATE", vec!["2026-02-30", "2026-1-1x"]),
        ("TIMESTAMPTZ", vec!["2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00:00 00:00"]),
        ("UUID", vec!["x"]),
    ] {
        for text in texts {
            assert!(read(sql_type, text).unwrap_err().starts_with("must be "), "{sql_type} {text}");
        }
    }
}
