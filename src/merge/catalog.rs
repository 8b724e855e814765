//! The schemas that SQL sees, each bound to one pinned snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, TableType, ident, lit};
use parking_lot::Mutex;

use super::audit;
use super::certificate::Certificate;
use super::conflicts::{CONFLICTS, conflicts, with_counted};
use super::endpoints::PlannedEndpoint;
use super::ordinary::PlannedView;
use super::point::{Half, StatesOf};
use super::provider::{PlanTable, UnionTable, in_memory};
use super::snapshot::{Moment, Snapshot, StreamSnapshot};
use super::system::{self, Surroundings};
use crate::archive::Kind;
use crate::batch::run::ViewInput;
use crate::batch::{Generation, ViewStates};
use crate::catalog::function::Functions;
use crate::catalog::stream::{OFFSET, PARTITION, Stream, quarantine_schema};
use crate::catalog::table::Table;
use crate::catalog::version::{self, Histories};
use crate::catalog::{DEFAULT_SCHEMA, qualified, schema_and_table};
use crate::engine::state::LambdaView;
use crate::position::{Epoch, GenerationId, StreamFrontier};
use crate::storage::scan::{FILE_COLUMN, ROW_COLUMN};
use crate::tables::change::numbered;
use crate::tables::{Contents, Tables};

/// What there is to read.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// By stream name.
    pub streams: BTreeMap<String, Arc<Stream>>,
    /// By name of the reference table.
    pub tables: BTreeMap<String, Arc<Table>>,
    /// By instance: every version of a view that is kept up to date.
    pub views: BTreeMap<String, ViewInput>,
    pub versions: Histories,
    /// By name of the ordinary view.
    pub ordinary: BTreeMap<String, Arc<PlannedView>>,
    pub functions: Arc<Functions>,
    /// By route.
    pub endpoints: BTreeMap<String, Arc<PlannedEndpoint>>,
}

impl Names {
    /// The version that readers call `name`, which is `v` or `v@n`, and its instance.
    pub fn view(&self, name: &str) -> Option<(&String, &ViewInput)> {
        version::find_instance(&self.views, &version::called(&self.versions, name)?)
    }

    /// What versions are called that readers are shown: a view's name, and `v@n` for the one beside it.
    pub fn view_names(&self) -> Vec<String> {
        let histories = self.versions.iter();
        let names = histories.flat_map(|(view, history)| {
            let standby = history.standby.map(|number| version::versioned(view, number));
            history.current.map(|_| view.clone()).into_iter().chain(standby)
        });
        names.filter(|name| self.view(name).is_some()).collect()
    }

    /// Whether the name of a view stands for `instance`.
    pub fn is_current(&self, instance: &str) -> bool {
        let called = |name: &str| version::called(&self.versions, name);
        self.views
            .get(instance)
            .and_then(|input| called(&input.declared.name))
            .is_some_and(|current| current == version::unbound_instance(instance))
    }

    /// All but a version that was on standby.
    #[must_use]
    pub fn without(&self, instance: &str) -> Self {
        let mut rest = self.clone();
        if let Some(input) = rest.views.remove(instance)
            && let Some(history) = rest.versions.get_mut(&input.declared.name)
        {
            let name = &input.declared.name;
            let gone = version::unbound_instance(instance);
            history.standby = history.standby.filter(|number| version::instance(name, *number) != gone);
        }
        rest
    }
}

/// Every table that is declared, with its schema and its columns: what there is to plan with before there is a snapshot.
pub async fn declared_tables(names: &Names) -> Result<Vec<(String, String, SchemaRef)>> {
    let mut tables = Vec::new();
    for name in names.view_names() {
        let Some((_, ViewInput { view, .. })) = names.view(&name) else { continue };
        tables.extend([DEFAULT_SCHEMA, "batch", "speed"].map(|schema| (schema, name.clone(), view.final_schema())));
    }
    for (name, stream) in &names.streams {
        let records = with_origin(&stream.record_schema());
        tables.push(("raw", name.clone(), Arc::clone(&records)));
        if stream.key.is_some() {
            tables.push(("raw", format!("{name}{CONFLICTS}"), with_counted(&records)));
        }
        tables.push(("raw", format!("{name}{DUPLICATES}"), records));
        tables.push(("quarantine", name.clone(), with_origin(&quarantine_schema())));
    }
    let nothing = Snapshot {
        generation: Arc::new(Generation::empty()),
        names: Arc::new(names.clone()),
        tables: Arc::default(),
        streams: BTreeMap::new(),
        moment: Moment::default(),
    };
    for (name, _) in system::TABLES {
        if let Some(table) = system::table(name, &nothing, None, &Surroundings::none())? {
            tables.push(("system", (*name).to_owned(), table.schema()));
        }
    }
    for (name, _) in audit::TABLES {
        if let Some(table) = audit::table(name, &Surroundings::none())? {
            tables.push(("audit", name.to_owned(), table.schema()));
        }
    }
    let own = names.tables.iter().map(|(name, table)| {
        let (schema, name) = schema_and_table(name);
        (schema.to_owned(), name.to_owned(), table.schema())
    });
    Ok(tables.into_iter().map(|(schema, table, columns)| (schema.to_owned(), table, columns)).chain(own).collect())
}

