//! A broker in a process of its own, killed while a producer writes.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::producer::Producer;
use viewledger::demo::broker::Broker;
use viewledger::runtime::{Health, Shutdown};

use crate::client::{COMMITTED, PATIENCE, Settings, Writer, create_topic, read_all, watermarks};
use crate::embedded::config_on;

const DIRECTORY: &str = "VIEWLEDGER_TEST_BROKER_DIRECTORY";
const PORT: &str = "VIEWLEDGER_TEST_BROKER_PORT";

/// Not a test: the process that the test below kills. It serves until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started as a process by a_killed_broker_keeps_what_it_acknowledged"]
async fn serve_until_killed() {
    let (Ok(directory), Ok(port)) = (std::env::var(DIRECTORY), std::env::var(PORT)) else {
        panic!("this is started by another test");
    };
    let config = config_on(Path::new(&directory), port.parse().unwrap());
    let _broker = Broker::start(config, Health::default(), Shutdown::default()).await.unwrap();
    std::future::pending::<()>().await;
}

/// Kills the process when dropped, so that a failing test leaves none behind.
struct Process(Child);

impl Process {
    fn start(directory: &Path, port: u16) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::serve_until_killed", "--ignored"])
            .env(DIRECTORY, directory)
            .env(PORT, port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Small batches and quick retries: every kill meets several requests under way.
const WRITING: Settings = &[
    ("enable.idempotence", "true"),
    ("batch.num.messages", "50"),
    ("linger.ms", "1"),
    ("retry.backoff.ms", "10"),
    ("reconnect.backoff.ms", "10"),
    ("reconnect.backoff.max.ms", "50"),
];

/// Every record is stored exactly once and in order, although some were stored and never acknowledged: what the
/// broker knows of its producers comes back from the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_keeps_what_it_acknowledged() {
    const KILLS: u64 = 5;
    const RECORDS_A_ROUND: u64 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let bootstrap = format!("127.0.0.1:{port}");
    let mut process = Process::start(directory.path(), port);
    let topic = create_topic(&bootstrap, "killed", 1).await;
    let writer = Writer::new(&bootstrap, WRITING);
    let (mut next, mut delivered) = (0, Vec::new());
    for round in 0..KILLS {
        let until = (round + 1) * RECORDS_A_ROUND;
        while next < until {
            writer.send(&topic, 0, next);
            next += 1;
        }
        // Kill in the middle: some of this round is stored, most is not.
        let deadline = Instant::now() + PATIENCE;
        while u64::try_from(writer.delivered()).unwrap() < round * RECORDS_A_ROUND + 1_000 {
            assert!(Instant::now() < deadline, "nothing is delivered in round {round}");
            writer.producer.poll(Duration::from_millis(1));
        }
        drop(process);
        process = Process::start(directory.path(), port);
    }
    delivered.extend(writer.flush());
    assert_eq!(delivered.len(), usize::try_from(next).unwrap(), "everything is acknowledged in the end");
    let expected: Vec<(i64, u64)> = (0..).zip(0..next).collect();
    assert_eq!(read_all(&bootstrap, &topic, 0, COMMITTED), expected);
    assert_eq!(watermarks(&bootstrap, &topic, 0), (0, i64::try_from(next).unwrap()));
    let told = delivered.into_iter().map(|(number, offset)| (offset, number)).collect::<Vec<_>>();
    assert_eq!(told, expected, "what the producer was told");
    assert_eq!(writer.producer.in_flight_count(), 0);
    drop(process);
}
