//! From definitions to what there is to read, and the statements that change it while the process runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::batch::run::{RefreshError, ViewInput};
use crate::catalog::ddl::{self, Definition};
use crate::catalog::role::{GrantedOn, Roles};
use crate::catalog::version::{self, Histories, History};
use crate::catalog::view::View;
use crate::catalog::{Catalog, Fault, loader, schema_and_table};
use crate::engine::Engine;
use crate::engine::planner::Planner;
use crate::merge::catalog::{self as merged, Names};
use crate::merge::snapshot::SnapshotCell;
use crate::merge::{endpoints, functions, ordinary};
use crate::position::GenerationId;
use crate::runtime::{Clock, chain};
use crate::serve::{DefineError, SERVED_SCHEMAS, ViewChange};

use super::refresh::Refresher;
use super::{Declared, bindings};

/// Plans every version that `versions` keep, and the ordinary views and endpoints over them.
///
/// A version that no file in `sql/` holds, and that cannot be planned any more, is left out and told in the log: the
/// rest goes on serving.
///
/// # Errors
/// All faults of what is declared in files.
pub async fn plan(engine: &Engine, catalog: &Catalog, versions: Histories) -> Result<Names, Vec<Fault>> {
    let planner = Planner::new(engine, catalog).map_err(|error| vec![loader::whole_catalog(&error)])?;
    let mut names =
        Names { streams: catalog.streams.clone(), tables: catalog.tables.clone(), versions, ..Names::default() };
    let mut faults: Vec<Fault> = taken(catalog, &names.versions);
    let mut unreadable = Vec::new();
    for (view, history) in &names.versions {
        for number in history.kept() {
            let instance = version::instance(view, number);
            match input(&planner, catalog, view, history, number).await {
                Ok(input) => drop(names.views.insert(instance, input)),
                Err(fault) if history.current == Some(number) && history.file == Some(number) => faults.push(fault),
                Err(fault) => {
                    tracing::error!(view, version = number, fault = %fault, "a version cannot be planned any more");
                    unreadable.push((view.clone(), number));
                }
            }
        }
    }
    for (view, number) in unreadable {
        if let Some(history) = names.versions.get_mut(&view) {
            history.standby = history.standby.filter(|standby| *standby != number);
        }
    }
    // Over a view that has a fault nothing can be planned.
    if faults.is_empty() {
        names.ordinary = ordinary::plan_all(engine, &catalog.ordinary, &names).await?;
        names.functions = Arc::new(catalog.functions.clone());
        faults.extend(functions::faults(engine, &catalog.functions, &names).await);
        names.endpoints = endpoints::plan_all(engine, &catalog.endpoints, &names).await?;
    }
    if faults.is_empty() { Ok(names) } else { Err(faults) }
}

/// What is granted on something that the files do not declare.
pub async fn grant_faults(roles: &Roles, names: &Names) -> Vec<Fault> {
    if roles.is_empty() {
        return Vec::new();
    }
    let tables = match merged::declared_tables(names).await {
        Ok(tables) => tables,
        Err(error) => return vec![loader::whole_catalog(&error)],
    };
    let ordinary = names.ordinary.keys().map(|name| schema_and_table(name));
    let tables: BTreeSet<(&str, &str)> =
        tables.iter().map(|(schema, table, _)| (schema.as_str(), table.as_str())).chain(ordinary).collect();
    let schemas: BTreeSet<&str> = tables.iter().map(|(schema, _)| *schema).chain(SERVED_SCHEMAS).collect();
    let fault = |on: &GrantedOn| {
        let schema = on.schema.as_str();
        match &on.table {
            _ if !schemas.contains(schema) => {
                let known: Vec<&str> = schemas.iter().copied().collect();
                Some(on.fault(format!("schema \"{schema}\" does not exist; there are {}", known.join(", "))))
            }
            Some(table) if !SERVED_SCHEMAS.contains(&schema) && !tables.contains(&(schema, table)) => {
                Some(on.fault(format!(
                    "relation \"{schema}.{table}\" does not exist in the files; on what sessions create, rights are \
                     granted with ALL TABLES IN SCHEMA {schema}"
                )))
            }
            _ => None,
        }
    };
    roles.granted_on().iter().filter_map(fault).collect()
}

/// A table whose name a session has given to a view.
fn taken(catalog: &Catalog, versions: &Histories) -> Vec<Fault> {
    let viewed = |name: &str| versions.get(name).is_some_and(|history| history.current.is_some());
    let tables = catalog.tables.values().filter(|table| viewed(&table.name));
    let fault =
        |name: &str| format!("there is a materialized view {name}: drop it, or give the table another name");
    tables
        .map(|table| Fault { file: table.file.clone(), line: table.line, column: 1, reason: fault(&table.name) })
        .collect()
}

async fn input(
    planner: &Planner,
    catalog: &Catalog,
    name: &str,
    history: &History,
    number: u32,
) -> Result<ViewInput, Fault> {
    let of_file = catalog.views.get(name).filter(|_| history.file == Some(number));
    let declared = match (of_file, history.versions.get(&number)) {
        (Some(view), _) => Arc::clone(view),
        (None, Some(version)) => Arc::new(version.view(&version::versioned(name, number))?),
        (None, None) => {
            return Err(loader::whole_file(name.as_ref(), format!("version {number} has no definition")));
        }
    };
    let view = planner.view(&version::instance(name, number), &declared).await?;
    let stream = catalog.streams.get(view.stream().table()).ok_or_else(|| Fault {
        file: declared.file.clone(),
        line: declared.line,
        column: 1,
        reason: format!("there is no stream {}", view.stream().table()),
    })?;
    Ok(ViewInput { view: Arc::new(view), stream: Arc::clone(stream), declared, tables: BTreeMap::new() })
}

