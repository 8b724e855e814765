//! The rules for invalid traffic against attacks and hard innocent cases, none of which they were written from.
//!
//! Prints, for each family, how many of its views the rules call invalid; `docs/invalid-traffic.md` holds the last figures.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::billing;
use crate::psql::Psql;
use crate::world::World;

const DAY: i64 = 86_400;

/// Views of one kind of traffic.
struct Traffic {
    rng: StdRng,
    lines: Vec<String>,
    family: &'static str,
    number: usize,
    families: BTreeMap<String, &'static str>,
}

impl Traffic {
    /// `at` is in seconds since the month began.
    fn view(&mut self, user: &str, video: &str, at: i64, seconds: i64, country: &str) {
        self.number += 1;
        let id = format!("{:08x}-0000-4000-8000-{:012x}", 7, self.number);
        let at = at.clamp(0, 31 * DAY - 1);
        let (day, rest) = (at / DAY + 1, at % DAY);
        let millis = self.rng.random_range(0..1000);
        self.lines.push(format!(
            r#"{{"event_id":"{id}","video_id":"{video}","user_id":"{user}","session_id":"{user}-{day}","timestamp":"2026-01-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z","view_duration":{},"geo_location":"{country}","device_type":"tv","quality":"720p","revenue_eligible":true}}"#,
            rest / 3600, rest % 3600 / 60, rest % 60, seconds.clamp(0, DAY)
        ));
        self.families.insert(id, self.family);
    }

    /// A gap as people leave it between two views: mostly short, sometimes hours.
    fn pause(&mut self) -> i64 {
        let sleep: f64 = self.rng.random();
        20 + (-sleep.ln() * 900.0) as i64
    }

    fn watch(&mut self) -> i64 {
        let share: f64 = self.rng.random();
        5 + (share * share * 600.0) as i64
    }

    fn pick(&mut self, of: usize) -> usize {
        // Few videos are watched often.
        let share: f64 = self.rng.random();
        (share * share * of as f64) as usize
    }

    /// `users` who each watch some videos on some days.
    fn people(&mut self, family: &'static str, users: usize, days: usize, views: usize) {
        self.family = family;
        for user in 0..users {
            for _ in 0..days {
                let mut at = self.rng.random_range(0..30) * DAY + self.rng.random_range(6 * 3600..20 * 3600);
                for _ in 0..views {
                    let (video, seconds) = (self.pick(500), self.watch());
                    self.view(&format!("{family}-{user}"), &format!("v{video}"), at, seconds, "DE");
                    at += seconds + self.pause();
                }
            }
        }
    }

    fn attacks(&mut self) {
        self.family = "naive loop";
        (0..400).for_each(|n| self.view("loop", "target-1", 5 * DAY + n * 31, 30, "DE"));
        self.family = "rotation of users";
        for n in 0..400_i64 {
            let user = format!("rotated-{}", n % 40);
            self.view(&user, "target-2", 6 * DAY + n * 20, 31, "DE");
        }
        self.family = "threshold hugging";
        for user in 0..5 {
            let mut at = 7 * DAY + user * 100;
            for _ in 0..80 {
                at += self.rng.random_range(300..900);
                let (video, seconds) = (self.pick(500), self.rng.random_range(30..=31));
                self.view(&format!("hug-{user}"), &format!("v{video}"), at, seconds, "DE");
            }
        }
        self.family = "metronome with jitter";
        for user in 0..10 {
            for n in 0..40 {
                let at = 8 * DAY + user * 77 + n * 600 + self.rng.random_range(-20..=20);
                let (video, seconds) = (self.pick(500), self.rng.random_range(40..200));
                self.view(&format!("tick-{user}"), &format!("v{video}"), at, seconds, "DE");
            }
        }
        // Those above are what the thresholds were chosen on; those below were not looked at.
        self.family = "slow drip";
        for day in 0..30 {
            for user in 0..5 {
                for _ in 0..3 {
                    let at = day * DAY + self.rng.random_range(0..DAY);
                    self.view(&format!("drip-{user}"), "target-3", at, 45, "DE");
                }
            }
        }
        self.family = "account farm";
        for account in 0..100 {
            for n in 0..4 {
                let at = 12 * DAY + account * 30 + n * 4000 + self.rng.random_range(0..20);
                self.view(
                    &format!("farm-{account}"),
                    &format!("target-{}", 4 + n),
                    at,
                    60,
                    ["DE", "US", "BR"][(account % 3) as usize],
                );
            }
        }
        self.family = "session replay";
        let mut session = Vec::new();
        let mut at = 0;
        for _ in 0..20 {
            let (video, seconds) = (self.pick(500), self.watch());
            session.push((video, at, seconds));
            at += seconds + self.pause();
        }
        for copy in 0..20 {
            for (video, at, seconds) in session.clone() {
                self.view(
                    &format!("copy-{copy}"),
                    &format!("v{video}"),
                    14 * DAY + copy * 3600 + at,
                    seconds,
                    "DE",
                );
            }
        }
        self.family = "mimicry of real gaps";
        for user in 0..40 {
            let mut at = 16 * DAY + self.rng.random_range(0..DAY / 2);
            for _ in 0..10 {
                let seconds = self.watch();
                self.view(&format!("mime-{user}"), "target-9", at, seconds, "DE");
                at += seconds + self.pause() * 3;
            }
        }
    }

