//! Versions of views: every definition that a view has and had, and which of them are kept up to date.
//!
//! | state | kept up to date | read as |
//! |---|---|---|
//! | current | yes | `v`, `"v@n"` |
//! | standby: to be compared, promoted or gone back to; at most one a view | yes | `"v@n"` |
//! | retired | no: promoting it computes it first | nothing |
//!
//! Definitions are evidence: none is ever deleted, not with its view either.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Fault;
use super::ddl::{self, Definition};
use super::view::View;
use crate::runtime::Micros;

/// Stands between a view's name and the number of a version.
pub const VERSION_MARK: char = '@';

/// The versions of every view, by its name.
pub type Histories = BTreeMap<String, History>;

/// The versions of one view.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// What the view's name stands for; None when the view was dropped.
    pub current: Option<u32>,
    pub standby: Option<u32>,
    /// Which one the file in `sql/` held when it was last read; None when no file declares the view.
    pub file: Option<u32>,
    pub versions: BTreeMap<u32, Version>,
}

/// One definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// `CREATE MATERIALIZED VIEW`, as it was written.
    pub statement: String,
    pub created_at: Micros,
    /// The place in a file, or the user of the session.
    pub created_by: String,
}

/// How a version stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Current,
    Standby,
    Retired,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Standby => "standby",
            Self::Retired => "retired",
        }
    }
}

/// Under what name the states of a version are kept. The first version has the view's own.
pub fn instance(view: &str, number: u32) -> String {
    if number == 1 { view.to_owned() } else { versioned(view, number) }
}

/// Stands between an instance and the digest of the reference tables that it is computed with.
const BOUND_MARK: &str = "@tables-";

/// Under what name the states of an instance are kept that is computed with reference tables of this digest.
pub fn bound_instance(instance: &str, digest: &str) -> String {
    format!("{instance}{BOUND_MARK}{digest}")
}

/// The instance without the digest of its tables.
pub fn unbound_instance(bound: &str) -> &str {
    bound.split_once(BOUND_MARK).map_or(bound, |(instance, _)| instance)
}

/// The one of `kept` that is `instance`, whatever tables it is computed with.
pub fn find_instance<'a, T>(kept: &'a BTreeMap<String, T>, instance: &str) -> Option<(&'a String, &'a T)> {
    let bound = || {
        let first = bound_instance(instance, "");
        kept.range(first.clone()..).next().filter(|(name, _)| name.starts_with(&first))
    };
    kept.get_key_value(instance).or_else(bound)
}

/// What readers call a version.
pub fn versioned(view: &str, number: u32) -> String {
    format!("{view}{VERSION_MARK}{number}")
}

/// The view and number in a name such as `v@2`.
pub fn parse_versioned(name: &str) -> Option<(&str, u32)> {
    let (view, number) = name.rsplit_once(VERSION_MARK)?;
    number.parse().ok().map(|number| (view, number))
}

/// The instance that `name`, which is `v` or `v@n`, stands for.
pub fn called(histories: &Histories, name: &str) -> Option<String> {
    if let Some(history) = histories.get(name) {
        return history.current.map(|number| instance(name, number));
    }
    let (view, number) = parse_versioned(name)?;
    let kept = histories.get(view)?.kept().any(|kept| kept == number);
    kept.then(|| instance(view, number))
}

impl Version {
    fn of(view: &View, at: Micros, by: &str) -> Self {
        Self { statement: view.statement.clone(), created_at: at, created_by: by.to_owned() }
    }

    /// The definition. `name` is that of the version, for messages.
    pub fn view(&self, name: &str) -> Result<View, Fault> {
        let other = || Fault {
            file: name.to_owned(),
            line: 0,
            column: 0,
            reason: "the definition that is kept is not one CREATE MATERIALIZED VIEW".to_owned(),
        };
        match ddl::parse(name, &self.statement)?.pop() {
            Some(Definition::View(view)) => Ok(view),
            _ => Err(other()),
        }
    }
}

impl History {
    /// The versions that are kept up to date.
    pub fn kept(&self) -> impl Iterator<Item = u32> + use<> {
        self.current.into_iter().chain(self.standby)
    }

    pub fn state(&self, number: u32) -> State {
        match number {
            _ if self.current == Some(number) => State::Current,
            _ if self.standby == Some(number) => State::Standby,
            _ => State::Retired,
        }
    }

    /// The version whose query is that of `view`.
    pub fn number_of(&self, view: &View) -> Option<u32> {
        let same = |version: &Version| version.view(&view.name).is_ok_and(|known| known.same_query(view));
        self.versions.iter().rev().find(|(_, version)| same(version)).map(|(number, _)| *number)
    }

    /// The number of `view`'s definition, a new one if there is none like it. What is not of its query (how often it is
    /// refreshed, its comment) is taken over by the version there is.
    pub fn add(&mut self, view: &View, at: Micros, by: &str) -> u32 {
        let known = self.number_of(view);
        let number = known.unwrap_or_else(|| self.versions.keys().last().map_or(1, |last| last + 1));
        match self.versions.get_mut(&number) {
            Some(version) => version.statement.clone_from(&view.statement),
            None => drop(self.versions.insert(number, Version::of(view, at, by))),
        }
        number
    }