/// What a reader of a view is told while a start computes its delta.
#[derive(Debug, thiserror::Error)]
#[error("view {view} is not whole yet: the process has begun, and computes what came since the last generation")]
pub struct Restoring {
    view: String,
}

/// A version of a view, as a table.
#[derive(Debug)]
pub struct VersionTable {
    pub table: Arc<dyn TableProvider>,
    /// The columns of its group key.
    pub keys: Vec<String>,
}

/// All schemas of one snapshot.
#[derive(Debug, Clone)]
pub struct PinnedCatalog {
    snapshot: Arc<Snapshot>,
    /// An older generation to read instead of the snapshot's own and its delta.
    as_of: Option<Arc<Generation>>,
    /// A reference table that shows the numbers of its rows too.
    numbered: Option<String>,
    around: Arc<Surroundings>,
    /// The reference tables that were asked for.
    asked: Arc<Mutex<BTreeSet<String>>>,
}

impl PinnedCatalog {
    pub fn new(snapshot: Arc<Snapshot>, around: Arc<Surroundings>) -> Self {
        Self { snapshot, as_of: None, numbered: None, around, asked: Arc::default() }
    }

    /// With other reference tables: as a transaction sees them that has changed some.
    #[must_use]
    pub fn with_tables(&self, tables: Tables) -> Self {
        let snapshot = Snapshot { tables: Arc::new(tables), ..Snapshot::clone(&self.snapshot) };
        Self { snapshot: Arc::new(snapshot), ..self.clone() }
    }

    /// The reference tables, each at its version.
    pub fn tables(&self) -> &Tables {
        &self.snapshot.tables
    }

    /// The reference tables that were asked for in this catalog and in those that were made of it.
    pub fn asked(&self) -> BTreeSet<String> {
        self.asked.lock().clone()
    }

    /// What must have no rows after a change of `tables`: each enforced view that reads one of them, itself or through
    /// another view.
    pub fn enforced_over(&self, tables: &BTreeSet<String>) -> Result<Vec<String>> {
        let ordinary = &self.snapshot.names.ordinary;
        let mut reads = BTreeMap::new();
        for (name, view) in ordinary {
            reads.insert(name, view.reads()?);
        }
        let reaches = |name: &String| {
            let (mut seen, mut next) = (BTreeSet::from([name]), vec![name]);
            while let Some(read) = next.pop().and_then(|name| reads.get(name)) {
                if !read.is_disjoint(tables) {
                    return true;
                }
                next.extend(read.iter().filter(|name| reads.contains_key(name) && seen.insert(name)));
            }
            false
        };
        Ok(ordinary
            .iter()
            .filter(|(name, view)| view.enforced() && reaches(name))
            .map(|(name, _)| name.clone())
            .collect())
    }

    /// With the numbers of the rows of `table`, in a column `_row`: for a statement that changes some of them.
    #[must_use]
    pub fn numbering(self, table: &str) -> Self {
        Self { numbered: Some(table.to_owned()), ..self }
    }

    /// Views and records as they were in `generation`, without what came later. The schema `system` goes on to tell
    /// of the present.
    #[must_use]
    pub fn as_of(self, generation: Arc<Generation>) -> Self {
        Self { as_of: Some(generation), ..self }
    }

    /// A version of a view, merged; None when it is not kept up to date.
    pub fn version_table(&self, view: &str, number: u32) -> Result<Option<VersionTable>> {
        let schema = self.pinned(DEFAULT_SCHEMA, SchemaKind::Merged);
        let name = version::versioned(view, number);
        let Some((_, input)) = schema.version(&name)? else { return Ok(None) };
        let states = input.view.state_schema();
        let shown = input.view.final_schema();
        let keys: Vec<String> =
            states.fields().iter().take(input.view.group_columns()).map(|field| field.name().clone()).collect();
        if let Some(hidden) = keys.iter().find(|key| shown.field_with_name(key).is_err()) {
            return plan_err!("version {number} of view {view} does not show {hidden}, by which it is grouped");
        }
        Ok(schema.view(&name)?.map(|table| VersionTable { table, keys }))
    }

