//! Which versions of reference tables each view is computed with.
//!
//! | when | with |
//! |---|---|
//! | a start | the versions that the generation was made with |
//! | a refresh | the newest; a view whose tables have changed is computed anew from the archive, beside what it was |
//! | a statement on views | those that the view has; a new version of a view gets the newest |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Result;
use sha2::{Digest, Sha256};

use crate::batch::run::ViewInput;
use crate::batch::{BoundTable, Generation};
use crate::catalog::version;
use crate::engine::state::{TableRows, ViewError};
use crate::merge::catalog::Names;
use crate::runtime::chain;
use crate::tables::log::{OpenError, TableLog};
use crate::tables::{Contents, Tables};

/// The rows of a table, and which version they are.
struct Bound {
    table: BoundTable,
    rows: TableRows,
}

impl Bound {
    fn newest(contents: &Contents) -> Self {
        let digest = contents.digest();
        let rows = TableRows { rows: contents.rows.clone(), digest: digest.clone() };
        Self { table: BoundTable { version: contents.version.number, digest }, rows }
    }
}

/// `names` with every view over the newest version of the tables that it reads. One that cannot be planned over it
/// stays as it is.
pub fn to_newest(names: &Arc<Names>, tables: &Tables) -> Arc<Names> {
    let stale = names.views.iter().filter(|(_, input)| !is_newest(input, tables));
    let mut bound = Names::clone(names);
    for (instance, input) in stale {
        match over(instance, input, newest(input, tables)) {
            Ok((name, input)) => {
                bound.views.remove(instance);
                bound.views.insert(name, input);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(view = instance, error, "a view cannot be planned over its tables as they are now");
            }
        }
    }
    match bound.views.keys().eq(names.views.keys()) {
        true => Arc::clone(names),
        false => Arc::new(bound),
    }
}

/// `names`, which are not bound, with each view that `before` has too as it is there, and the others over the newest
/// version of the tables that they read.
pub fn like(names: Names, before: &Names, tables: &Tables) -> Result<Names, ViewError> {
    let mut bound = names.clone();
    for (instance, input) in names.views.iter().filter(|(_, input)| !input.view.tables().is_empty()) {
        bound.views.remove(instance);
        let same = |kept: &ViewInput| {
            let digests = kept.tables.iter().map(|(table, bound)| (table.clone(), bound.digest.clone())).collect();
            kept.view.fingerprint() == input.view.fingerprint_over(&digests)
        };
        match version::find_instance(&before.views, instance).filter(|(_, kept)| same(kept)) {
            Some((name, kept)) => {
                let kept = ViewInput { declared: Arc::clone(&input.declared), ..kept.clone() };
                bound.views.insert(name.clone(), kept);
            }
            None => {
                let (name, input) = over(instance, input, newest(input, tables))?;
                bound.views.insert(name, input);
            }
        }
    }
    Ok(bound)
}

/// `names`, which are not bound, with each view over the versions that `generation` was made with, and where it does
/// not hold the view, or its version does not fit the declaration any more, over the newest.
pub async fn as_made(
    names: &Arc<Names>,
    generation: &Generation,
    log: &TableLog,
    tables: &Tables,
) -> Result<Arc<Names>> {
    if names.views.values().all(|input| input.view.tables().is_empty()) {
        return Ok(Arc::clone(names));
    }
    let mut bound = Names::clone(names);
    for (instance, input) in names.views.iter().filter(|(_, input)| !input.view.tables().is_empty()) {
        bound.views.remove(instance);
        let made = version::find_instance(&generation.views, instance).map(|(_, states)| &states.tables);
        let mut with = BTreeMap::new();
        for (table, newest) in newest(input, tables) {
            let older = made.and_then(|made| made.get(&table)).filter(|made| made.version != newest.table.version);
            let rows = match older {
                Some(older) => match log.at(&table, older.version).await {
                    Ok(rows) => {
                        Some(Bound { rows: TableRows { rows, digest: older.digest.clone() }, table: older.clone() })
                    }
                    Err(OpenError::Unfit(_)) => None,
                    Err(error) => return Err(error.into()),
                },
                None => None,
            };
            with.insert(table, rows.unwrap_or(newest));
        }
        let (name, input) = over(instance, input, with)?;
        bound.views.insert(name, input);
    }
    Ok(Arc::new(bound))
}

fn is_newest(input: &ViewInput, tables: &Tables) -> bool {
    input.view.tables().iter().all(|table| {
        let newest = tables.get(table).map(|contents| contents.digest());
        newest.as_ref() == input.tables.get(table).map(|bound| &bound.digest)
    })
}

fn newest(input: &ViewInput, tables: &Tables) -> BTreeMap<String, Bound> {
    let read: BTreeSet<&String> = input.view.tables().iter().collect();
    let contents = tables.iter().filter(|(table, _)| read.contains(table));
    contents.map(|(table, contents)| (table.clone(), Bound::newest(contents))).collect()
}

/// `input` computed with these rows, and the name of that instance.
fn over(
    instance: &str,
    input: &ViewInput,
    with: BTreeMap<String, Bound>,
) -> Result<(String, ViewInput), ViewError> {
    let mut hash = Sha256::new();
    let (mut rows, mut tables) = (BTreeMap::new(), BTreeMap::new());
    for (table, bound) in with {
        hash.update(format!("{table} {}\n", bound.table.digest));
        rows.insert(table.clone(), bound.rows);
        tables.insert(table, bound.table);
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = version::bound_instance(version::unbound_instance(instance), &digest);
    let view = Arc::new(input.view.bound(&name, &rows)?);
    Ok((name, ViewInput { view, tables, ..input.clone() }))
}