    /// Makes `number` what the view's name stands for; what it stood for is on standby.
    pub fn promote(&mut self, number: u32) {
        if self.current != Some(number) {
            self.standby = self.current.replace(number);
        }
    }

    /// Keeps `number` up to date beside the current one; nothing when it is that.
    pub fn stand_by(&mut self, number: u32) {
        if self.current != Some(number) {
            self.standby = Some(number);
        }
    }

    pub fn drop_view(&mut self) {
        (self.current, self.standby, self.file) = (None, None, None);
    }
}

/// What `histories` become when the files declare `views`: a definition that is new in its file becomes the current
/// one, for changing a file is to ask for it; what a file held before changes nothing, for sessions may have promoted
/// another version since. A view whose file is gone is dropped.
pub fn with_files(mut histories: Histories, views: &BTreeMap<String, Arc<View>>, at: Micros) -> Histories {
    for (name, view) in views {
        let history = histories.entry(name.clone()).or_default();
        let number = history.add(view, at, &format!("{}:{}", view.file, view.line));
        if history.file.replace(number) != Some(number) || history.current.is_none() {
            history.promote(number);
        }
    }
    for (name, history) in &mut histories {
        if history.file.is_some() && !views.contains_key(name) {
            history.drop_view();
        }
    }
    histories
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn view(name: &str, query: &str) -> Arc<View> {
        let text = format!("-- A row.\nCREATE MATERIALIZED VIEW {name} AS {query};");
        match ddl::parse("views/v.sql", &text).unwrap().pop() {
            Some(Definition::View(view)) => Arc::new(view),
            other => panic!("{other:?}"),
        }
    }

    fn files(query: &str) -> BTreeMap<String, Arc<View>> {
        [("v".to_owned(), view("v", query))].into()
    }

    const FIRST: &str = "SELECT a, count(*) FROM raw.s GROUP BY a";
    const SECOND: &str = "SELECT a, sum(b) FROM raw.s GROUP BY a";

    fn stands(histories: &Histories) -> (Option<u32>, Option<u32>, Option<u32>) {
        let history = &histories["v"];
        (history.current, history.standby, history.file)
    }

    #[test]
    fn a_changed_file_is_current_and_an_unchanged_one_leaves_what_sessions_chose() {
        let first = with_files(Histories::new(), &files(FIRST), 1);
        assert_eq!(stands(&first), (Some(1), None, Some(1)));
        // Spaces and comments make no new version.
        let same = with_files(first.clone(), &files(&FIRST.replace(", ", ",\n  -- x\n  ")), 2);
        assert_eq!(stands(&same), (Some(1), None, Some(1)));
        let second = with_files(same, &files(SECOND), 3);
        assert_eq!(stands(&second), (Some(2), Some(1), Some(2)));
        // Gone back by a statement: the next start does not undo it.
        let mut back = second.clone();
        back.get_mut("v").unwrap().promote(1);
        let back = with_files(back, &files(SECOND), 4);
        assert_eq!(stands(&back), (Some(1), Some(2), Some(2)));
        // Gone back by the file.
        let again = with_files(second, &files(FIRST), 4);
        assert_eq!(stands(&again), (Some(1), Some(2), Some(1)));
        assert_eq!(again["v"].versions.len(), 2);
    }

    #[test]
    fn a_view_without_its_file_is_dropped_but_not_its_definitions() {
        let first = with_files(Histories::new(), &files(FIRST), 1);
        let dropped = with_files(first, &BTreeMap::new(), 2);
        assert_eq!(stands(&dropped), (None, None, None));
        let again = with_files(dropped, &files(SECOND), 3);
        assert_eq!(stands(&again), (Some(2), None, Some(2)));
        assert_eq!(again["v"].versions[&1].created_at, 1);
    }

    #[test]
    fn one_of_a_session_stays_without_a_file() {
        let mut history = History::default();
        let number = history.add(&view("v", FIRST), 1, "analyst");
        history.promote(number);
        let histories = with_files([("v".to_owned(), history)].into(), &BTreeMap::new(), 2);
        assert_eq!(stands(&histories), (Some(1), None, None));
        let kept = histories["v"].versions[&1].view("v@1").unwrap();
        assert_eq!(kept.comment.as_deref(), Some("A row."));
        assert!(kept.same_query(&view("v", FIRST)));
    }

    #[test]
    fn at_most_one_version_is_on_standby() {
        let mut history = History::default();
        for query in [FIRST, SECOND, "SELECT a, min(b) FROM raw.s GROUP BY a"] {
            let number = history.add(&view("v", query), 1, "analyst");
            history.stand_by(number);
            if number == 1 {
                history.promote(1);
            }
        }
        assert_eq!((history.current, history.standby), (Some(1), Some(3)));
        assert_eq!(history.state(2), State::Retired);
        history.promote(2);
        assert_eq!(history.kept().collect::<Vec<_>>(), [2, 1]);
        assert_eq!((instance("v", 1), instance("v", 2)), ("v".to_owned(), "v@2".to_owned()));
        assert_eq!(parse_versioned("a@b@12"), Some(("a@b", 12)));
    }
}