    fn hard_cases(&mut self) {
        self.people("campus behind one address", 120, 2, 4);
        self.family = "binge";
        for user in 0..10 {
            let mut at = 20 * DAY;
            for n in 0..35 {
                self.view(&format!("binge-{user}"), &format!("series-{n}"), at, 1300, "DE");
                at += 1300 + self.rng.random_range(5..60);
            }
        }
        self.family = "toddler replay";
        for user in 0..20 {
            let mut at = 21 * DAY + user * 600;
            for _ in 0..8 {
                self.view(&format!("toddler-{user}"), "song", at, 180, "DE");
                at += 180 + self.rng.random_range(10..3000);
            }
        }
        self.family = "live premiere";
        for user in 0..900 {
            let (at, seconds) =
                (22 * DAY + 72_000 + self.rng.random_range(0..900), self.rng.random_range(300..3000));
            self.view(&format!("fan-{user}"), "premiere", at, seconds, "DE");
        }
        self.family = "kiosk";
        for n in 0..300 {
            let (video, wait) = (n % 12, self.rng.random_range(0..200));
            self.view("kiosk", &format!("ad-{video}"), 23 * DAY + n * 180 + wait, 60, "DE");
        }
    }
}

/// The interval in which a share of `hits` in `all` lies, 95%, by Wilson.
fn interval(hits: usize, all: usize) -> (f64, f64) {
    let (n, z) = (all as f64, 1.96_f64);
    let p = hits as f64 / n;
    let middle = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

const ATTACKS: [&str; 8] = [
    "naive loop",
    "rotation of users",
    "threshold hugging",
    "metronome with jitter",
    "slow drip",
    "account farm",
    "session replay",
    "mimicry of real gaps",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attacks_are_found_and_people_are_left_alone() {
    let world: World = billing::world().await;
    world.write_sql("tables/fraud.sql", &billing::sql("tables/fraud.sql"));
    world.write_sql("views/fraud.sql", &billing::sql("views/fraud.sql"));
    let server = world.serve().await;
    let client = server.connect_as("bill").await.unwrap();
    let rng = StdRng::seed_from_u64(11);
    let mut traffic = Traffic { rng, lines: Vec::new(), family: "", number: 0, families: BTreeMap::new() };
    traffic.people("people", 700, 4, 5);
    traffic.attacks();
    traffic.hard_cases();
    let records = traffic.lines.iter().enumerate();
    let records = records.map(|(n, line)| ((n % 2) as i32, Some(line.clone().into_bytes())));
    world.kafka.write_to(billing::VIEWS_TOPIC, records.collect::<Vec<_>>());
    billing::until_counted(&server, traffic.lines.len()).await;
    let dir = tempfile::tempdir().unwrap();
    for script in ["thresholds", "judge"] {
        let mut psql = Psql::new(&client, dir.path(), &[("period", billing::MONTH)]);
        psql.run(&billing::sql(&format!("fraud/{script}.sql"))).await.unwrap();
    }

    let mut found: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut flagged: BTreeMap<&str, usize> = BTreeMap::new();
    for family in traffic.families.values() {
        found.entry(family).or_default().1 += 1;
    }
    for row in server.rows("SELECT event_id, verdict FROM audit.verdicts").await {
        let (id, verdict) = row.split_once('|').unwrap();
        match verdict {
            "invalid" => found.get_mut(traffic.families[id]).unwrap().0 += 1,
            _ => *flagged.entry(traffic.families[id]).or_default() += 1,
        }
    }
    println!("| family | views | invalid | share | 95% | flagged only |\n|---|---|---|---|---|---|");
    let mut shares: Vec<(&str, usize, usize)> =
        found.iter().map(|(family, (hits, all))| (*family, *hits, *all)).collect();
    shares.sort_by_key(|(family, hits, all)| (!ATTACKS.contains(family), hits * 10_000 / all));
    for (family, hits, all) in &shares {
        let (low, high) = interval(*hits, *all);
        let (share, doubted) = (*hits as f64 / *all as f64, flagged.get(family).copied().unwrap_or_default());
        println!("| {family} | {all} | {hits} | {share:.3} | {low:.3} to {high:.3} | {doubted} |");
    }
    let of = |attack: bool| shares.iter().filter(move |(family, ..)| ATTACKS.contains(family) == attack);
    let recall = of(true).map(|(_, hits, all)| *hits as f64 / *all as f64).sum::<f64>() / ATTACKS.len() as f64;
    let wrong = of(false).map(|(_, hits, _)| hits).sum::<usize>() as f64
        / of(false).map(|(.., all)| all).sum::<usize>() as f64;
    println!("macro recall {recall:.3}; wrongly invalid {wrong:.4} of all other views");
    for prevalence in [0.01, 0.03, 0.1] {
        let precision = prevalence * recall / (prevalence * recall + (1.0 - prevalence) * wrong);
        println!("at {:.0}% prevalence: precision {precision:.3}", prevalence * 100.0);
    }

    // What must hold whatever the thresholds are: what is blatant is found, and ordinary people are not.
    let share = |family: &str| found[family].0 as f64 / found[family].1 as f64;
    assert!(share("naive loop") > 0.95 && share("people") == 0.0);
    // To judge again changes nothing.
    let versions = "SELECT version FROM system.tables WHERE \"table\" = 'audit.verdicts'";
    let before = server.rows(versions).await;
    let mut psql = Psql::new(&client, dir.path(), &[("period", billing::MONTH)]);
    psql.run(&billing::sql("fraud/judge.sql")).await.unwrap();
    assert_eq!(server.rows(versions).await, before);
    // And what the rules would change is told in money: nothing, once they have judged.
    let changes = "SELECT coalesce(sum(newly_invalid), 0), coalesce(sum(no_longer_invalid), 0) FROM fraud.dry_run";
    assert_eq!(server.one(changes).await, "0|0");
}
