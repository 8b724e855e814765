//! How old an answer is: from the broker's acknowledgement of a record until a SELECT shows it.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use viewledger::runtime::Shutdown;

use crate::TOPIC;
use crate::process::{Server, broker, program, quantile, setting, work_dir};
use crate::records::sql_dir;

/// Time for the load to become steady.
const WARM_UP: Duration = Duration::from_secs(10);

pub fn run() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let rate: u64 = setting("RATE", 20_000);
    let markers: usize = setting("MARKERS", 500);
    let dir = work_dir("freshness");
    let _ = std::fs::remove_dir_all(&dir);
    let data_dir = dir.join("data");
    std::fs::create_dir_all(&data_dir)?;
    let shutdown = Shutdown::default();
    let broker = broker(dir.join("broker"), &shutdown).await?;
    let mut server = Server::start(&broker.bootstrap(), &data_dir)?;
    let client = server.connect().await?;
    let _load = Load::start(&broker.bootstrap(), rate)?;
    tokio::time::sleep(WARM_UP).await;

    let (acknowledge, acknowledgements) = channel();
    let producer: ThreadedProducer<Acknowledge> = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap())
        .set("acks", "all")
        .set("linger.ms", "0")
        .create_with_context(Acknowledge(acknowledge))?;
    let select = client.prepare("SELECT total_views FROM video_views WHERE video_id = $1").await?;
    let (mut ages, mut queries) = (Vec::new(), Vec::new());
    for marker in 0..markers {
        // Not in step with the load or with micro-batches.
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..100))).await;
        let key = format!("marker-{marker}");
        let payload = format!(
            r#"{{"event_id":"{}","video_id":"{key}","user_id":"{key}","timestamp":"{}","view_duration":7}}"#,
            uuid::Uuid::new_v4(),
            chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
        );
        producer.send(BaseRecord::to(TOPIC).key(&key).payload(&payload)).map_err(|(error, _)| error)?;
        let acknowledged = acknowledgements.recv_timeout(Duration::from_secs(10))?.context("refused")?;
        loop {
            let asked = Instant::now();
            let rows = client.query(&select, &[&key]).await.context("the query failed")?;
            let seen = Instant::now();
            queries.push((seen - asked).as_secs_f64() * 1e3);
            if let Some(row) = rows.first() {
                ensure!(row.get::<_, i64>(0) == 1, "{key} was counted {} times", row.get::<_, i64>(0));
                ages.push((seen - acknowledged).as_secs_f64() * 1e3);
                break;
            }
            ensure!(acknowledged.elapsed() < Duration::from_secs(30), "{key} is not visible after 30 s");
        }
    }
    let lag: i64 = client
        .query_one("SELECT sum(lag)::bigint FROM system.partitions WHERE stream = 'video_views'", &[])
        .await?
        .get(0);
    println!("freshness at {rate} events/s, {markers} markers, acknowledged -> visible in a SELECT:");
    println!(
        "  p50 {:.0} ms, p90 {:.0} ms, p99 {:.0} ms, max {:.0} ms; lag at the end {lag} records",
        quantile(&ages, 0.5),
        quantile(&ages, 0.9),
        quantile(&ages, 0.99),
        quantile(&ages, 1.0)
    );
    println!(
        "  of which the SELECT itself: p50 {:.1} ms, p99 {:.1} ms over {} queries; server's peak memory {} MiB",
        quantile(&queries, 0.5),
        quantile(&queries, 0.99),
        queries.len(),
        server.memory_peak()? >> 20
    );
    drop(server);
    shutdown.trigger();
    broker.stopped().await;
    Ok(())
}

/// Notes when an acknowledgement came; None for a record that was refused.
struct Acknowledge(Sender<Option<Instant>>);

impl ClientContext for Acknowledge {}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let _ = self.0.send(result.is_ok().then(Instant::now));
    }
}

/// `viewledger generate` in a process of its own; killed when dropped.
struct Load(Child);

impl Load {
    fn start(brokers: &str, rate: u64) -> Result<Self> {
        let child = Command::new(program())
            .args(["generate", "--brokers", brokers, "--rate", &rate.to_string(), "--profile"])
            .arg(sql_dir().join("load/video_views.toml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the load")?;
        Ok(Self(child))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
