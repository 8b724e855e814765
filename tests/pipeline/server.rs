//! The server inside the test's process, and how it is asked.

use std::ops::Deref;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use viewledger::app::listen::{self, Addresses};
use viewledger::config::Config;
use viewledger::runtime::Shutdown;

use crate::world::{PATIENCE, VIEWS, difference, eventually};

/// Asks one server, over a new connection each time.
#[derive(Clone, Copy)]
pub struct Ask {
    pub at: Addresses,
}

/// A server on a thread of its own.
pub struct Server {
    ask: Ask,
    shutdown: Shutdown,
    thread: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Deref for Server {
    type Target = Ask;

    fn deref(&self) -> &Ask {
        &self.ask
    }
}

impl Server {
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let shutdown = Shutdown::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let result = runtime.block_on(listen::serve(config, stop, move |at| {
                let _ = tell.send(at);
            }));
            runtime.shutdown_background();
            result
        });
        match told.await {
            Ok(at) => Ok(Self { ask: Ask { at }, shutdown, thread: Some(thread) }),
            Err(_) => match thread.join().expect("the server panicked") {
                Ok(()) => anyhow::bail!("the server ended before it was ready"),
                Err(error) => Err(error),
            },
        }
    }

    /// Asks it to end and waits until it has; it must end without a complaint.
    pub async fn stop(mut self) {
        self.shutdown.trigger();
        self.ended().await.unwrap();
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        let thread = self.thread.take().unwrap();
        let joined = tokio::task::spawn_blocking(move || thread.join());
        let joined = tokio::time::timeout(PATIENCE, joined).await.expect("the server does not end");
        joined.unwrap().expect("the server panicked")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

impl Ask {
    pub async fn connect(&self) -> Result<Client, String> {
        self.connect_as("analyst").await.map_err(|error| format!("{error:?}"))
    }

    pub async fn connect_as(&self, user: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.at.pg.port()).user(user).dbname("viewledger").application_name("tests");
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn try_rows(&self, sql: &str) -> Result<Vec<String>, String> {
        rows(&self.connect().await?, sql).await
    }

    /// One text a row: its values with `|` between them, `-` for NULL.
    pub async fn rows(&self, sql: &str) -> Vec<String> {
        self.try_rows(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub async fn one(&self, sql: &str) -> String {
        let rows = self.rows(sql).await;
        assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
        rows.into_iter().next().unwrap()
    }

    /// Asks until the answer is this one.
    pub async fn until<S: AsRef<str>>(&self, sql: &str, expected: &[S]) {
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        eventually(&format!("{sql} answers {expected:?}"), async || match self.try_rows(sql).await {
            Ok(rows) if rows == expected => Ok(()),
            Ok(rows) => Err(format!("{rows:?}; {:?}", self.get("/readyz").await)),
            Err(error) => Err(error),
        })
        .await;
    }

    /// Waits until so many offsets of `clicks` were passed, in all partitions together.
    pub async fn until_passed(&self, offsets: usize) {
        let sql = "SELECT coalesce(sum(passed), 0) FROM system.conservation WHERE stream = 'clicks'";
        self.until(sql, &[offsets.to_string()]).await;
    }

    /// Waits until nothing is only in memory.
    pub async fn until_archived(&self) {
        let sql = "SELECT (SELECT count(*) FROM raw.clicks WHERE _file IS NULL) \
                   + (SELECT count(*) FROM raw.clicks_duplicates WHERE _file IS NULL) \
                   + (SELECT count(*) FROM quarantine.clicks WHERE _file IS NULL)";
        self.until(sql, &["0"]).await;
    }

    pub async fn refresh(&self) {
        self.refresh_by("REFRESH MATERIALIZED VIEW pages").await;
    }

    pub async fn refresh_fully(&self) {
        self.refresh_by("REFRESH MATERIALIZED VIEW pages WITH FULL DATA").await;
    }

    /// Refreshes and waits until batch and speed were compared, which the answer does not.
    async fn refresh_by(&self, sql: &str) {
        self.rows(sql).await;
        self.until("SELECT count(*) FROM system.refreshes WHERE ended_at IS NULL", &["0"]).await;
    }

    /// Every view answers what its query over the records answers, in the same snapshot.
    pub async fn assert_equivalent(&self) {
        for (view, query) in VIEWS {
            assert_eq!(self.rows(&difference(view, query)).await, Vec::<String>::new(), "view {view}");
        }
    }

    /// Everything that must survive a restart, sorted.
    pub async fn answers(&self) -> Vec<String> {
        let mut answers = Vec::new();
        for sql in [
            "SELECT * FROM pages ORDER BY page",
            "SELECT * FROM page_hours ORDER BY page, hour",
            "SELECT * FROM visitors ORDER BY who",
            "SELECT id, page, who, at, ms, _extra, _partition, _offset FROM raw.clicks ORDER BY _partition, _offset",
            "SELECT id, _partition, _offset FROM raw.clicks_duplicates ORDER BY _partition, _offset",
            "SELECT _partition, _offset, _reason FROM quarantine.clicks ORDER BY _partition, _offset",
            "SELECT partition, passed, counted, duplicate, quarantined, gaps FROM system.conservation ORDER BY 1",
        ] {
            answers.push(sql.to_owned());
            answers.extend(self.rows(sql).await);
        }
        answers
    }

    /// Status code and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        let (code, _, body) = self.get_whole(path).await?;
        Ok((code, body))
    }

    /// Status code, head and body.
    pub async fn get_whole(&self, path: &str) -> Result<(u16, String, String), String> {
        let attempt = async {
            let mut stream = tokio::net::TcpStream::connect(self.at.http).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = attempt.await.map_err(|error| error.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or("no status")?;
        Ok((code, head.to_lowercase(), body.to_owned()))
    }

    /// Waits until `path` answers with this code and a body that holds `text`.
    pub async fn until_http(&self, path: &str, code: u16, text: &str) {
        eventually(&format!("{path} answers {code} with {text:?}"), async || match self.get(path).await? {
            (found, body) if found == code && body.contains(text) => Ok(()),
            (found, body) => Err(format!("{found} {body}")),
        })
        .await;
    }

    pub async fn until_ready(&self) {
        self.until_http("/readyz", 200, "ready").await;
    }
}

/// One text a row, as [`Ask::rows`].
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<String>, String> {
    let messages = client.simple_query(sql).await.map_err(|error| format!("{error:?}"))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or("-")).collect::<Vec<_>>().join("|"))
        }
        _ => None,
    });
    Ok(rows.collect())
}