    /// The snapshot, unless something else is read than the present.
    pub(super) fn present(&self) -> Option<&Snapshot> {
        (self.as_of.is_none() && self.numbered.is_none()).then_some(&self.snapshot)
    }

    fn pinned(&self, name: &str, kind: SchemaKind) -> PinnedSchema {
        PinnedSchema { name: name.to_owned(), kind, catalog: self.clone() }
    }

    /// The names of reference tables and ordinary views in `schema`.
    fn own_names<'a>(&'a self, schema: &'a str) -> impl Iterator<Item = &'a str> {
        let names = &self.snapshot.names;
        let all = names.ordinary.keys().chain(names.tables.keys()).map(|name| schema_and_table(name));
        all.filter(move |(of, _)| *of == schema).map(|(_, table)| table)
    }

    /// Functions that stand for queries.
    pub fn functions(&self) -> &Arc<Functions> {
        &self.snapshot.names.functions
    }

    /// The endpoints that there are, by route.
    pub fn endpoints(&self) -> &BTreeMap<String, Arc<PlannedEndpoint>> {
        &self.snapshot.names.endpoints
    }

    /// A name that only this snapshot has; none when an older generation is read instead of it.
    pub fn identity(&self) -> Option<String> {
        self.as_of.is_none().then(|| self.snapshot.moment.to_string())
    }

    /// The generation that is read, with the delta since or without.
    pub fn generation(&self) -> GenerationId {
        self.as_of.as_ref().unwrap_or(&self.snapshot.generation).id
    }

    /// What is read, and what is missing in it.
    pub fn certificate(&self) -> Certificate {
        Certificate::of(&self.snapshot, self.as_of.as_deref(), &self.around.status)
    }
}

const SCHEMAS: [(&str, SchemaKind); 7] = [
    ("public", SchemaKind::Merged),
    ("batch", SchemaKind::Batch),
    ("speed", SchemaKind::Speed),
    ("raw", SchemaKind::Raw),
    ("quarantine", SchemaKind::Quarantine),
    ("system", SchemaKind::System),
    ("audit", SchemaKind::Audit),
];

/// Tables of records whose key had been seen: `raw.<stream>` with this ending.
const DUPLICATES: &str = "_duplicates";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SchemaKind {
    Merged,
    Batch,
    Speed,
    Raw,
    Quarantine,
    System,
    Audit,
    /// Reference tables and ordinary views alone.
    Own,
}

impl CatalogProvider for PinnedCatalog {
    fn schema_names(&self) -> Vec<String> {
        let names = &self.snapshot.names;
        let own = names.ordinary.keys().chain(names.tables.keys()).map(|name| schema_and_table(name).0);
        let own: BTreeSet<&str> = own.filter(|own| SCHEMAS.iter().all(|(name, _)| name != own)).collect();
        SCHEMAS.iter().map(|(name, _)| *name).chain(own).map(str::to_owned).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let kind = match SCHEMAS.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => *kind,
            None => self.own_names(name).next().map(|_| SchemaKind::Own)?,
        };
        Some(Arc::new(self.pinned(name, kind)))
    }
}

struct PinnedSchema {
    name: String,
    kind: SchemaKind,
    catalog: PinnedCatalog,
}

