//! A month is billed by the scripts in `sql/billing`, and held against a computation of its own: refusals, the close to the minor
//! unit, what an auditor traces, late views and later verdicts, and what enforced views refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokio_postgres::Client;

use viewledger::app::recompute::recompute;
use viewledger::storage::Storage;

use crate::psql::Psql;
use crate::server::Server;
use crate::world::World;

pub const VIEWS_TOPIC: &str = "video-views";
pub const MONTH: &str = "2026-01";

pub fn sql(file: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// With what is shipped, as far as it is about money.
pub async fn world() -> World {
    let world = World::bare().await;
    for file in [
        "streams/video_views.sql",
        "streams/ad_views.sql",
        "tables/billing.sql",
        "views/billable_views.sql",
        "views/ad_revenue_daily.sql",
        "views/billing.sql",
        "quality/billing.sql",
        "functions/audit.sql",
        "verify/billing.sql",
    ] {
        world.write_sql(file, &sql(file));
    }
    for topic in [VIEWS_TOPIC, "ad-views"] {
        world.kafka.create_topic(topic, 2).await;
    }
    world
}

/// A view as it was produced, and what is known of it.
#[derive(Debug, Clone)]
pub struct View {
    pub id: String,
    pub video: usize,
    day: u32,
    country: &'static str,
    eligible: bool,
}

impl View {
    fn json(&self) -> Vec<u8> {
        format!(
            r#"{{"event_id":"{}","video_id":"v{}","user_id":"u","timestamp":"2026-01-{:02}T12:00:00Z","geo_location":"{}","device_type":"tv","quality":"720p","revenue_eligible":{}}}"#,
            self.id, self.video, self.day, self.country, self.eligible
        )
        .into_bytes()
    }
}

pub fn views(prefix: u32, count: usize) -> Vec<View> {
    let view = |n: usize| View {
        id: format!("{prefix:08x}-0000-4000-8000-{n:012x}"),
        video: (n * n + n / 3) % 7,
        day: 1 + (n % 31) as u32,
        country: ["DE", "US", "JP"][n % 3],
        eligible: !n.is_multiple_of(5),
    };
    (0..count).map(view).collect()
}

pub fn write(world: &World, views: &[View]) {
    let record = |(n, view): (usize, &View)| ((n % 2) as i32, Some(view.json()));
    world.kafka.write_to(VIEWS_TOPIC, views.iter().enumerate().map(record).collect::<Vec<_>>());
}

/// Videos 0 to 4 belong to ann, who is paid in USD; 5 and 6 to bob, who is paid in JPY.
fn owner(video: usize) -> (&'static str, &'static str) {
    if video < 5 { ("ann", "USD") } else { ("bob", "JPY") }
}

/// In billionths: USD by default 0.0012345, from the 15th 0.002; from Germany 0.0033; video 3 always 0.01. JPY 0.155.
fn rate(view: &View) -> (&'static str, i128) {
    match (owner(view.video).1, view.video, view.country, view.day) {
        ("JPY", ..) => ("jpy", 155_000_000),
        (_, 3, ..) => ("v3", 10_000_000),
        (_, _, "DE", _) => ("de", 3_300_000),
        (_, _, _, 15..) => ("usd2", 2_000_000),
        _ => ("usd1", 1_234_500),
    }
}

pub const TABLES: &str = "
INSERT INTO billing.currencies VALUES ('USD', 100, 0.01), ('JPY', 1, 1);
INSERT INTO billing.payees VALUES ('ann', 'USD'), ('bob', 'JPY');
INSERT INTO videos SELECT 'v' || CAST(value AS TEXT), CASE WHEN value < 5 THEN 'ann' ELSE 'bob' END, '2020-01-01', NULL, now(), current_user
FROM generate_series(0, 5);
INSERT INTO billing.scope_values VALUES ('country', 'DE'), ('device', 'tv');
INSERT INTO billing.rates VALUES
 ('usd1', 'default', '', 'USD', 0.0012345, '2020-01-01', '2026-01-15', now(), 'carl', 'dora'),
 ('usd2', 'default', '', 'USD', 0.002, '2026-01-15', NULL, now(), 'carl', 'dora'),
 ('de', 'country', 'DE', 'USD', 0.0033, '2020-01-01', NULL, now(), 'carl', 'dora'),
 ('v3', 'video', 'v3', 'USD', 0.01, '2020-01-01', NULL, now(), 'carl', 'dora'),
 ('jpy', 'default', '', 'JPY', 0.155, '2020-01-01', NULL, now(), 'carl', 'dora')";

/// Statement -> (views, exact in billionths, thousandths of the currency), and line -> (views, exact).
type Statements = BTreeMap<String, (i64, i128, i128)>;
type Lines = BTreeMap<(String, String, String), (i64, i128)>;

fn computed<'a>(paid: impl Iterator<Item = &'a View>) -> (Statements, Lines) {
    let (mut statements, mut lines) = (Statements::new(), Lines::new());
    for view in paid {
        let ((owner, currency), (id, rate)) = (owner(view.video), rate(view));
        let statement = format!("{MONTH}/{owner}/{currency}");
        let line = lines.entry((statement.clone(), format!("v{}", view.video), id.to_owned())).or_default();
        *line = (line.0 + 1, line.1 + rate);
        let total = statements.entry(statement).or_default();
        *total = (total.0 + 1, total.1 + rate, 0);
    }
    for (statement, (_, exact, amount)) in &mut statements {
        // Half to even, to cents or to whole yen.
        let unit: i128 = if statement.ends_with("USD") { 10_000_000 } else { 1_000_000_000 };
        let (whole, rest) = (*exact / unit, *exact % unit * 2);
        let rounded = whole + i128::from(rest > unit || (rest == unit && whole % 2 == 1));
        *amount = rounded * unit / 1_000_000;
    }
    (statements, lines)
}

