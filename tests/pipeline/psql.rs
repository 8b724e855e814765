//! As much of psql as the scripts in `sql/billing` use, for machines without it.

use std::collections::BTreeMap;
use std::path::Path;

use futures::TryStreamExt;
use tokio_postgres::{Client, SimpleQueryMessage};

/// Runs scripts over one connection.
pub struct Psql<'a> {
    pub client: &'a Client,
    /// Where `\o` writes.
    pub dir: &'a Path,
    variables: BTreeMap<String, String>,
    /// Of each `\if` that is open: whether its lines run, and whether one of its branches has run.
    branches: Vec<(bool, bool)>,
    output: Option<String>,
    /// What a terminal would have shown.
    pub shown: String,
}

impl<'a> Psql<'a> {
    pub fn new(client: &'a Client, dir: &'a Path, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { client, dir, variables, branches: Vec::new(), output: None, shown: String::new() }
    }

    /// With `ON_ERROR_STOP`: the first error ends it, and rolls back what was open.
    pub async fn run(&mut self, script: &str) -> Result<(), String> {
        let mut sql = String::new();
        for line in script.lines().filter(|line| !line.trim_start().starts_with("--")) {
            let trimmed = line.trim();
            if sql.trim().is_empty() && trimmed.starts_with('\\') {
                for command in trimmed.split('\\').skip(1) {
                    self.command(command.trim());
                }
                continue;
            }
            sql.push_str(line);
            sql.push('\n');
            let ended = match trimmed.strip_suffix("\\gset") {
                Some(_) => Some(true),
                None => trimmed.ends_with(';').then_some(false),
            };
            if let Some(into_variables) = ended {
                let statement = std::mem::take(&mut sql).trim().trim_end_matches("\\gset").to_owned();
                if self.runs()
                    && let Err(error) = self.statement(&statement, into_variables).await
                {
                    self.client.batch_execute("ROLLBACK").await.map_err(|error| error.to_string())?;
                    return Err(error);
                }
            }
        }
        assert!(sql.trim().is_empty() && self.branches.is_empty(), "the script ends within {sql:?}");
        Ok(())
    }

    fn runs(&self) -> bool {
        self.branches.iter().all(|(runs, _)| *runs)
    }

    fn command(&mut self, text: &str) {
        let (command, rest) = text.split_once(' ').unwrap_or((text, ""));
        match command {
            "if" => {
                let holds = match rest.trim().strip_prefix(":{?") {
                    Some(name) => self.variables.contains_key(name.trim_end_matches('}')),
                    None => ["t", "true", "on", "1"].contains(&self.filled(rest).trim()),
                };
                self.branches.push((holds, holds));
            }
            "else" => {
                let (_, ran) = self.branches.pop().unwrap();
                self.branches.push((!ran, true));
            }
            "endif" => drop(self.branches.pop().unwrap()),
            _ if !self.runs() => {}
            "set" => {
                let (name, value) = rest.trim().split_once(' ').unwrap();
                self.variables.insert(name.to_owned(), value.trim().to_owned());
            }
            "echo" => self.shown += &format!("{}\n", self.filled(rest)),
            "o" => self.output = Some(self.filled(rest)).filter(|file| !file.is_empty()),
            other => panic!("\\{other} is not known"),
        }
    }

    /// `text` with the values of variables.
    fn filled(&self, text: &str) -> String {
        let mut filled = text.to_owned();
        // Longer names first, so that none is taken for the beginning of another.
        let mut variables: Vec<_> = self.variables.iter().collect();
        variables.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        for (name, value) in variables {
            filled = filled.replace(&format!(":'{name}'"), &format!("'{}'", value.replace('\'', "''")));
            filled = filled.replace(&format!(":{name}"), value);
        }
        filled
    }

    async fn statement(&mut self, sql: &str, into_variables: bool) -> Result<(), String> {
        let sql = self.filled(sql);
        let told = |error: tokio_postgres::Error| match error.as_db_error() {
            Some(error) => format!("{}: {}", error.code().code(), error.message()),
            None => error.to_string(),
        };
        if sql.starts_with("COPY") {
            let copied = self.client.copy_out(sql.trim_end_matches(';')).await.map_err(told)?;
            let pieces: Vec<bytes::Bytes> = copied.try_collect().await.map_err(told)?;
            let file = self.output.as_ref().unwrap();
            std::fs::write(self.dir.join(file), pieces.concat()).unwrap();
            return Ok(());
        }
        let messages = self.client.simple_query(&sql).await.map_err(told)?;
        let mut count = 0;
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else { continue };
            count += 1;
            let values: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or_default()).collect();
            if into_variables {
                let names = row.columns().iter().map(|column| column.name().to_owned());
                self.variables.extend(names.zip(values.iter().map(|value| (*value).to_owned())));
            } else {
                self.shown += &format!("{}\n", values.join("|"));
            }
        }
        self.variables.insert("ROW_COUNT".to_owned(), count.to_string());
        Ok(())
    }
}