impl fmt::Debug for PinnedSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedSchema").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for PinnedSchema {
    fn table_names(&self) -> Vec<String> {
        let own = self.catalog.own_names(&self.name).map(str::to_owned);
        let made: Vec<String> = match self.kind {
            SchemaKind::Own => Vec::new(),
            SchemaKind::Merged | SchemaKind::Batch | SchemaKind::Speed => self.catalog.snapshot.names.view_names(),
            SchemaKind::Quarantine => self.catalog.snapshot.names.streams.keys().cloned().collect(),
            SchemaKind::Raw => {
                let endings = ["", DUPLICATES, CONFLICTS];
                self.catalog
                    .snapshot
                    .names
                    .streams
                    .iter()
                    .flat_map(|(name, stream)| {
                        let endings = endings.iter().filter(|ending| **ending != CONFLICTS || stream.key.is_some());
                        endings.map(move |ending| format!("{name}{ending}"))
                    })
                    .collect()
            }
            SchemaKind::System => system::TABLES.iter().map(|(name, _)| (*name).to_owned()).collect(),
            SchemaKind::Audit => audit::TABLES.iter().map(|(name, _)| (*name).to_owned()).collect(),
        };
        made.into_iter().chain(own).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(view) = self.ordinary(name) {
            return view.over(&self.catalog).await.map(Some);
        }
        if let Some(contents) = self.reference(name) {
            let rows = match &self.catalog.as_of {
                Some(older) => self.rows_of(older, contents).await?,
                None if self.catalog.numbered.as_ref() == Some(&contents.rules.table.name) => {
                    numbered(&contents.rows)?
                }
                None => contents.rows.clone(),
            };
            return in_memory(&rows.schema(), [rows]).map(Some);
        }
        match self.kind {
            SchemaKind::Merged | SchemaKind::Batch | SchemaKind::Speed => self.view(name),
            SchemaKind::Raw => match self.catalog.snapshot.names.streams.get(name) {
                Some(stream) => self.records(stream, Kind::Event).map(Some),
                None => {
                    let stream = |ending| {
                        name.strip_suffix(ending).and_then(|name| self.catalog.snapshot.names.streams.get(name))
                    };
                    match (stream(DUPLICATES), stream(CONFLICTS)) {
                        (Some(stream), _) => self.records(stream, Kind::Duplicate).map(Some),
                        (None, Some(stream)) => {
                            let (events, duplicates) =
                                (self.records(stream, Kind::Event)?, self.records(stream, Kind::Duplicate)?);
                            conflicts(stream, events, duplicates)
                        }
                        (None, None) => Ok(None),
                    }
                }
            },
            SchemaKind::Quarantine => self
                .catalog
                .snapshot
                .names
                .streams
                .get(name)
                .map(|stream| self.records(stream, Kind::Quarantined))
                .transpose(),
            SchemaKind::System => {
                system::table(name, &self.catalog.snapshot, self.catalog.as_of.as_deref(), &self.catalog.around)
            }
            SchemaKind::Audit => audit::table(name, &self.catalog.around),
            SchemaKind::Own => Ok(None),
        }
    }

    /// Known without planning the table.
    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(match self.ordinary(name) {
            Some(_) => Some(TableType::View),
            None => self.table_exist(name).then_some(TableType::Base),
        })
    }

    fn table_exist(&self, name: &str) -> bool {
        let views = [SchemaKind::Merged, SchemaKind::Batch, SchemaKind::Speed].contains(&self.kind);
        // The current version can be read by its number too, and is listed once.
        (views && self.catalog.snapshot.names.view(name).is_some())
            || self.table_names().iter().any(|known| known == name)
    }
}

impl PinnedSchema {
    /// The ordinary view of this name, where ordinary views are.
    fn ordinary(&self, name: &str) -> Option<&Arc<PlannedView>> {
        self.catalog.snapshot.names.ordinary.get(&qualified(&self.name, name))
    }

    /// The reference table of this name, where reference tables are.
    fn reference(&self, name: &str) -> Option<&Arc<Contents>> {
        let contents = self.catalog.snapshot.tables.get(&qualified(&self.name, name))?;
        self.catalog.asked.lock().insert(contents.rules.table.name.clone());
        Some(contents)
    }

    /// The rows that a reference table had when the generation `older` was made.
    async fn rows_of(&self, older: &Generation, contents: &Contents) -> Result<RecordBatch> {
        let name = &contents.rules.table.name;
        match (older.tables.get(name), &self.catalog.around.tables) {
            (Some(version), _) if *version == contents.version.number => Ok(contents.rows.clone()),
            (Some(version), Some(log)) => {
                log.at(name, *version).await.map_err(|error| DataFusionError::External(Box::new(error)))
            }
            _ => plan_err!(
                "generation {} was made before there was a table {name}: choose a later one, see system.generations",
                older.id
            ),
        }
    }

