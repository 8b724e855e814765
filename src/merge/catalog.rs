//! The schemas that SQL sees, each bound to one pinned snapshot.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::TableType;

use super::ordinary::PlannedView;
use super::provider::{PlanTable, UnionTable, in_memory};
use super::snapshot::{Snapshot, StreamSnapshot};
use super::system::{self, Surroundings};
use crate::archive::Kind;
use crate::batch::Generation;
use crate::batch::run::ViewInput;
use crate::catalog::stream::{Stream, quarantine_schema};
use crate::position::Epoch;
use crate::storage::scan::{FILE_COLUMN, ROW_COLUMN};

/// What exists, whatever the snapshot.
#[derive(Debug)]
pub struct Names {
    /// By stream name.
    pub streams: BTreeMap<String, Arc<Stream>>,
    /// By view name.
    pub views: BTreeMap<String, ViewInput>,
    /// By name of the ordinary view.
    pub ordinary: BTreeMap<String, PlannedView>,
}

/// Every table that is declared, with its schema and its columns: what there is to plan with before there is a snapshot.
pub async fn declared_tables(names: &Names) -> Result<Vec<(&'static str, String, SchemaRef)>> {
    let mut tables = Vec::new();
    for (name, ViewInput { view, .. }) in &names.views {
        tables.extend(["public", "batch", "speed"].map(|schema| (schema, name.clone(), view.final_schema())));
    }
    for (name, stream) in &names.streams {
        let records = with_origin(&stream.record_schema());
        tables.push(("raw", name.clone(), Arc::clone(&records)));
        tables.push(("raw", format!("{name}{DUPLICATES}"), records));
        tables.push(("quarantine", name.clone(), with_origin(&quarantine_schema())));
    }
    let nothing = Snapshot { generation: Arc::new(Generation::empty()), streams: BTreeMap::new() };
    for (name, _) in system::TABLES {
        if let Some(table) = system::table(name, &nothing, names, &Surroundings::none())? {
            tables.push(("system", (*name).to_owned(), table.schema()));
        }
    }
    Ok(tables)
}

/// All schemas of one snapshot.
#[derive(Debug)]
pub struct PinnedCatalog {
    snapshot: Arc<Snapshot>,
    names: Arc<Names>,
    around: Arc<Surroundings>,
}

impl PinnedCatalog {
    pub fn new(snapshot: Arc<Snapshot>, names: Arc<Names>, around: Arc<Surroundings>) -> Self {
        Self { snapshot, names, around }
    }
}

const SCHEMAS: [(&str, SchemaKind); 6] = [
    ("public", SchemaKind::Merged),
    ("batch", SchemaKind::Batch),
    ("speed", SchemaKind::Speed),
    ("raw", SchemaKind::Raw),
    ("quarantine", SchemaKind::Quarantine),
    ("system", SchemaKind::System),
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
}

impl CatalogProvider for PinnedCatalog {
    fn schema_names(&self) -> Vec<String> {
        SCHEMAS.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let (_, kind) = SCHEMAS.iter().find(|(known, _)| *known == name)?;
        Some(Arc::new(PinnedSchema {
            kind: *kind,
            snapshot: Arc::clone(&self.snapshot),
            names: Arc::clone(&self.names),
            around: Arc::clone(&self.around),
        }))
    }
}

struct PinnedSchema {
    kind: SchemaKind,
    snapshot: Arc<Snapshot>,
    names: Arc<Names>,
    around: Arc<Surroundings>,
}

impl fmt::Debug for PinnedSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedSchema").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for PinnedSchema {
    fn table_names(&self) -> Vec<String> {
        match self.kind {
            SchemaKind::Merged => self.names.views.keys().chain(self.names.ordinary.keys()).cloned().collect(),
            SchemaKind::Batch | SchemaKind::Speed => self.names.views.keys().cloned().collect(),
            SchemaKind::Quarantine => self.names.streams.keys().cloned().collect(),
            SchemaKind::Raw => {
                self.names.streams.keys().flat_map(|name| [name.clone(), format!("{name}{DUPLICATES}")]).collect()
            }
            SchemaKind::System => system::TABLES.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if let Some(view) = self.ordinary(name) {
            let catalog = PinnedCatalog {
                snapshot: Arc::clone(&self.snapshot),
                names: Arc::clone(&self.names),
                around: Arc::clone(&self.around),
            };
            return view.over(&catalog).await.map(Some);
        }
        match self.kind {
            SchemaKind::Merged | SchemaKind::Batch | SchemaKind::Speed => {
                self.names.views.get(name).map(|view| self.view(name, view)).transpose()
            }
            SchemaKind::Raw => match self.names.streams.get(name) {
                Some(stream) => self.records(stream, Kind::Event).map(Some),
                None => {
                    let stream = name.strip_suffix(DUPLICATES).and_then(|name| self.names.streams.get(name));
                    stream.map(|stream| self.records(stream, Kind::Duplicate)).transpose()
                }
            },
            SchemaKind::Quarantine => {
                self.names.streams.get(name).map(|stream| self.records(stream, Kind::Quarantined)).transpose()
            }
            SchemaKind::System => system::table(name, &self.snapshot, &self.names, &self.around),
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
        self.table_names().iter().any(|known| known == name)
    }
}

impl PinnedSchema {
    /// The ordinary view of this name, where ordinary views are.
    fn ordinary(&self, name: &str) -> Option<&PlannedView> {
        self.names.ordinary.get(name).filter(|_| self.kind == SchemaKind::Merged)
    }

    /// A view over the snapshot: the merge plan, into which DataFusion pushes the query's filters.
    fn view(&self, name: &str, ViewInput { view, stream }: &ViewInput) -> Result<Arc<dyn TableProvider>> {
        let schema = view.state_schema();
        let mut parts: Vec<Arc<dyn TableProvider>> = Vec::new();
        if self.kind != SchemaKind::Speed
            && let Some(states) = self.snapshot.generation.views.get(name)
        {
            parts.push(Arc::new(states.table(Arc::clone(&schema))));
        }
        if self.kind != SchemaKind::Batch {
            let states = self.stream(stream)?.delta.states(name);
            parts.push(in_memory(&schema, states)?);
        }
        if parts.is_empty() {
            parts.push(in_memory(&schema, [])?);
        }
        let plan = view
            .merge_plan(Arc::new(UnionTable::new(schema, parts)))
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Arc::new(PlanTable::new(plan)))
    }

    /// Records of one kind, from the archive and from the tail.
    fn records(&self, stream: &Stream, kind: Kind) -> Result<Arc<dyn TableProvider>> {
        let part = self.stream(stream)?;
        let columns = match kind {
            Kind::Event | Kind::Duplicate => stream.record_schema(),
            Kind::Quarantined => quarantine_schema(),
        };
        let archived = part.archive.table(Arc::clone(&columns), kind, Epoch::default()).with_origin();
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
        self.snapshot
            .streams
            .get(&stream.name)
            .ok_or_else(|| DataFusionError::Internal(format!("stream {} is not in the snapshot", stream.name)))
    }
}

fn with_origin(columns: &SchemaRef) -> SchemaRef {
    let origin = [Field::new(FILE_COLUMN, DataType::Utf8, true), Field::new(ROW_COLUMN, DataType::Int64, true)];
    let fields = columns.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(fields.chain(origin).collect::<Vec<_>>()))
}
