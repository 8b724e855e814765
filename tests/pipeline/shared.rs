//! One run for all who ask the same: what each is told is as new as if it had run alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::server::{Ask, rows};
use crate::world::World;

const SUM: &str = "SELECT sum(number) AS sum, count(*) AS rows FROM notes";

async fn shared(ask: &Ask) -> usize {
    let (_, text) = ask.get("/metrics").await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("queries_shared_total "));
    line.unwrap_or_else(|| panic!("no such metric:\n{text}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_before_it_was_asked_is_in_every_answer() {
    let world = World::new(1).await;
    world.write_sql("tables/notes.sql", "CREATE TABLE notes (number BIGINT PRIMARY KEY);\n");
    let server = world.serve().await;
    let ask = *server;
    server.rows("INSERT INTO notes VALUES (0)").await;
    let (committed, done) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..12)
        .map(|reader| {
            let (committed, done) = (Arc::clone(&committed), Arc::clone(&done));
            tokio::spawn(async move {
                let client = ask.connect().await.unwrap();
                let prepared = client.prepare(SUM).await.unwrap();
                let (mut asked, mut last) = (0, 0);
                while !done.load(Ordering::SeqCst) {
                    let before = committed.load(Ordering::SeqCst);
                    // By both ways of the protocol, and over HTTP.
                    let count: i64 = match reader % 3 {
                        0 => client.query_one(&prepared, &[]).await.unwrap().get("rows"),
                        1 => {
                            let row = rows(&client, SUM).await.unwrap().remove(0);
                            row.rsplit_once('|').unwrap().1.parse().unwrap()
                        }
                        _ => {
                            let answer = ask.sql(SUM, &[]).await.json();
                            answer[0]["rows"].as_i64().unwrap_or_else(|| panic!("{answer}"))
                        }
                    };
                    assert!(count >= before, "{count} rows are told of, and {before} were committed before");
                    assert!(count >= last, "{count} rows are told of after {last}");
                    last = count;
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let writer = server.connect().await.unwrap();
    for number in 1..40 {
        writer.batch_execute(&format!("INSERT INTO notes VALUES ({number})")).await.unwrap();
        committed.store(number + 1, Ordering::SeqCst);
        if number % 8 == 0 {
            // The next waits until it was seen.
            server.until(SUM, &[format!("{}|{}", number * (number + 1) / 2, number + 1)]).await;
        }
    }
    done.store(true, Ordering::SeqCst);
    let mut asked = 0;
    for reader in readers {
        asked += reader.await.unwrap();
    }
    assert!(asked > 100, "{asked} questions are too few to tell");
    assert!(shared(&ask).await >= asked, "each was answered by a run that others may share");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_the_session_or_is_large_is_its_own() {
    let world = World::new(1).await;
    world.write_sql("tables/notes.sql", "CREATE TABLE notes (number BIGINT PRIMARY KEY);\n");
    let server = world.serve().await;
    let ask = *server;
    server.rows("INSERT INTO notes SELECT value FROM generate_series(1, 20000)").await;
    let before = shared(&ask).await;
    let sessions = (0..8).map(|_| {
        tokio::spawn(async move {
            let client = ask.connect().await.unwrap();
            let own = rows(&client, "SELECT pg_backend_pid()").await.unwrap();
            for _ in 0..5 {
                let told = rows(&client, "SELECT pg_backend_pid() FROM notes WHERE number = 1").await.unwrap();
                assert_eq!(told, own, "the number of another session");
                let all = rows(&client, "SELECT number FROM notes WHERE number > 0 ORDER BY number").await.unwrap();
                assert_eq!(all.len(), 20_000);
                assert!(all.iter().zip(1..).all(|(told, number)| *told == number.to_string()));
            }
            // A transaction reads what it read first.
            client.batch_execute("BEGIN").await.unwrap();
            let first = rows(&client, SUM).await.unwrap();
            ask.rows(&format!("INSERT INTO notes VALUES (-{})", own[0])).await;
            assert_eq!(rows(&client, SUM).await.unwrap(), first);
            client.batch_execute("COMMIT").await.unwrap();
            assert_ne!(rows(&client, SUM).await.unwrap(), first);
        })
    });
    for session in sessions.collect::<Vec<_>>() {
        session.await.unwrap();
    }
    assert_eq!(shared(&ask).await - before, 8, "of each session only the last question could be shared");
}