/// Changes definitions, one at a time.
#[derive(Debug)]
pub struct Definitions {
    pub engine: Arc<Engine>,
    /// What the files say that are followed.
    pub declared: ArcSwap<Declared>,
    pub cell: Arc<SnapshotCell>,
    pub refresher: Arc<Refresher>,
    pub clock: Arc<dyn Clock>,
    pub turn: tokio::sync::Mutex<()>,
}

impl Definitions {
    /// Carries out a statement of `user`. When it returns, queries that begin see what it did.
    pub async fn change(&self, change: &ViewChange, user: &str) -> Result<(), DefineError> {
        let _turn = self.turn.lock().await;
        let before = Arc::clone(&self.cell.load().names);
        let mut versions = before.versions.clone();
        match change {
            ViewChange::Create { statement, replace } => {
                self.create(&mut versions, statement, *replace, user).await?;
            }
            ViewChange::Promote { view, version } => promote(&mut versions, view, *version)?,
            ViewChange::Drop { view } => drop_view(&mut versions, view)?,
        }
        if versions == before.versions {
            return Ok(());
        }
        let generation = self.adopt(&self.declared.load().catalog, versions).await?;
        tracing::info!(user, ?change, generation = generation.0, "definitions changed");
        Ok(())
    }

    /// Takes the views from files that were changed, while those there are go on answering: a query that is new in its
    /// file is computed, and current from then on. Streams and tables must be as they were.
    pub async fn follow(&self, declared: Arc<Declared>) -> Result<(), DefineError> {
        let _turn = self.turn.lock().await;
        let versions = self.cell.load().names.versions.clone();
        let versions = version::with_files(versions, &declared.catalog.views, self.clock.now());
        self.adopt(&declared.catalog, versions).await?;
        self.declared.store(declared);
        Ok(())
    }

    /// Has `versions` be what there is to read.
    async fn adopt(&self, catalog: &Catalog, versions: Histories) -> Result<GenerationId, DefineError> {
        let before = Arc::clone(&self.cell.load().names);
        let names = plan(&self.engine, catalog, versions).await.map_err(|faults| {
            let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
            DefineError::Needed(told.join("\n"))
        })?;
        let bound = bindings::like(names, &before, &self.cell.load().tables);
        let names = bound.map_err(|error| DefineError::Failed(chain(&error)))?;
        match self.refresher.rename(&self.cell, Arc::new(names)).await {
            Ok(generation) => Ok(generation),
            Err(RefreshError::Cancelled) => Err(DefineError::Cancelled),
            Err(error) => Err(DefineError::Failed(chain(&error))),
        }
    }

    async fn create(
        &self,
        versions: &mut Histories,
        statement: &str,
        replace: bool,
        user: &str,
    ) -> Result<(), DefineError> {
        let invalid = |fault: Fault| DefineError::Invalid(fault.to_string());
        let view = match ddl::parse("statement", statement).map_err(invalid)?.pop() {
            Some(Definition::View(view)) => view,
            _ => return Err(DefineError::Invalid("not a CREATE MATERIALIZED VIEW".to_owned())),
        };
        let name = view.name.clone();
        let declared = self.declared.load();
        if declared.catalog.ordinary.contains_key(&name) {
            return Err(DefineError::Exists { kind: "view", name });
        }
        if declared.catalog.tables.contains_key(&name) {
            return Err(DefineError::Exists { kind: "table", name });
        }
        let history = versions.entry(name.clone()).or_default();
        if history.current.is_some() && !replace {
            return Err(DefineError::Exists { kind: "materialized view", name });
        }
        self.refuse_unless_sound(&view).await.map_err(invalid)?;
        let number = history.add(&view, self.clock.now(), user);
        match history.current {
            None => history.promote(number),
            Some(_) => history.stand_by(number),
        }
        Ok(())
    }

    async fn refuse_unless_sound(&self, view: &View) -> Result<(), Fault> {
        let catalog = &self.declared.load().catalog;
        let planner = Planner::new(&self.engine, catalog).map_err(|error| loader::whole_catalog(&error))?;
        planner.view(&view.name, view).await.map(drop)
    }
}

fn promote(versions: &mut Histories, view: &str, number: u32) -> Result<(), DefineError> {
    let found = versions.get_mut(view).filter(|history| history.current.is_some());
    let history = found.ok_or_else(|| DefineError::Unknown(view.to_owned()))?;
    if !history.versions.contains_key(&number) {
        let there_are: Vec<String> = history.versions.keys().map(ToString::to_string).collect();
        return Err(DefineError::UnknownVersion {
            view: view.to_owned(),
            version: number,
            there_are: there_are.join(", "),
        });
    }
    history.promote(number);
    Ok(())
}

fn drop_view(versions: &mut Histories, name: &str) -> Result<(), DefineError> {
    let unknown = || DefineError::Unknown(name.to_owned());
    if let Some((view, number)) = version::parse_versioned(name) {
        let history = versions.get_mut(view).ok_or_else(unknown)?;
        if history.current == Some(number) {
            return Err(DefineError::Needed(format!(
                "version {number} is what {view} stands for: promote another first, or drop {view}"
            )));
        }
        history.standby.take_if(|standby| *standby == number).ok_or_else(unknown)?;
        return Ok(());
    }
    let history = versions.get_mut(name).filter(|history| history.current.is_some()).ok_or_else(unknown)?;
    if let Some(version) = history.file.and_then(|number| history.versions.get(&number)) {
        return Err(DefineError::Needed(format!(
            "materialized view {name} is declared at {}: take it out of the file and restart",
            version.created_by
        )));
    }
    history.drop_view();
    Ok(())
}