/// A decimal in units of `10^-scale`.
fn units(text: &str, scale: usize) -> i128 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}{fraction:0<scale$}").parse().unwrap()
}

pub async fn refresh(client: &Client) {
    client.batch_execute("REFRESH MATERIALIZED VIEW billable_views").await.unwrap();
}

async fn statements(server: &Server) -> Statements {
    let rows =
        server.rows("SELECT statement_id, views, exact_amount, amount FROM billing.statements ORDER BY 1").await;
    let read = |row: &String| {
        let parts: Vec<&str> = row.split('|').collect();
        (parts[0].to_owned(), (parts[1].parse().unwrap(), units(parts[2], 9), units(parts[3], 3)))
    };
    rows.iter().map(read).collect()
}

async fn lines(server: &Server) -> Lines {
    let rows = server
        .rows("SELECT statement_id, video_id, rate_id, views, exact_amount FROM billing.statement_lines")
        .await;
    let read = |row: &String| {
        let parts: Vec<&str> = row.split('|').collect();
        let key = (parts[0].to_owned(), parts[1].to_owned(), parts[2].to_owned());
        (key, (parts[3].parse().unwrap(), units(parts[4], 9)))
    };
    rows.iter().map(read).collect()
}

pub async fn run(client: &Client, dir: &Path, script: &str, more: &[(&str, &str)]) -> Result<String, String> {
    let variables = [&[("period", MONTH), ("grace", "72")][..], more].concat();
    let mut psql = Psql::new(client, dir, &variables);
    let ran = psql.run(&sql(&format!("billing/{script}.sql"))).await;
    ran.map(|()| psql.shown.clone()).map_err(|error| format!("{}{error}", psql.shown))
}