    /// A view over the snapshot: the merge plan, into which DataFusion pushes the query's filters.
    fn view(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((instance, ViewInput { view, stream, .. })) = self.version(name)? else { return Ok(None) };
        let schema = view.state_schema();
        let mut parts: Vec<Arc<dyn TableProvider>> = Vec::new();
        if self.kind != SchemaKind::Speed
            && let Some(states) = self.batch_states(name, instance, view)?
        {
            parts.push(Arc::new(states.table(Arc::clone(&schema))));
        }
        if self.kind != SchemaKind::Batch && self.catalog.as_of.is_none() {
            let part = self.stream(stream)?;
            if !part.whole {
                return Err(DataFusionError::External(Box::new(Restoring { view: name.to_owned() })));
            }
            let states = part.delta.states(instance);
            parts.push(in_memory(&schema, states)?);
        }
        if parts.is_empty() {
            parts.push(in_memory(&schema, [])?);
        }
        let half = match self.kind {
            SchemaKind::Batch => Half::Batch,
            SchemaKind::Speed => Half::Speed,
            _ => Half::Both,
        };
        let of = StatesOf { called: name.to_owned(), instance: instance.clone(), view: Arc::clone(view), half };
        let plan = view
            .merge_plan(Arc::new(UnionTable::of_states(of, parts)))
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Some(Arc::new(PlanTable::new(plan))))
    }

    /// The version that `name` stands for in what is read, and its instance; None when there is no such view.
    fn version(&self, name: &str) -> Result<Option<(&String, &ViewInput)>> {
        let names = &self.catalog.snapshot.names;
        let Some(older) = self.catalog.as_of.as_ref().filter(|older| !older.versions.is_empty()) else {
            return Ok(names.view(name));
        };
        match version::called(&older.versions, name) {
            Some(instance) => match version::find_instance(&names.views, &instance) {
                Some(found) => Ok(Some(found)),
                None => plan_err!(
                    "generation {} holds view {name} by a definition that is not kept any more: choose a later \
                     generation, see system.generations and system.view_versions",
                    older.id
                ),
            },
            None if names.view(name).is_some() => plan_err!(
                "generation {} was made before there was a view {name}: choose a later one, see system.generations",
                older.id
            ),
            None => Ok(None),
        }
    }

    /// The states of a version in the generation that is read; None when it has none.
    fn batch_states(&self, name: &str, instance: &str, view: &LambdaView) -> Result<Option<&ViewStates>> {
        let Some(older) = &self.catalog.as_of else {
            return Ok(self.catalog.snapshot.generation.views.get(instance));
        };
        match version::find_instance(&older.views, version::unbound_instance(instance)) {
            Some((_, states)) if states.fingerprint == view.fingerprint_over(&states.digests()) => Ok(Some(states)),
            Some(_) => plan_err!(
                "generation {} holds view {name} in states that cannot be read any more: choose a later generation, \
                 see system.generations",
                older.id
            ),
            None => plan_err!(
                "generation {} was made before there was a view {name}: choose a later one, see system.generations",
                older.id
            ),
        }
    }

    /// Records of one kind, from the archive and from the tail.
    fn records(&self, stream: &Stream, kind: Kind) -> Result<Arc<dyn TableProvider>> {
        let part = self.stream(stream)?;
        let (columns, archived) = match kind {
            Kind::Event | Kind::Duplicate => {
                (stream.record_schema(), part.archive.records(stream, kind, Epoch::default()))
            }
            Kind::Quarantined => (quarantine_schema(), part.archive.rejects(Epoch::default())),
        };
        let archived = archived.with_origin();
        if let Some(older) = &self.catalog.as_of {
            let frontier = older.frontier.0.get(&stream.name).cloned().unwrap_or_default();
            return below(&frontier, Arc::new(archived));
        }
        let tail = part.delta.tail(part.archive.epoch).map(|tail| match kind {
            Kind::Event => tail.events.clone(),
            Kind::Duplicate => tail.duplicates.clone(),
            Kind::Quarantined => tail.rejects.clone(),
        });
        let schema = with_origin(&columns);
        let tail = in_memory(&schema, tail)?;
        Ok(Arc::new(UnionTable::new(schema, vec![Arc::new(archived), tail])))
    }

    fn stream(&self, stream: &Stream) -> Result<&StreamSnapshot> {
        self.catalog
            .snapshot
            .streams
            .get(&stream.name)
            .ok_or_else(|| DataFusionError::Internal(format!("stream {} is not in the snapshot", stream.name)))
    }
}

/// The records below a frontier. By their coordinates, not by their files: a file may hold records of both sides.
pub(super) fn below(frontier: &StreamFrontier, records: Arc<dyn TableProvider>) -> Result<Arc<dyn TableProvider>> {
    let inside = frontier
        .next
        .iter()
        .map(|(partition, next)| ident(PARTITION).eq(lit(partition.0)).and(ident(OFFSET).lt(lit(next.0))));
    let inside = inside.reduce(Expr::or).unwrap_or_else(|| lit(false));
    let plan = LogicalPlanBuilder::scan("records", provider_as_source(records), None)?.filter(inside)?.build()?;
    Ok(Arc::new(PlanTable::new(plan)))
}

fn with_origin(columns: &SchemaRef) -> SchemaRef {
    let origin = [Field::new(FILE_COLUMN, DataType::Utf8, true), Field::new(ROW_COLUMN, DataType::Int64, true)];
    let fields = columns.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(fields.chain(origin).collect::<Vec<_>>()))
}
