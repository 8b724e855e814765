//! `viewledger generate` kept running: one short run after another, each with its own seed and truth file.
//! Every second run, from the first on, produces in transactions.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Small transactions, so that each run has some that are aborted.
const TRANSACTION: [&str; 5] = ["--transactional", "--transaction-size", "250", "--abort-share", "0.2"];
const PROFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sql/load/video_views.toml");

/// How the load is made; everything else about it stands in the profile.
#[derive(Debug, Clone)]
pub(crate) struct LoadPlan {
    pub(crate) bootstrap: String,
    pub(crate) events_per_second: u32,
    pub(crate) run: Duration,
    pub(crate) seed: u64,
}

#[derive(Debug)]
pub(crate) struct Load {
    plan: LoadPlan,
    dir: PathBuf,
    truth_files: Vec<PathBuf>,
    running: Child,
}

impl Load {
    pub(crate) fn start(plan: LoadPlan, dir: &Path) -> Load {
        let dir = dir.join("load");
        std::fs::create_dir_all(&dir).expect("the test directory is writable");
        let truth = dir.join("truth-0.csv");
        let running = spawn(&plan, 0, &dir, &truth);
        Load { plan, dir, truth_files: vec![truth], running }
    }

    /// Starts the next run if the last one has ended; called often enough, there is always a load.
    pub(crate) fn keep_going(&mut self) {
        if self.has_ended() {
            let number = self.truth_files.len();
            let truth = self.dir.join(format!("truth-{number}.csv"));
            self.running = spawn(&self.plan, number, &self.dir, &truth);
            self.truth_files.push(truth);
        }
    }

    /// Lets the run in progress end and returns the truth files of all runs so far.
    pub(crate) async fn wait(&mut self) -> &[PathBuf] {
        let deadline = Instant::now() + self.plan.run + Duration::from_secs(60);
        while !self.has_ended() {
            assert!(Instant::now() < deadline, "generate did not end; see {}", self.dir.display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        &self.truth_files
    }

    /// A load that fails leaves no truth to compare with, so that is the end of the test.
    fn has_ended(&mut self) -> bool {
        match self.running.try_wait().expect("the process is ours") {
            None => false,
            Some(status) if status.success() => true,
            Some(status) => {
                let log = log_path(&self.dir, self.truth_files.len() - 1);
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("generate ended with {status}:\n{log}");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.running.kill();
        let _ = self.running.wait();
    }
}

fn spawn(plan: &LoadPlan, number: usize, dir: &Path, truth: &Path) -> Child {
    let log = File::create(log_path(dir, number)).expect("the test directory is writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_viewledger"));
    command
        .args(["generate", "--brokers", &plan.bootstrap, "--profile", PROFILE])
        .args(["--rate", &plan.events_per_second.to_string()])
        .args(["--duration", &format!("{}ms", plan.run.as_millis())])
        .args(["--seed", &(plan.seed + number as u64).to_string()])
        .arg("--truth")
        .arg(truth);
    if number.is_multiple_of(2) {
        command.args(TRANSACTION);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a file handle can be shared"))
        .stderr(log)
        .spawn()
        .expect("cargo built the binary")
}

fn log_path(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!("generate-{number}.log"))
}