pub async fn until_counted(server: &Server, views: usize) {
    server.until("SELECT sum(received) FROM billable_views", &[views.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_month_is_closed_to_the_minor_unit_and_adjusted_later() {
    let world = world().await;
    let server = world.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let client = server.connect_as("bill").await.unwrap();
    let month = views(1, 2_000);
    write(&world, &month);
    // The same again: none of them counts twice.
    write(&world, &month[..300]);
    until_counted(&server, month.len()).await;
    refresh(&client).await;

    // What is missing is told, all at once, and nothing is written.
    let told = run(&client, dir.path(), "close", &[]).await.unwrap_err();
    assert!(told.contains("no owner|7 videos, such as v0") && told.contains("P0001"), "{told}");
    client.batch_execute(TABLES).await.unwrap();
    let told = run(&client, dir.path(), "close", &[]).await.unwrap_err();
    assert!(told.contains("no owner|1 videos, such as v6"), "{told}");
    client.batch_execute("INSERT INTO videos VALUES ('v6', 'bob', '2020-01-01', NULL, now(), 'x')").await.unwrap();
    client.batch_execute("UPDATE billing.rates SET approved_by = 'bill' WHERE rate_id = 'jpy'").await.unwrap();
    let told = run(&client, dir.path(), "close", &[("grace", "1000000")]).await.unwrap_err();
    assert!(told.contains("one person alone|bill approved rates") && told.contains("too early"), "{told}");
    client.batch_execute(&format!("INSERT INTO billing.approvals VALUES ('{MONTH}', 'dora')")).await.unwrap();
    client
        .batch_execute(
            "INSERT INTO audit.verdicts VALUES ('00000001-0000-4000-8000-000000000001', 'invalid', 'r1', 1, now())",
        )
        .await
        .unwrap();
    let told = run(&client, dir.path(), "close", &[]).await.unwrap_err();
    assert!(told.contains("audit.verdicts changed and is not counted yet"), "{told}");
    assert_eq!(server.one("SELECT count(*) FROM billing.runs").await, "0");
    refresh(&client).await;

    let preview = run(&client, dir.path(), "preview", &[]).await.unwrap();
    assert!(preview.contains("2026-01/ann/USD"), "{preview}");
    let shown = run(&client, dir.path(), "close", &[]).await.unwrap_or_else(|error| panic!("{error}"));
    let paid: Vec<&View> = month.iter().filter(|view| view.eligible && view.id != month[1].id).collect();
    let (expected, expected_lines) = computed(paid.iter().copied());
    assert_eq!(statements(&server).await, expected, "{shown}");
    assert_eq!(lines(&server).await, expected_lines);
    assert!(shown.contains(&format!("{MONTH}|2000|{}|1|400", paid.len())), "{shown}");
    for view in server.rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'quality'").await
    {
        assert_eq!(server.rows(&format!("SELECT * FROM quality.{view}")).await, Vec::<String>::new(), "{view}");
    }

    // Closed is closed, and its export the same bytes each time.
    run(&client, dir.path(), "export", &[]).await.unwrap();
    let exported = |file: &str| std::fs::read(dir.path().join(format!("{file}-{MONTH}.csv"))).unwrap();
    let first = (exported("statements"), exported("lines"));
    assert!(first.0.starts_with(b"statement_id,period,owner_id,currency,views,exact_amount,amount\n"));
    let again = run(&client, dir.path(), "close", &[]).await.unwrap();
    assert!(again.contains("closed already"), "{again}");
    run(&client, dir.path(), "export", &[]).await.unwrap();
    assert_eq!((exported("statements"), exported("lines")), first);

    traces(&server, &paid).await;
    refuses(&client).await;

    // Late views of a closed month, and a later verdict on a view that was paid for.
    let late = views(2, 50);
    write(&world, &late);
    until_counted(&server, month.len() + late.len()).await;
    let judged = paid.iter().find(|view| view.video == 3).unwrap();
    client
        .batch_execute(&format!("INSERT INTO audit.verdicts VALUES ('{}', 'invalid', 'r2', 1, now())", judged.id))
        .await
        .unwrap();
    refresh(&client).await;
    let adjusted = run(&client, dir.path(), "adjust", &[("paid_in", "2026-02")]).await.unwrap();
    let (then, _) = computed(
        paid.iter().copied().filter(|view| view.id != judged.id).chain(late.iter().filter(|view| view.eligible)),
    );
    let sums = "SELECT statement_id, sum(views), sum(exact_amount), sum(amount) FROM (
        SELECT statement_id, views, exact_amount, amount FROM billing.statements UNION ALL
        SELECT original_statement, views, exact_amount, amount FROM billing.adjustments) AS a GROUP BY statement_id ORDER BY 1";
    let booked: Vec<String> = server.rows(sums).await;
    let wanted: Vec<String> = then
        .iter()
        .map(|(id, (views, exact, amount))| {
            let (e, a) = (1_000_000_000, 1_000);
            format!("{id}|{views}|{}.{:09}|{}.{:03}", exact / e, exact % e, amount / a, amount % a)
        })
        .collect();
    assert_eq!(booked, wanted, "{adjusted}");
    assert_eq!(statements(&server).await, expected, "a closed statement never changes");
    run(&client, dir.path(), "adjust", &[("paid_in", "2026-02")]).await.unwrap();
    assert_eq!(server.rows(sums).await, wanted, "what is booked is not booked again");
    let explained =
        format!("SELECT received, billable, late, invalid, ineligible FROM audit.explain_view('v3', '{MONTH}')");
    let of =
        |views: &[View], eligible: bool| views.iter().filter(|v| v.video == 3 && v.eligible == eligible).count();
    let (on, later) = (of(&month, true) - 1, of(&late, true));
    let not = of(&month, false) + of(&late, false);
    assert_eq!(server.one(&explained).await, format!("{}|{on}|{later}|1|{not}", on + later + 1 + not));

    run(&client, dir.path(), "pay", &[("reference", "transfer 17")]).await.unwrap();
    run(&client, dir.path(), "pay", &[("reference", "transfer 18")]).await.unwrap();
    assert_eq!(server.rows("SELECT DISTINCT reference, paid_by FROM billing.payments").await, ["transfer 17|bill"]);
    let open = "SELECT currency, sum(debit) - sum(credit) FROM billing.ledger WHERE account = 'payable' AND period = '2026-01' \
                GROUP BY currency ORDER BY 1";
    assert_eq!(server.rows(open).await, ["JPY|0.000", "USD|0.000"], "all that was due is paid");
    let before = server.rows("SELECT * FROM billing.ledger ORDER BY 1, 2").await;
    server.stop().await;
    // Computed from its records, without what came later.
    assert_eq!(diverging(&world, None).await, Vec::<String>::new());
    let server = world.serve().await;
    assert_eq!(server.rows("SELECT * FROM billing.ledger ORDER BY 1, 2").await, before);
}

/// What `viewledger verify --period` finds.
async fn diverging(world: &World, statement: Option<&str>) -> Vec<String> {
    let config = world.config();
    let location = config.storage.location();
    let storage = Storage::open_existing(&location, config.storage.options.clone().into_iter()).unwrap();
    let found = recompute(&config, &storage, MONTH, statement).await.unwrap_or_else(|error| panic!("{error:#}"));
    found.into_iter().flat_map(|file| file.divergences).collect()
}

/// A month that is closed by views that were changed, without those that would refuse it.
async fn closed_otherwise(from: &str, to: &str) -> (World, Server) {
    let world = world().await;
    world.write_sql("quality/billing.sql", "");
    let views_sql = sql("views/billing.sql");
    assert!(views_sql.contains(from), "{from}");
    world.write_sql("views/billing.sql", &views_sql.replace(from, to));
    let server = world.serve().await;
    let client = server.connect_as("bill").await.unwrap();
    let month = views(1, 300);
    write(&world, &month);
    until_counted(&server, month.len()).await;
    client.batch_execute(TABLES).await.unwrap();
    client.batch_execute("INSERT INTO videos VALUES ('v6', 'bob', '2020-01-01', NULL, now(), 'x')").await.unwrap();
    refresh(&client).await;
    let dir = tempfile::tempdir().unwrap();
    run(&client, dir.path(), "close", &[]).await.unwrap_or_else(|error| panic!("{error}"));
    (world, server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_came_to_something_else_is_found_from_its_records() {
    // The default rate before that of the video; one unit too much; one view too few.
    for (from, to, found) in [
        ("coalesce(rv.rate_id, ro.rate_id", "coalesce(NULL, ro.rate_id", "v3"),
        (
            "money_mul(minor, minor_unit) AS DECIMAL(38, 3)) AS amount",
            "money_mul(minor + 1, minor_unit) AS DECIMAL(38, 3)) AS amount",
            "what = total",
        ),
        ("CAST(money_mul(CAST(sum(billable) AS", "CAST(money_mul(CAST(sum(billable) - 1 AS", "what = line 1,"),
    ] {
        let (world, server) = closed_otherwise(from, to).await;
        server.stop().await;
        let told = diverging(&world, None).await;
        assert!(told.iter().any(|row| row.contains(found)), "{to}: {told:#?}");
        let of_one = diverging(&world, Some("2026-01/bob/JPY")).await;
        assert!(of_one.len() < told.len() && of_one.iter().all(|row| row.contains("bob")), "{of_one:#?}");
    }
    // Written in order, and added to later.
    let (world, server) = closed_otherwise("money_mul", "money_mul").await;
    assert_eq!(diverging(&world, None).await, Vec::<String>::new());
    for (change, found) in [
        (
            "INSERT INTO billing.statement_lines VALUES ('2026-01/ann/USD', 99, 'views', 'v1', 'de', 1, 1, 1, 1)",
            "what = line 99, statement_id = 2026-01/ann/USD",
        ),
        (
            "INSERT INTO billing.statements VALUES ('2026-01/eve/USD', '2026-01', 'eve', 'USD', 1, 1, 1)",
            "what = total, statement_id = 2026-01/eve/USD",
        ),
        (
            "INSERT INTO billing.ledger VALUES ('close/2026-01/eve/USD', 'payable', '2026-01', '2026-01/eve/USD', 'USD', 0, 1)",
            "what = ledger, statement_id = 2026-01/eve/USD",
        ),
    ] {
        server.rows(change).await;
        let told = diverging(&world, None).await;
        assert!(told.iter().any(|row| row.starts_with(found)), "{change}: {told:#?}");
    }
    // Rates that are changed later say nothing of what was closed.
    let before = diverging(&world, None).await;
    server.rows("UPDATE billing.rates SET rate = 1 WHERE rate_id = 'de'").await;
    assert_eq!(diverging(&world, None).await, before);
}

/// Every line leads to exactly its raw events, and each event to its line.
async fn traces(server: &Server, paid: &[&View]) {
    let lines = server
        .rows("SELECT statement_id || '/' || CAST(line AS TEXT), video_id, rate_id FROM billing.statement_lines")
        .await;
    let mut seen = BTreeSet::new();
    for line in &lines {
        let [line, video, rate_id] = line.split('|').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let traced: BTreeSet<String> =
            server.rows(&format!("SELECT event_id FROM audit.trace('{line}')")).await.into_iter().collect();
        let meant: BTreeSet<String> = paid
            .iter()
            .filter(|view| format!("v{}", view.video) == video && rate(view).0 == rate_id)
            .map(|view| view.id.clone())
            .collect();
        assert_eq!(traced, meant, "line {line}");
        seen.extend(traced);
    }
    assert_eq!(seen.len(), paid.len());
    let why = server.rows(&format!("SELECT what FROM audit.why('{}') ORDER BY what", paid[0].id)).await;
    assert_eq!(
        why,
        ["duplicate, not counted", "on statement", "received", "received before the close of its period"]
    );
    let judged = server
        .rows("SELECT what, detail FROM audit.why('00000001-0000-4000-8000-000000000001') ORDER BY what")
        .await;
    assert!(judged.contains(&"judged invalid|by rules r1 of rule set 1".to_owned()), "{judged:?}");
    assert!(!judged.iter().any(|row| row.starts_with("on statement")), "{judged:?}");
}

/// What enforced views and append-only tables do not let through.
async fn refuses(client: &Client) {
    let statement = format!("'{MONTH}/ann/USD'");
    for (change, told) in [
        ("DELETE FROM billing.scope_values WHERE scope = 'country'".to_owned(), "quality.rates_without_their_scope"),
        (
            "INSERT INTO billing.rates VALUES ('x', 'country', 'DE', 'USD', 1, '2026-01-31', NULL, now(), 'carl', 'dora')".to_owned(),
            "quality.overlapping_rates",
        ),
        ("UPDATE billing.rates SET rate = 0.5 WHERE rate_id = 'usd1'".to_owned(), "quality.rates_changed_after_close"),
        ("INSERT INTO videos VALUES ('v1', 'bob', '2026-01-01', NULL, now(), 'x')".to_owned(), "quality.videos_of_two_owners"),
        ("DELETE FROM billing.statements".to_owned(), "rows are only ever added"),
        (
            format!("INSERT INTO billing.statement_lines VALUES ({statement}, 99, 'views', 'v1', 'de', 1, 1, 1, 1)"),
            "quality.statements_that_do_not_add_up",
        ),
        (
            format!("INSERT INTO billing.statements VALUES ('{MONTH}/eve/USD', '{MONTH}', 'eve', 'USD', 0, 0, 0)"),
            "quality.statements_without_lines",
        ),
        (
            "BEGIN; INSERT INTO billing.statements VALUES ('2026-03/ann/USD', '2026-03', 'ann', 'USD', 1, 1, 1); \
             INSERT INTO billing.statement_lines VALUES ('2026-03/ann/USD', 1, 'views', 'v1', 'de', 1, 1, 1, 1); COMMIT"
                .to_owned(),
            "quality.statements_of_open_periods",
        ),
        (
            format!("INSERT INTO billing.ledger VALUES ('x', 'expense', '{MONTH}', {statement}, 'USD', 1, 0)"),
            "quality.debits_unequal_to_credits",
        ),
        (
            "INSERT INTO billing.runs SELECT '2026-04', period_start, period_end, closed_by, as_of, generation, frontier, archive_version, \
             view_fingerprint, view_tables, rates_sha256, engine_version, 5, 4, 2, 1 FROM billing.runs"
                .to_owned(),
            "quality.periods_that_do_not_balance",
        ),
    ] {
        let error = client.batch_execute(&change).await.unwrap_err();
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
        assert!(error.message().contains(told), "{change}: {}", error.message());
        client.batch_execute("ROLLBACK").await.unwrap();
    }
}
