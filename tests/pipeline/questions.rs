//! What an auditor asks: every statement of the table in `docs/audit.md`, as it stands there, over a closed month.

use std::collections::BTreeMap;

use crate::billing::{self, MONTH, View};
use crate::psql::Psql;
use crate::server::Ask;

/// The questions of `docs/audit.md`, with their statements.
fn questions() -> Vec<(String, Vec<String>)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit.md");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let asked = text.split("## What an auditor asks").nth(1).expect("the chapter").split("\n## ").next().unwrap();
    let rows = asked.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" | "));
    let statements = |answer: &str| {
        let quoted = answer.split('`').skip(1).step_by(2);
        quoted.filter(|code| code.starts_with("SELECT ")).map(str::to_owned).collect::<Vec<_>>()
    };
    rows.map(|(question, answer)| (question.to_owned(), statements(answer)))
        .filter(|(question, _)| question.ends_with('?'))
        .collect()
}

/// The answers, by column.
async fn answers(ask: &Ask, sql: &str) -> Vec<BTreeMap<String, String>> {
    let client = ask.connect_as("audit").await.unwrap();
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    let cells = |row: tokio_postgres::SimpleQueryRow| {
        let names = row.columns().iter().map(|column| column.name().to_owned()).collect::<Vec<_>>();
        let cells = (0..row.len()).map(|at| row.get(at).unwrap_or("-").to_owned());
        names.into_iter().zip(cells).collect::<BTreeMap<_, _>>()
    };
    messages.into_iter().filter_map(row).map(cells).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_question_of_an_auditor_is_one_statement() {
    let mut world = billing::world().await;
    world.set("VIEWLEDGER_AUDIT_SEAL_INTERVAL", "100ms");
    for file in ["tables/fraud.sql", "views/fraud.sql"] {
        world.write_sql(file, &billing::sql(file));
    }
    let server = world.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let client = server.connect_as("bill").await.unwrap();
    let month = billing::views(1, 400);
    billing::write(&world, &month);
    world.kafka.write_to(billing::VIEWS_TOPIC, vec![(0, Some(b"{\"event_id\": 7}".to_vec()))]);
    billing::until_counted(&server, month.len()).await;
    client.batch_execute(billing::TABLES).await.unwrap();
    client.batch_execute("INSERT INTO videos VALUES ('v6', 'bob', '2020-01-01', NULL, now(), 'x')").await.unwrap();
    let unpaid: &View = month.iter().find(|view| view.video == 1).unwrap();
    let verdict = format!("INSERT INTO audit.verdicts VALUES ('{}', 'invalid', 'r1', 1, now())", unpaid.id);
    client.batch_execute(&verdict).await.unwrap();
    Psql::new(&client, dir.path(), &[]).run(&billing::sql("fraud/thresholds.sql")).await.unwrap();
    billing::refresh(&client).await;
    billing::run(&client, dir.path(), "close", &[]).await.unwrap_or_else(|error| panic!("{error}"));
    let late = billing::views(2, 20);
    billing::write(&world, &late);
    billing::until_counted(&server, month.len() + late.len()).await;
    billing::refresh(&client).await;
    billing::run(&client, dir.path(), "adjust", &[("paid_in", "2026-02")]).await.unwrap();
    server.until("SELECT count(*) > 0 FROM audit.seals", &["t"]).await;
    server.until("SELECT count(*) > 0 FROM quarantine.video_views", &["t"]).await;

    let line =
        server.rows("SELECT statement_id, line, views FROM billing.statement_lines WHERE video_id = 'v1'").await;
    let [statement, line, views] = line[0].split('|').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
    let meant = |sql: &str| {
        sql.replace("2026-10/ann/USD/3", &format!("{statement}/{line}"))
            .replace("2026-10/ann/USD", statement)
            .replace("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", &unpaid.id)
            .replace("vid-1", "v1")
            .replace("2026-10", MONTH)
            .replace("2026-03", MONTH)
    };
    let asked = questions();
    assert_eq!(asked.len(), 10, "{asked:?}");
    for (question, statements) in &asked {
        assert!(!statements.is_empty(), "{question}: no statement");
        for sql in statements.iter().map(|sql| meant(sql)) {
            let rows = answers(&server, &sql).await;
            assert!(!rows.is_empty(), "{question}: {sql} has no answer");
            let number = |column: &str| rows[0][column].parse::<usize>().unwrap();
            let all = |column: &str| rows.iter().map(|row| row[column].as_str()).collect::<Vec<_>>();
            match question.as_str() {
                "Which raw events make up this line?" => {
                    assert_eq!(rows.len().to_string(), views);
                    let known = |id: &&str| month.iter().any(|view| view.id == **id && view.video == 1);
                    assert!(all("event_id").iter().all(known) && !all("event_id").contains(&unpaid.id.as_str()));
                }
                "Why was this view not paid, and under which rules?" => {
                    assert!(all("what").contains(&"judged invalid"), "{rows:?}");
                    assert!(all("detail").contains(&"by rules r1 of rule set 1"), "{rows:?}");
                }
                "Which rate, and who approved it?" => assert!(all("approved_by").iter().all(|who| *who == "dora")),
                "What changed since the close, and why?" => {
                    assert!(
                        all("original_statement").contains(&statement)
                            && all("reason").iter().all(|why| *why != "-")
                    );
                }
                "What was last March, as known then?" => assert!(all("statement_id").contains(&statement)),
                "What was received, and what became of it?" => match sql.contains("explain_view") {
                    true => assert_eq!(
                        number("received"),
                        number("billable") + number("late") + number("invalid") + number("ineligible")
                    ),
                    false => {
                        assert_eq!(number("received"), number("billed") + number("invalid") + number("ineligible"))
                    }
                },
                "Which offsets are missing, and what was rejected?" => assert_eq!(rows.len(), 1, "{rows:?}"),
                "Who read or changed what?" => match sql.contains("access_log") {
                    true => assert!(all("role").contains(&"bill"), "{rows:?}"),
                    false => assert!(
                        all("table").contains(&"billing.rates") && all("changed_by").contains(&"bill"),
                        "{:?}",
                        rows[0]
                    ),
                },
                "What would other rules do, in money?" => assert!(all("owner_id").contains(&"ann")),
                "Is the seal valid today?" => assert!(number("seal") >= 1, "{rows:?}"),
                other => panic!("nothing is known of the answer to {other}"),
            }
        }
    }
}
