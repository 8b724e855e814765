//! A file of statements, queries and their answers, in the format of sqllogictest.
//!
//! ```text
//! # a comment
//! onlyif split                     or skipif; the name of a stage
//! query TI rowsort                 a letter a column; nosort is the other mode
//! SELECT ...
//! ----
//! the rows, values apart by a blank
//!
//! statement ok
//! statement error 42P01: a regular expression
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::engine::Session;

pub struct Script {
    file: PathBuf,
    /// Records, and between them comments and blank lines as they are.
    parts: Vec<Part>,
}

enum Part {
    Text(String),
    Record(Record),
}

struct Record {
    line: usize,
    condition: Option<(Condition, String)>,
    sql: String,
    expected: Expected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    OnlyIf,
    SkipIf,
}

enum Expected {
    Rows {
        letters: String,
        order: Order,
        rows: Vec<String>,
    },
    Done,
    /// What the error's text begins with.
    Error(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Sorted,
    AsIs,
}

/// What a statement gave: letters and rows, or the error.
type Answer = Result<(String, Vec<String>), String>;

impl Script {
    pub fn read(file: &Path) -> Self {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (mut parts, mut at, mut condition) = (Vec::new(), 0, None);
        while at < lines.len() {
            let line = lines[at];
            let words: Vec<&str> = line.split_whitespace().collect();
            at += 1;
            match words.as_slice() {
                ["onlyif", stage] => condition = Some((Condition::OnlyIf, (*stage).to_owned())),
                ["skipif", stage] => condition = Some((Condition::SkipIf, (*stage).to_owned())),
                ["query" | "statement", ..] => {
                    let rest: Vec<&str> = lines[at..].iter().take_while(|line| !line.is_empty()).copied().collect();
                    let place = format!("{}:{at}", file.display());
                    let record = Record::read(line, &rest, at, condition.take());
                    parts.push(Part::Record(record.unwrap_or_else(|| panic!("{place}: not understood: {line}"))));
                    at += rest.len();
                }
                [] => parts.push(Part::Text(line.to_owned())),
                [word, ..] => {
                    assert!(word.starts_with('#'), "{}:{at}: not understood: {line}", file.display());
                    parts.push(Part::Text(line.to_owned()));
                }
            }
        }
        Self { file: file.to_owned(), parts }
    }

    /// Every record that is for `stage`; what was answered otherwise.
    pub async fn run(&self, session: &Session, stage: &str) -> Vec<String> {
        let mut failures = Vec::new();
        for part in &self.parts {
            let Part::Record(record) = part else { continue };
            if record.is_for(stage)
                && let Some(failure) = record.failure(&record.answer(session).await)
            {
                let Record { line, sql, .. } = record;
                failures.push(format!("{}:{line}: {sql}\n{failure}", self.file.display()));
            }
        }
        failures
    }

    /// The file with what is answered in place of the rows that stand in it.
    pub async fn updated(&self, session: &Session, stage: &str) -> String {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(line) => writeln!(text, "{line}").unwrap(),
                Part::Record(record) => {
                    let answer = if record.is_for(stage) { Some(record.answer(session).await) } else { None };
                    record.write(&mut text, answer);
                }
            }
        }
        text
    }
}

impl Record {
    fn read(head: &str, lines: &[&str], line: usize, condition: Option<(Condition, String)>) -> Option<Self> {
        let end = lines.iter().position(|line| *line == "----").unwrap_or(lines.len());
        let sql = lines[..end].join("\n");
        let expected = match head.split_once(' ')? {
            ("query", rest) if !rest.starts_with("error") => {
                let (letters, order) = rest.split_once(' ').unwrap_or((rest, "nosort"));
                let order = match order {
                    "rowsort" => Order::Sorted,
                    "nosort" => Order::AsIs,
                    _ => return None,
                };
                let rows = lines.iter().skip(end + 1).map(|line| (*line).to_owned()).collect();
                Expected::Rows { letters: letters.to_owned(), order, rows }
            }
            ("statement", "ok") => Expected::Done,
            (_, rest) => Expected::Error(rest.strip_prefix("error")?.trim().to_owned()),
        };
        Some(Self { line, condition, sql, expected })
    }

    fn is_for(&self, stage: &str) -> bool {
        match &self.condition {
            None => true,
            Some((condition, named)) => (named == stage) == (*condition == Condition::OnlyIf),
        }
    }

    async fn answer(&self, session: &Session) -> Answer {
        let (letters, mut rows) = session.run(&self.sql).await?;
        if matches!(self.expected, Expected::Rows { order: Order::Sorted, .. }) {
            rows.sort();
        }
        Ok((letters, rows.into_iter().map(|row| row.join(" ")).collect()))
    }

    fn failure(&self, answer: &Answer) -> Option<String> {
        match (&self.expected, answer) {
            (Expected::Rows { letters, rows, .. }, Ok((found_letters, found))) => {
                let same = rows == found && letters == found_letters;
                (!same).then(|| {
                    format!(
                        "expected {letters}:\n{}\nanswered {found_letters}:\n{}",
                        rows.join("\n"),
                        found.join("\n")
                    )
                })
            }
            (Expected::Done, Ok(_)) => None,
            (Expected::Error(begins), Err(error)) => {
                (!error.starts_with(begins.as_str())).then(|| format!("failed with: {error}"))
            }
            (Expected::Error(begins), Ok(_)) => Some(format!("succeeded, and should fail with: {begins}")),
            (_, Err(error)) => Some(format!("failed with: {error}")),
        }
    }

    fn write(&self, text: &mut String, answer: Option<Answer>) {
        if let Some((condition, stage)) = &self.condition {
            let word = if *condition == Condition::OnlyIf { "onlyif" } else { "skipif" };
            writeln!(text, "{word} {stage}").unwrap();
        }
        match &self.expected {
            Expected::Done => writeln!(text, "statement ok\n{}", self.sql).unwrap(),
            Expected::Error(begins) => writeln!(text, "query error {begins}\n{}", self.sql).unwrap(),
            Expected::Rows { letters, order, rows } => {
                let (letters, rows) = match answer {
                    Some(Ok((letters, rows))) => (letters, rows),
                    Some(Err(error)) => (letters.clone(), vec![format!("failed with: {error}")]),
                    None => (letters.clone(), rows.clone()),
                };
                let order = if *order == Order::Sorted { "rowsort" } else { "nosort" };
                writeln!(text, "query {letters} {order}\n{}\n----", self.sql).unwrap();
                rows.iter().for_each(|row| writeln!(text, "{row}").unwrap());
            }
        }
    }
}
