//! Files of `sql/verify`: what was written when a period was closed, computed again.
//!
//! A file is one SELECT with `$period` in it that has no rows when all is as it was written. Its header names where it is written
//! what was read then:
//!
//! | line | what |
//! |---|---|
//! | `-- closed by: <table>` | has a row with the column `period` from the close on, by whose commit every table is read |
//! | `-- frontier: <table>` | `period`, `stream`, `partition`, `next_offset`: the records that were there are below it |
//! | `-- counted with: <column>` | of the row of the first table: versions of tables that were read instead, `name version,...` |

use std::path::Path;

use super::Fault;

/// The folder in `sql/`.
const FOLDER: &str = "verify";

/// One file.
#[derive(Debug, Clone)]
pub struct ClosedPeriods {
    pub file: String,
    pub closed_by: String,
    pub frontier: String,
    pub counted_with: String,
    text: String,
}

impl ClosedPeriods {
    /// The SELECT for one period.
    ///
    /// # Errors
    /// When the period has other signs than letters, digits, `-`, `_` and `.`.
    pub fn query(&self, period: &str) -> Result<String, String> {
        let known = |sign: char| sign.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&sign);
        if period.is_empty() || !period.chars().all(known) {
            return Err(format!("{period:?} is no period: give it as it was closed, such as 2026-10"));
        }
        Ok(self.text.replace("$period", &format!("'{period}'")))
    }
}

/// All files, in the order of their names; none where there is no folder.
///
/// # Errors
/// A fault for each file that cannot be read or whose header leaves something out.
pub fn load(sql_dir: &Path) -> Result<Vec<ClosedPeriods>, Vec<Fault>> {
    let dir = sql_dir.join(FOLDER);
    let fault =
        |file: &Path, reason: String| Fault { file: file.display().to_string(), line: 1, column: 1, reason };
    let listed = match std::fs::read_dir(&dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(vec![fault(&dir, format!("cannot list: {error}"))]),
    };
    let mut paths: Vec<_> = listed.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "sql"));
    paths.sort();
    let (mut files, mut faults) = (Vec::new(), Vec::new());
    for path in paths {
        match std::fs::read_to_string(&path).map_err(|error| format!("cannot read: {error}")).and_then(|text| {
            let said = |name: &str| {
                let line =
                    text.lines().find_map(|line| line.strip_prefix("-- ")?.strip_prefix(name)?.strip_prefix(':'));
                line.map(|value| value.trim().to_owned())
                    .ok_or_else(|| format!("there is no line `-- {name}: ...`"))
            };
            Ok(ClosedPeriods {
                file: path.display().to_string(),
                closed_by: said("closed by")?,
                frontier: said("frontier")?,
                counted_with: said("counted with")?,
                text: text.clone(),
            })
        }) {
            Ok(file) => files.push(file),
            Err(reason) => faults.push(fault(&path, reason)),
        }
    }
    if faults.is_empty() { Ok(files) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_says_what_was_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_empty());
        std::fs::create_dir(dir.path().join(FOLDER)).unwrap();
        let file = dir.path().join("verify/a.sql");
        std::fs::write(&file, "-- closed by: runs\n-- frontier: ends\nSELECT $period").unwrap();
        let faults = load(dir.path()).unwrap_err();
        assert!(
            faults[0].to_string().contains("a.sql:1:1: there is no line `-- counted with: ...`"),
            "{}",
            faults[0]
        );
        std::fs::write(&file, "-- closed by: runs\n-- frontier: ends\n-- counted with: tables\nSELECT $period")
            .unwrap();
        let files = load(dir.path()).unwrap();
        assert_eq!((files[0].closed_by.as_str(), files[0].counted_with.as_str()), ("runs", "tables"));
        assert!(files[0].query("2026-10").unwrap().ends_with("SELECT '2026-10'"));
        assert!(files[0].query("2026'--").is_err());
    }
}
